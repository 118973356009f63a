"""Every route as a row: what it takes, what it answers, what can go wrong; it serves none of them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from convo import errors
from convo.conversation.model import Identifier, JobState, Receipt
from convo.store.keys import Scope
from convo.web import answers, samples


class Parameter(Struct, frozen=True, kw_only=True):
    """One thing a client sends in the path, the query or a header."""

    name: str
    where: str
    text: str
    type: Any
    sample: Any = None


class Answer(Struct, frozen=True, kw_only=True):
    """One good answer; ``body`` is its Struct, or ``None`` where the content is no JSON of ours."""

    status: int
    text: str
    body: Any = None
    media: str | None = "application/json"
    headers: tuple[str, ...] = ()
    sample: Any = None


class Operation(Struct, frozen=True, kw_only=True):
    """One route and method."""

    path: str
    name: str
    tag: str
    summary: str
    answers: tuple[Answer, ...]
    problems: tuple[type[errors.ConvoError], ...] = ()
    text: str = ""
    method: str = "get"
    parameters: tuple[Parameter, ...] = ()
    takes_conversation: bool = False
    scope: Scope | None = None


_NOT_MODIFIED = Answer(status=304, text="Still what the client has.", media=None, headers=("ETag",))
_DATABASE = (
    errors.Unauthorized,
    errors.Forbidden,
    errors.TooManyRequests,
    errors.Unavailable,
    errors.DatabaseUnavailable,
    errors.DeadlineExceeded,
    errors.Draining,
)
REQUEST_TIMEOUT = Parameter(
    name="Request-Timeout",
    where="header",
    text="Seconds that the whole request may take, from the first byte of its head; it only tightens ours.",
    type=Annotated[float, Meta(ge=0, le=999_999_999)],
    sample=5,
)
"""Every route takes it."""

_WITHOUT_NUL = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
_CONVERSATION = Parameter(
    name="conversation_id",
    where="path",
    text="As it was posted, percent-encoded.",
    type=Identifier,
    sample=samples.RECEIPT.conversation_id,
)
_USER = Parameter(
    name="user_id",
    where="path",
    text="As it was posted, percent-encoded.",
    type=Identifier,
    sample=samples.RELATIONSHIP.user_id,
)
_IF_NONE_MATCH = Parameter(
    name="If-None-Match", where="header", text="The `ETag` of what the client has: the same is answered 304.", type=str
)
_WAIT = Parameter(
    name="wait",
    where="query",
    text="Seconds to wait for the final state, cut to the request's budget less 0.5 s.",
    type=Annotated[float, Meta(ge=0)],
    sample=5,
)
_LIMIT = Parameter(
    name="limit",
    where="query",
    text="Rows of a page, cut to what the server allows.",
    type=Annotated[int, Meta(ge=1)],
    sample=20,
)
_CURSOR = Parameter(name="cursor", where="query", text="The `next_cursor` of the page before.", type=str)


def _filter(name: str, kind: Any) -> Parameter:
    return Parameter(name=name, where="query", text=f"Only those of this `{name}`.", type=kind)


CONVERSATIONS = (
    Operation(
        path="/v1/conversations/end",
        method="post",
        name="end_conversation",
        scope="write",
        tag="conversations",
        summary="Hand in a finished conversation",
        text=(
            "Answered once conversation, log and job are on disk. The same id with the same content gets the same "
            "receipt, for ever, so a client that saw no answer sends the same again; the same id with other content "
            "is a conflict. Unknown fields are ignored."
        ),
        takes_conversation=True,
        answers=(
            Answer(
                status=202,
                text="It is safe, now or since an earlier post.",
                body=Receipt,
                headers=("Location", "Idempotent-Replayed"),
                sample=samples.RECEIPT,
            ),
        ),
        problems=(
            errors.BadRequest,
            errors.Conflict,
            errors.TooLarge,
            errors.UnsupportedMedia,
            errors.Invalid,
            errors.Overloaded,
            errors.BadRow,
            errors.DiskFull,
            *_DATABASE,
        ),
    ),
    Operation(
        path="/v1/conversations",
        name="list_conversations",
        scope="read",
        tag="conversations",
        summary="List conversations, newest first",
        parameters=(
            _filter("user_id", _WITHOUT_NUL),
            _filter("bot_id", _WITHOUT_NUL),
            _filter("state", JobState),
            _LIMIT,
            _CURSOR,
        ),
        answers=(Answer(status=200, text="One page.", body=answers.ListView, sample=samples.LIST),),
        problems=(errors.Invalid, *_DATABASE),
    ),
    Operation(
        path="/v1/conversations/{conversation_id}",
        name="read_conversation",
        scope="read",
        tag="conversations",
        summary="Read what is found so far, or wait until all of it is",
        parameters=(_CONVERSATION, _WAIT, _IF_NONE_MATCH),
        answers=(
            Answer(
                status=200,
                text="The present state; `score.final` says whether it can still change.",
                body=answers.ConversationView,
                headers=("ETag",),
                sample=samples.CONVERSATION,
            ),
            _NOT_MODIFIED,
        ),
        problems=(errors.NotFound, errors.Invalid, *_DATABASE),
    ),
    Operation(
        path="/v1/conversations/{conversation_id}/log",
        name="read_log",
        scope="read",
        tag="conversations",
        summary="Read the turns, with their times",
        parameters=(_CONVERSATION, _IF_NONE_MATCH),
        answers=(
            Answer(status=200, text="All turns.", body=answers.LogView, headers=("ETag",), sample=samples.LOG),
            _NOT_MODIFIED,
        ),
        problems=(errors.NotFound, *_DATABASE),
    ),
    Operation(
        path="/v1/conversations/{conversation_id}/explain",
        name="explain_conversation",
        scope="read",
        tag="conversations",
        summary="Read why it stands as it does",
        text="The cause of its state in one sentence, its place in the line, and every run with what it waited for.",
        parameters=(_CONVERSATION,),
        answers=(Answer(status=200, text="How it stands.", body=answers.ExplainView, sample=samples.EXPLAINED),),
        problems=(errors.NotFound, *_DATABASE),
    ),
    Operation(
        path="/v1/conversations/{conversation_id}/retry",
        method="post",
        name="retry_conversation",
        scope="write",
        tag="conversations",
        summary="Revive a dead letter",
        text="What its analysis found before is kept; only what is missing is done again.",
        parameters=(_CONVERSATION,),
        answers=(Answer(status=202, text="It is ready again.", body=answers.RetryView, sample=samples.RETRY),),
        problems=(errors.NotFound, errors.NotDead, *_DATABASE),
    ),
)

ACKNOWLEDGE = Operation(
    path="/v1/conversations/{conversation_id}/acknowledge",
    method="post",
    name="acknowledge_conversation",
    scope="write",
    tag="conversations",
    summary="Say that a dead letter is reviewed",
    text="It stays dead; the alert on unreviewed dead letters no longer counts it. A retry reviews it, too.",
    parameters=(_CONVERSATION,),
    answers=(Answer(status=200, text="It is noted.", body=answers.AcknowledgedView, sample=samples.ACKNOWLEDGED),),
    problems=(errors.NotFound, errors.NotDead, *_DATABASE),
)

ALERTS = (
    Operation(
        path="/v1/alerts",
        name="list_alerts",
        scope="read",
        tag="alerts",
        summary="Read what is wrong now, and what was lately",
        text="Of this process alone; what all processes share is told by the one that leads.",
        answers=(Answer(status=200, text="Its alerts.", body=answers.AlertsView, sample=samples.ALERTS),),
    ),
    Operation(
        path="/v1/alerts/test",
        method="post",
        name="test_alerts",
        scope="admin",
        tag="alerts",
        summary="Send a test alert through every sink",
        answers=(
            Answer(status=200, text="How each took it.", body=answers.AlertsTestView, sample=samples.ALERTS_TEST),
        ),
        problems=(errors.DeadlineExceeded,),
    ),
)

USERS = (
    Operation(
        path="/v1/users/{user_id}/relationship",
        name="read_relationship",
        scope="read",
        tag="users",
        summary="Read how far a user has come, in all and by bot",
        parameters=(_USER,),
        answers=(
            Answer(
                status=200,
                text="The sum of the final scores; a stranger's, where there is none yet.",
                body=answers.RelationshipView,
                sample=samples.RELATIONSHIP,
            ),
        ),
        problems=(errors.NotFound, *_DATABASE),
    ),
    Operation(
        path="/v1/users/{user_id}/memories",
        name="list_memories",
        scope="read",
        tag="users",
        summary="List what is remembered about a user, newest first",
        parameters=(_USER, _LIMIT, _CURSOR),
        answers=(Answer(status=200, text="One page.", body=answers.MemoriesView, sample=samples.MEMORIES),),
        problems=(errors.NotFound, errors.Invalid, *_DATABASE),
    ),
)

SERVICE = (
    Operation(
        path="/livez",
        name="live",
        tag="service",
        summary="Ask whether the process runs",
        answers=(Answer(status=200, text="It does.", body=answers.LiveView, sample=answers.LiveView()),),
    ),
    Operation(
        path="/readyz",
        name="ready",
        tag="service",
        summary="Ask whether requests can be served",
        answers=(
            Answer(status=200, text="They can.", body=answers.ReadyView, sample=samples.READY),
            Answer(
                status=503,
                text="Not now: the database is away or being migrated, or the process is stopping.",
                body=answers.ReadyView,
                sample=samples.NOT_READY,
            ),
        ),
    ),
    Operation(
        path="/metrics",
        name="metrics",
        scope="read",
        tag="service",
        summary="Read the figures of this process",
        answers=(Answer(status=200, text="Prometheus' text form.", body=str, media="text/plain"),),
    ),
    Operation(
        path="/debug/tasks",
        name="tasks",
        scope="admin",
        tag="service",
        summary="See every task of this process, and where it waits",
        text=(
            "Answered to this machine's own addresses only (127.0.0.0/8, ::1); keys for administrators come later. "
            "It shows code and names of waits, nothing that anybody said."
        ),
        answers=(
            Answer(status=200, text="The tree of nurseries and tasks.", body=answers.TasksView, sample=samples.TASKS),
        ),
        problems=(errors.Forbidden,),
    ),
    Operation(
        path="/openapi.json",
        name="openapi",
        tag="service",
        summary="Read this description",
        answers=(Answer(status=200, text="OpenAPI 3.1.", body=dict[str, Any]),),
    ),
    Operation(
        path="/docs",
        name="docs",
        tag="service",
        summary="Read this description as a page",
        answers=(Answer(status=200, text="A page that needs nothing else.", body=str, media="text/html"),),
    ),
)

OPERATIONS = (*CONVERSATIONS, ACKNOWLEDGE, *USERS, *ALERTS, *SERVICE)
_SCOPES = {(operation.method.upper(), operation.path): operation.scope for operation in OPERATIONS}


def scope_of(method: str, rule: str) -> Scope | None:
    """Return what a key must be good for to use a route; ``rule`` is in the catalog's form or the framework's.

    Raises:
        KeyError: the route does not stand in the catalog.
    """
    return _SCOPES[method, rule.replace("<", "{").replace(">", "}")]
