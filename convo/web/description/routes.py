"""The catalogue of routes: one row for each, with what it takes, what it requires, what it answers and what can fail.

Open this file to add or change a route. Both servers register the rows from here, and the description is made of them;
``convo.web.dispatch`` names the function of each row.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from convo import errors
from convo.capacity.forecast import CapacityReport
from convo.conversation.model import Receipt
from convo.store.keys import Scope
from convo.web.description import (
    batch_views,
    erasure_views,
    figure_views,
    samples,
    service_views,
    session_views,
    views,
    webhook_views,
)
from convo.web.description.parameters import (
    AS_OF,
    ASSET,
    ASSETS_VERSION,
    AUDIT_ACTION,
    AUDIT_SINCE,
    CONVERSATION_ID,
    COST,
    COUNT_ONLY,
    CURSOR,
    DRY_RUN,
    EVENT,
    EVENT_TYPE,
    EVENT_TYPES_WANTED,
    IF_NONE_MATCH,
    LAST_EVENT_ID,
    LIMIT,
    LOG_FORM,
    MANY_CONVERSATIONS,
    OF_CONVERSATION,
    OF_USER,
    REASON,
    REVISION,
    SINCE,
    SINCE_SEQ,
    STATE,
    TARGET_RATE,
    TOPIC,
    TRACEPARENT,
    TURNS_LIMIT,
    UNTIL,
    USER_ID,
    USER_PREFIX,
    WAIT,
    WEBHOOK_ID,
    WITHOUT_NUL,
    Parameter,
    filter_by,
)


class RouteResponse(Struct, frozen=True, kw_only=True):
    """One successful answer; ``media`` is empty for one without content, ``body`` a tuple if it is one of many."""

    status: int
    text: str
    body: Any = None
    media: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()
    sample: Any = None


class RouteBody(Struct, frozen=True, kw_only=True):
    """What is sent to a route in a body, as JSON."""

    type: Any
    sample: Any


class Route(Struct, frozen=True, kw_only=True):
    """One path and method.

    ``scope``: what a key must be allowed to do; ``None`` requires no key. ``needs_database``: it is refused until the
    database is migrated, and it counts against the client's limit. ``on_operations``: it is also served on the
    operations' own address, without a key. ``direct``: a connection calls it without the framework. ``of_all``: it
    shows the whole installation, so a key has to reach that (``convo.web.authority``). ``signs_in``: it is about the
    session that stands for a key, and checks that itself.
    """

    path: str
    name: str
    tag: str
    summary: str
    answers: tuple[RouteResponse, ...]
    problems: tuple[type[errors.ConvoError], ...] = ()
    text: str = ""
    method: str = "get"
    parameters: tuple[Parameter, ...] = ()
    takes_conversation: bool = False
    takes_batch: bool = False
    takes: RouteBody | None = None
    scope: Scope | None = None
    needs_database: bool = False
    on_operations: bool = False
    direct: bool = False
    of_all: bool = False
    signs_in: bool = False

    @property
    def query_names(self) -> tuple[str, ...]:
        """The names of the query parameters that it takes; every other one is refused."""
        return tuple(one.name for one in self.parameters if one.where == "query")

    @property
    def rule(self) -> str:
        """The path as the framework writes it, which is also the route's label in metrics and logs."""
        return self.path.replace("{", "<").replace("}", ">")


_NOT_MODIFIED = RouteResponse(status=304, text="The client's copy is current.", media=(), headers=("ETag",))

_CONVERSATIONS = (
    Route(
        path="/v1/conversations/end",
        method="post",
        name="end_conversation",
        scope="write",
        needs_database=True,
        direct=True,
        tag="conversations",
        summary="Post a finished conversation",
        text=(
            "Answered after conversation, log and job are on disk. The same id with the same content always gets the "
            "same receipt, so a client without an answer sends the same request again. The same id with other content "
            "is a conflict. Unknown fields are ignored. With a key that is bound to bots, a conversation of another "
            "bot is 403."
        ),
        parameters=(TRACEPARENT,),
        takes_conversation=True,
        answers=(
            RouteResponse(
                status=202,
                text="It is stored, now or by an earlier request.",
                body=Receipt,
                headers=("Location", "Idempotent-Replayed"),
                sample=samples.RECEIPT,
            ),
        ),
        problems=(
            errors.BadRequest,
            errors.Conflict,
            errors.Erased,
            errors.TooLarge,
            errors.UnsupportedMedia,
            errors.Invalid,
            errors.Overloaded,
            errors.BadRow,
            errors.DiskFull,
        ),
    ),
    Route(
        path="/v1/conversations/batch",
        method="post",
        name="end_conversations",
        scope="write",
        needs_database=True,
        direct=True,
        tag="conversations",
        summary="Post many finished conversations",
        text=(
            "JSON Lines: each line is the body of one `POST /v1/conversations/end`, and is stored as if it came alone."
            " At most 1,000 lines and `web.raw_bytes_max` bytes; blank lines are skipped. The answer has a line for"
            " each, in order: a receipt, or a problem with its `status`. A line that is refused harms no other. Send"
            " lines again that are answered with 429 or 503, and those that have no answer, because they were not read."
        ),
        parameters=(TRACEPARENT,),
        takes_batch=True,
        answers=(
            RouteResponse(
                status=200,
                text="What became of each line, in the type of the request.",
                body=(batch_views.BatchReceipt, batch_views.BatchProblem),
                media=batch_views.MEDIA_OF_BATCHES,
                sample=samples.BATCH_RECEIPT,
            ),
        ),
        problems=(errors.BadRequest, errors.TooLarge, errors.UnsupportedMedia, errors.Overloaded),
    ),
    Route(
        path="/v1/conversations",
        name="list_conversations",
        scope="read",
        needs_database=True,
        direct=True,
        tag="conversations",
        summary="List conversations, newest first",
        parameters=(
            filter_by("user_id", WITHOUT_NUL),
            filter_by("bot_id", WITHOUT_NUL),
            STATE,
            LIMIT,
            CURSOR,
            AS_OF,
            USER_PREFIX,
        ),
        answers=(RouteResponse(status=200, text="One page.", body=views.ListView, sample=samples.LIST),),
        problems=(errors.Invalid, errors.Overloaded),
    ),
    Route(
        path="/v1/conversations/{conversation_id}",
        name="read_conversation",
        scope="read",
        needs_database=True,
        tag="conversations",
        summary="Read what was found so far, or wait for the final state",
        parameters=(CONVERSATION_ID, WAIT, REVISION, COST, IF_NONE_MATCH),
        answers=(
            RouteResponse(
                status=200,
                text="The present state; `score.final` says whether it can still change.",
                body=views.ConversationView,
                headers=("ETag",),
                sample=samples.CONVERSATION,
            ),
            _NOT_MODIFIED,
        ),
        problems=(errors.NotFound, errors.Expired, errors.Erased, errors.Invalid, errors.Overloaded),
    ),
    Route(
        path="/v1/conversations/{conversation_id}/log",
        name="read_log",
        scope="read",
        needs_database=True,
        tag="conversations",
        summary="Read the turns, with their times, or the log as it was sent",
        parameters=(CONVERSATION_ID, LOG_FORM, TURNS_LIMIT, CURSOR, REVISION, IF_NONE_MATCH),
        answers=(
            RouteResponse(
                status=200,
                text="One page of turns; with `as=sent` the bytes of the log as they were sent, but for recordings.",
                body=views.LogView | list[Any],
                headers=("ETag",),
                sample=samples.LOG,
            ),
            _NOT_MODIFIED,
        ),
        problems=(
            *(errors.NotFound, errors.Expired, errors.Erased, errors.Invalid),
            *(errors.Overloaded, errors.LogsUnavailable),
        ),
    ),
    Route(
        path="/v1/conversations/{conversation_id}/explain",
        name="explain_conversation",
        scope="read",
        needs_database=True,
        tag="conversations",
        summary="Read why it is in its state",
        text="The cause of its state in one sentence, its position in the queue, "
        "and its newest runs (at most 100) with their waits.",
        parameters=(CONVERSATION_ID,),
        answers=(RouteResponse(status=200, text="The explanation.", body=views.ExplainView, sample=samples.EXPLAINED),),
        problems=(errors.NotFound, errors.Expired, errors.Erased, errors.Overloaded),
    ),
    Route(
        path="/v1/conversations/{conversation_id}/retry",
        method="post",
        name="retry_conversation",
        scope="write",
        needs_database=True,
        tag="conversations",
        summary="Make a dead letter ready again",
        text="The parts that are done are kept; only the missing ones are analysed again.",
        parameters=(CONVERSATION_ID,),
        answers=(RouteResponse(status=202, text="It is ready again.", body=views.RetryView, sample=samples.RETRY),),
        problems=(errors.NotFound, errors.Expired, errors.Erased, errors.NotDead),
    ),
    Route(
        path="/v1/conversations/{conversation_id}/reanalyse",
        method="post",
        name="reanalyse_conversation",
        scope="write",
        needs_database=True,
        tag="conversations",
        summary="Analyse a conversation again",
        text="One part or all, as they are declared now, at once and in this process. What is found takes the place of "
        "the present result; score and relationship move by the difference. Where it cannot be found, the present "
        "result stays. `updated_at` of the part says when it was found.",
        parameters=(CONVERSATION_ID,),
        takes=RouteBody(type=views.ReanalysisOrder, sample=views.ReanalysisOrder(part="emotion")),
        answers=(
            RouteResponse(
                status=202,
                text="These parts are being found again.",
                body=views.ReanalysisView,
                headers=("Location",),
                sample=samples.REANALYSIS,
            ),
        ),
        problems=(
            *(errors.BadRequest, errors.UnsupportedMedia, errors.TooLarge, errors.Invalid),
            *(errors.NotFound, errors.Expired, errors.Erased, errors.NotAnalysed, errors.RerunOpen, errors.Overloaded),
        ),
    ),
    Route(
        path="/v1/conversations/{conversation_id}/acknowledge",
        method="post",
        name="acknowledge_conversation",
        scope="write",
        needs_database=True,
        tag="conversations",
        summary="Mark a dead letter as reviewed",
        text="It stays dead; the alert on unreviewed dead letters no longer counts it. A retry also marks it.",
        parameters=(CONVERSATION_ID,),
        answers=(
            RouteResponse(status=200, text="It is marked.", body=views.AcknowledgedView, sample=samples.ACKNOWLEDGED),
        ),
        problems=(errors.NotFound, errors.Expired, errors.Erased, errors.NotDead),
    ),
)

_WHICH_DEAD = (REASON, SINCE, filter_by("user_id", WITHOUT_NUL), filter_by("bot_id", WITHOUT_NUL))

_DEAD_LETTERS = (
    Route(
        path="/v1/dead-letters",
        name="read_dead_reasons",
        scope="read",
        needs_database=True,
        tag="conversations",
        summary="Count dead letters by their reason",
        text="The newest 20,000 dead letters are looked at, and at most 100 reasons are shown. `GET /v1/conversations` "
        "with `state=dead` lists the conversations.",
        parameters=(*_WHICH_DEAD, AS_OF),
        answers=(
            RouteResponse(status=200, text="The reasons.", body=views.DeadReasonsView, sample=samples.DEAD_REASONS),
        ),
        problems=(errors.Invalid,),
    ),
    Route(
        path="/v1/dead-letters/retry",
        method="post",
        name="retry_dead_letters",
        scope="write",
        needs_database=True,
        tag="conversations",
        summary="Make many dead letters ready again, a batch a request",
        text="In the order of their receipt. Send `next_cursor` for the next batch until it is null: then each dead "
        "letter was looked at once. A batch may hold none that is meant and still have a next one.",
        parameters=(*_WHICH_DEAD, DRY_RUN, LIMIT, CURSOR),
        answers=(
            RouteResponse(status=202, text="So many are ready again.", body=views.RetriedView, sample=samples.RETRIED),
        ),
        problems=(errors.Invalid,),
    ),
)

_USERS = (
    Route(
        path="/v1/users/{user_id}/relationship",
        name="read_relationship",
        scope="read",
        needs_database=True,
        tag="users",
        summary="Read a user's score, in all and by bot",
        parameters=(USER_ID, LIMIT, CURSOR),
        answers=(
            RouteResponse(
                status=200,
                text="The sum of the final scores; score 0 where no conversation of this user has a result yet.",
                body=views.RelationshipView,
                sample=samples.RELATIONSHIP,
            ),
        ),
        problems=(errors.NotFound, errors.Invalid, errors.Overloaded),
    ),
    Route(
        path="/v1/users/{user_id}/relationship/history",
        name="read_relationship_history",
        scope="read",
        needs_database=True,
        tag="users",
        summary="Read how a user's score came about, newest first",
        text="A point for each conversation that was scored, in the order of their receipt, with the sum after it: of "
        "all bots, or of one (`bot_id`). A page may be short, or hold nothing, and still have a next one.",
        parameters=(USER_ID, filter_by("bot_id", WITHOUT_NUL), LIMIT, CURSOR),
        answers=(
            RouteResponse(status=200, text="One page.", body=views.RelationshipHistoryView, sample=samples.HISTORY),
        ),
        problems=(errors.NotFound, errors.Invalid, errors.Overloaded),
    ),
    Route(
        path="/v1/users/{user_id}/memories",
        name="list_memories",
        scope="read",
        needs_database=True,
        tag="users",
        summary="List what is remembered about a user, newest first",
        parameters=(USER_ID, LIMIT, CURSOR),
        answers=(RouteResponse(status=200, text="One page.", body=views.MemoriesView, sample=samples.MEMORIES),),
        problems=(errors.NotFound, errors.Invalid, errors.Overloaded),
    ),
)

_ERASING = (
    Route(
        path="/v1/conversations/{conversation_id}",
        method="delete",
        name="erase_conversation",
        scope="erase",
        needs_database=True,
        tag="erasing",
        summary="Erase a conversation",
        text="With its log, its parts, and the memories that it told first or last; its score is taken off the "
        "relationship. Work under way on it stores nothing any more. The id is 410 `erased` from then on, also when "
        "the conversation is posted again. A repeated request gets the same receipt.",
        parameters=(CONVERSATION_ID, COUNT_ONLY),
        answers=(
            RouteResponse(
                status=200, text="It is erased, or counted.", body=erasure_views.ErasureView, sample=samples.ERASURE
            ),
        ),
        problems=(errors.NotFound, errors.Invalid),
    ),
    Route(
        path="/v1/users/{user_id}",
        method="delete",
        name="erase_user",
        scope="erase",
        needs_database=True,
        tag="erasing",
        summary="Erase a user",
        text="All conversations that were received or have ended until now, the memories and the relationships. "
        "Conversations of this user that ended before are 410 `erased` when they are posted later; what ends "
        "afterwards is accepted.",
        parameters=(USER_ID, COUNT_ONLY),
        answers=(
            RouteResponse(
                status=200, text="All is erased, or counted.", body=erasure_views.ErasureView, sample=samples.ERASURE
            ),
            RouteResponse(
                status=202,
                text="Not all of it yet, for want of time: send the same request again until it is 200.",
                body=erasure_views.ErasureView,
                sample=samples.ERASURE_BEGUN,
            ),
        ),
        problems=(errors.NotFound, errors.Invalid),
    ),
)

_AUDIT_LOG = (
    Route(
        path="/v1/audit-log",
        name="list_audit_log",
        scope="admin",
        needs_database=True,
        tag="audit log",
        summary="Read who did what, newest first",
        text="Reads of logs, retries, reviews, erasures, keys, restores, starts and reloads. A read of a log stands "
        "there about a second later. Ids of conversations and users stand there as HMACs only; the filters take the "
        "ids themselves. A page may be short, or hold nothing, and still have a next one.",
        parameters=(
            AUDIT_ACTION,
            filter_by("key_id", WITHOUT_NUL),
            OF_CONVERSATION,
            OF_USER,
            AUDIT_SINCE,
            LIMIT,
            CURSOR,
        ),
        answers=(
            RouteResponse(status=200, text="One page.", body=service_views.AuditLogView, sample=samples.AUDIT_LOG),
        ),
        problems=(errors.Invalid, errors.Overloaded),
    ),
)

_BODY_PROBLEMS = (errors.BadRequest, errors.UnsupportedMedia, errors.TooLarge, errors.Invalid)
_SESSIONS = (
    Route(
        path="/v1/session",
        method="post",
        name="begin_session",
        needs_database=True,
        signs_in=True,
        tag="sessions",
        summary="Sign a browser in with a key",
        text="The cookie `convo_session_…` (HttpOnly, SameSite=Strict) then stands for the key wherever one is needed. "
        "Beside it, every request but GET and HEAD needs the header `X-CSRF-Token` with `csrf` of the answer. A "
        "session ends after `auth.session_seconds`, with its key, by DELETE, and by `convo session revoke`. Where "
        "`auth.keys` is off, or `auth.session_seconds` is 0, there are none.",
        takes=RouteBody(type=session_views.NewSession, sample=samples.NEW_SESSION),
        answers=(
            RouteResponse(
                status=201,
                text="The session, and its cookie.",
                body=session_views.SessionView,
                headers=("Set-Cookie",),
                sample=samples.SESSION,
            ),
        ),
        problems=(*_BODY_PROBLEMS, errors.NotFound),
    ),
    Route(
        path="/v1/session",
        name="read_session",
        needs_database=True,
        signs_in=True,
        tag="sessions",
        summary="See who is signed in in this browser",
        text="Without a session 401; where the server asks for no keys, `keys` is false.",
        answers=(
            RouteResponse(
                status=200,
                text="The session, or that none is needed.",
                body=(session_views.SessionView, session_views.NoKeysView),
                sample=samples.SESSION,
            ),
        ),
        problems=(errors.NotFound,),
    ),
    Route(
        path="/v1/session",
        method="delete",
        name="end_session",
        needs_database=True,
        signs_in=True,
        tag="sessions",
        summary="Sign the browser out",
        answers=(
            RouteResponse(
                status=200,
                text="The session is over.",
                body=session_views.SessionEndedView,
                headers=("Set-Cookie",),
                sample=session_views.SessionEndedView(),
            ),
        ),
        problems=(errors.NotFound,),
    ),
)

_FIGURES = (
    Route(
        path="/v1/figures",
        name="read_figures",
        scope="read",
        needs_database=True,
        # Many look at it, again and again: past the framework each of them costs a tenth.
        direct=True,
        tag="service",
        summary="See how the installation stands",
        text="Samples are taken every `page.sample_seconds` for as long as somebody asks, and kept for ten minutes. "
        "All who ask get the same ones. Rates, waits and breakers are those of the process that answers. A key that "
        "does not reach the whole installation, as `GET /v1/alerts` requires it, gets none of the figures (`whole`: "
        "false). Where `page.sample_seconds` is 0, there are none.",
        parameters=(SINCE_SEQ,),
        answers=(
            RouteResponse(status=200, text="The figures.", body=figure_views.FiguresView, sample=samples.FIGURES),
        ),
        problems=(errors.NotFound, errors.Invalid, errors.DeadlineExceeded),
    ),
)

_LIVE = (
    Route(
        path="/v1/live",
        name="stream_live",
        scope="read",
        needs_database=True,
        # As a stream of events.
        direct=True,
        tag="service",
        summary="Follow how the installation stands",
        text="Server-Sent Events for a page that somebody looks at; what they hold is made once for all who look. "
        "`live` comes first and says which others can follow. `figures` is `GET /v1/figures` with the new sample, at "
        "first with those of ten minutes. `changes` is how many events there were since the one before: `sequence` is "
        "the number of the last one, `types` has their counts, of those that the key reaches. It comes at most every "
        "2 s, every 5 s where there are many. A list that is read then may be shared with others (`as_of`). The stream "
        "ends with its key, within `auth.refresh_seconds`.",
        answers=(RouteResponse(status=200, text="Frames without an end.", body=str, media=("text/event-stream",)),),
        problems=(errors.NotFound, errors.Overloaded),
    ),
)

_ALERTS = (
    Route(
        path="/v1/alerts",
        name="list_alerts",
        scope="read",
        of_all=True,
        tag="alerts",
        summary="Read the active and the recent alerts",
        text="Of this process only. The process that leads also reports what all processes share.",
        answers=(RouteResponse(status=200, text="Its alerts.", body=service_views.AlertsView, sample=samples.ALERTS),),
    ),
    Route(
        path="/v1/alerts/test",
        method="post",
        name="test_alerts",
        scope="admin",
        of_all=True,
        tag="alerts",
        summary="Send a test alert to every sink",
        answers=(
            RouteResponse(
                status=200,
                text="The result for each sink.",
                body=service_views.AlertsTestView,
                sample=samples.ALERTS_TEST,
            ),
        ),
        problems=(errors.DeadlineExceeded,),
    ),
    Route(
        path="/v1/alerts/acknowledge",
        method="post",
        name="acknowledge_alert",
        scope="admin",
        of_all=True,
        tag="alerts",
        summary="Note that somebody has taken up an alert",
        text="It holds for all processes, until the alert is resolved. Nobody else of the rotation is notified of it "
        "then, and PagerDuty shows it as acknowledged. The first acknowledgement stays.",
        takes=RouteBody(type=service_views.AlertToAcknowledge, sample=samples.ALERT_TO_ACKNOWLEDGE),
        answers=(
            RouteResponse(
                status=200,
                text="Who has acknowledged what, and when.",
                body=service_views.AcknowledgedAlertsView,
                sample=samples.ALERTS_ACKNOWLEDGED,
            ),
        ),
        problems=(*_BODY_PROBLEMS, errors.NotFound, errors.Unavailable),
    ),
)

_CAPACITY = (
    Route(
        path="/v1/capacity",
        name="show_capacity",
        scope="read",
        of_all=True,
        needs_database=True,
        tag="capacity",
        summary="Read what this installation can do",
        text="From what the process that answers has measured of its own work in `capacity.window_seconds`: how many "
        "conversations a second each resource allows, which one is the bottleneck, and what a rate needs. Each figure "
        "has its formula. `measured.enough` is false while there is too little data.",
        parameters=(MANY_CONVERSATIONS, TARGET_RATE),
        answers=(RouteResponse(status=200, text="The report.", body=CapacityReport, sample=samples.CAPACITY),),
        problems=(errors.NotFound, errors.Invalid, errors.Overloaded, errors.DeadlineExceeded),
    ),
)

_WEBHOOKS = (
    Route(
        path="/v1/webhooks",
        method="post",
        name="make_webhook",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Register an endpoint for events",
        text="It is pinged at once, and gets what happens from now on as soon as it has answered.",
        takes=RouteBody(type=webhook_views.NewWebhook, sample=samples.NEW_WEBHOOK),
        answers=(
            RouteResponse(
                status=201,
                text="The endpoint, with its secret, which is shown here only.",
                body=webhook_views.NewWebhookView,
                headers=("Location",),
                sample=samples.NEW_WEBHOOK_MADE,
            ),
        ),
        problems=(*_BODY_PROBLEMS, errors.TooMany),
    ),
    Route(
        path="/v1/webhooks",
        name="list_webhooks",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="List the endpoints",
        answers=(
            RouteResponse(status=200, text="All of them.", body=webhook_views.WebhooksView, sample=samples.WEBHOOKS),
        ),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}",
        name="read_webhook",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Read one endpoint",
        parameters=(WEBHOOK_ID,),
        answers=(
            RouteResponse(status=200, text="The endpoint.", body=webhook_views.WebhookView, sample=samples.WEBHOOK),
        ),
        problems=(errors.NotFound,),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}",
        method="patch",
        name="change_webhook",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Change an endpoint",
        text="With another address, or switched on again, it has to answer a ping first.",
        parameters=(WEBHOOK_ID,),
        takes=RouteBody(type=webhook_views.SentChange, sample=samples.WEBHOOK_CHANGE),
        answers=(
            RouteResponse(status=200, text="The endpoint.", body=webhook_views.WebhookView, sample=samples.WEBHOOK),
        ),
        problems=(*_BODY_PROBLEMS, errors.NotFound),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}",
        method="delete",
        name="delete_webhook",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Remove an endpoint",
        parameters=(WEBHOOK_ID,),
        answers=(
            RouteResponse(
                status=200,
                text="It is no more.",
                body=webhook_views.WebhookDeletedView,
                sample=samples.WEBHOOK_DELETED,
            ),
        ),
        problems=(errors.NotFound,),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}/secret",
        method="post",
        name="rotate_webhook_secret",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Give an endpoint another secret",
        text="For a day events are signed with the secret before it, too.",
        parameters=(WEBHOOK_ID,),
        takes=RouteBody(type=webhook_views.NewSecret, sample=webhook_views.NewSecret()),
        answers=(
            RouteResponse(
                status=200,
                text="The endpoint, with its new secret, which is shown here only.",
                body=webhook_views.NewWebhookView,
                sample=samples.NEW_WEBHOOK_MADE,
            ),
        ),
        problems=(*_BODY_PROBLEMS, errors.NotFound),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}/ping",
        method="post",
        name="ping_webhook",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Ping an endpoint now",
        text="One that was new is active if it answers with 2xx.",
        parameters=(WEBHOOK_ID,),
        answers=(
            RouteResponse(
                status=200,
                text="What came of it.",
                body=webhook_views.WebhookPingView,
                sample=samples.WEBHOOK_PING,
            ),
        ),
        problems=(errors.NotFound,),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}/attempts",
        name="list_webhook_attempts",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="List the attempts to deliver, newest first",
        parameters=(WEBHOOK_ID, LIMIT, CURSOR),
        answers=(
            RouteResponse(status=200, text="One page.", body=webhook_views.AttemptsView, sample=samples.ATTEMPTS),
        ),
        problems=(errors.NotFound, errors.Invalid),
    ),
    Route(
        path="/v1/webhooks/{webhook_id}/replay",
        method="post",
        name="replay_webhook",
        scope="webhooks",
        needs_database=True,
        tag="webhooks",
        summary="Send events to an endpoint again",
        text="One event by its id, or all that it has got, by time and type. They keep their ids.",
        parameters=(WEBHOOK_ID, EVENT, SINCE, UNTIL, EVENT_TYPE, CURSOR),
        answers=(
            RouteResponse(
                status=202, text="So many are sent again.", body=webhook_views.ReplayView, sample=samples.REPLAY
            ),
        ),
        problems=(errors.NotFound, errors.Invalid),
    ),
)

_EVENTS = (
    Route(
        path="/v1/events",
        name="stream_events",
        scope="read",
        needs_database=True,
        # Past the framework, two hundred of them cost nothing while nothing happens.
        direct=True,
        tag="events",
        summary="Get events as they happen",
        text="Server-Sent Events: `id` is the event's `sequence`, `event` its type, `data` the CloudEvent. A comment "
        "comes every `events.heartbeat_seconds`. A client that comes back with `Last-Event-ID` misses nothing that is "
        "still kept. Where no types of events are chosen, there is no stream. With `types=alert` the alerts of this "
        "process come, too, without an `id`: `data` is what the webhook of alerts gets. That takes a key of the whole "
        "installation.",
        parameters=(
            EVENT_TYPES_WANTED,
            filter_by("user_id", WITHOUT_NUL),
            filter_by("bot_id", WITHOUT_NUL),
            LAST_EVENT_ID,
        ),
        answers=(RouteResponse(status=200, text="Events without an end.", body=str, media=("text/event-stream",)),),
        problems=(errors.NotFound, errors.Invalid, errors.Overloaded),
    ),
)

_SERVICE = (
    Route(
        path="/livez",
        name="live",
        on_operations=True,
        # Without a key anybody may ask: past the framework, such a flood costs a tenth.
        direct=True,
        tag="service",
        summary="Ask whether the process runs",
        answers=(
            RouteResponse(status=200, text="It runs.", body=service_views.LiveView, sample=service_views.LiveView()),
        ),
    ),
    Route(
        path="/readyz",
        name="ready",
        on_operations=True,
        direct=True,
        tag="service",
        summary="Ask whether requests can be served",
        text=(
            "It asks nobody: it shows the last ping of each dependency, and how long ago that ended. The database is "
            "pinged every `observe.ping_seconds`, the others every `observe.remote_ping_seconds`."
        ),
        answers=(
            RouteResponse(status=200, text="They can be served.", body=service_views.ReadyView, sample=samples.READY),
            RouteResponse(
                status=503,
                text="Not now: the database is away or is being migrated, or the process is stopping.",
                body=service_views.ReadyView,
                sample=samples.NOT_READY,
            ),
        ),
    ),
    Route(
        path="/metrics",
        name="metrics",
        scope="read",
        of_all=True,
        on_operations=True,
        direct=True,
        tag="service",
        summary="Read the metrics of this process",
        answers=(
            RouteResponse(
                status=200,
                text="Prometheus' text format, or OpenMetrics with exemplars, as `Accept` asks.",
                body=str,
                media=("text/plain", "application/openmetrics-text"),
            ),
        ),
    ),
    Route(
        path="/debug/tasks",
        name="tasks",
        scope="admin",
        of_all=True,
        on_operations=True,
        direct=True,
        tag="service",
        summary="List every task of this process, and where it waits",
        text=(
            "Where `auth.keys` is off, only this machine's own addresses (127.0.0.0/8, ::1) may read it. "
            "It shows code and the names of waits, never the text of a conversation."
        ),
        answers=(
            RouteResponse(
                status=200,
                text="The tree of nurseries and tasks.",
                body=service_views.TasksView,
                sample=samples.TASKS,
            ),
        ),
        problems=(errors.Forbidden,),
    ),
    Route(
        path="/",
        name="index",
        tag="service",
        summary="Find the way",
        text="A program gets links. A browser, which accepts `text/html`, gets the page for operators, or with "
        "`page.served` off a small one with the same links.",
        answers=(RouteResponse(status=200, text="The links.", body=service_views.IndexView, sample=samples.INDEX),),
    ),
    Route(
        path="/live",
        name="wall",
        tag="service",
        summary="Look at the wall view of the page",
        text="A few big figures, for a screen that nobody touches. Where `auth.keys` is on, it asks for a key once.",
        answers=(RouteResponse(status=200, text="The page.", body=str, media=("text/html",)),),
        problems=(errors.NotFound, errors.DeadlineExceeded),
    ),
    Route(
        path="/assets/{version}/{asset}",
        name="asset",
        tag="service",
        summary="Load a file of the page",
        parameters=(ASSETS_VERSION, ASSET, IF_NONE_MATCH),
        answers=(
            RouteResponse(
                status=200,
                text="The file.",
                body=str,
                media=("text/css", "text/javascript", "image/svg+xml"),
                headers=("ETag",),
            ),
            _NOT_MODIFIED,
        ),
        problems=(errors.NotFound, errors.DeadlineExceeded),
    ),
    Route(
        path="/openapi.json",
        name="openapi",
        tag="service",
        summary="Read this description as JSON",
        answers=(RouteResponse(status=200, text="OpenAPI 3.1.", body=dict[str, Any]),),
    ),
    Route(
        path="/docs",
        name="docs",
        tag="service",
        summary="Read this description as a page",
        answers=(RouteResponse(status=200, text="A page that loads nothing else.", body=str, media=("text/html",)),),
    ),
    Route(
        path="/docs/{topic}",
        name="handbook",
        tag="service",
        summary="Read one page of the handbook",
        parameters=(TOPIC,),
        answers=(RouteResponse(status=200, text="A page that loads nothing else.", body=str, media=("text/html",)),),
        problems=(errors.NotFound, errors.DeadlineExceeded),
    ),
)

ROUTES = (
    *_CONVERSATIONS,
    *_DEAD_LETTERS,
    *_USERS,
    *_ERASING,
    *_WEBHOOKS,
    *_EVENTS,
    *_AUDIT_LOG,
    *_SESSIONS,
    *_FIGURES,
    *_LIVE,
    *_ALERTS,
    *_CAPACITY,
    *_SERVICE,
)
