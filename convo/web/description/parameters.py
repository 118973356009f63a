"""The parameters that routes take in the path, the query or a header, each described once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from convo.audit_actions import AuditAction
from convo.conversation.model import Identifier, StateFilter
from convo.event_types import EventType
from convo.web.description import samples


class Parameter(Struct, frozen=True, kw_only=True):
    """One thing that a client sends in the path, the query or a header."""

    name: str
    where: str
    text: str
    type: Any
    sample: Any = None


REQUEST_TIMEOUT = Parameter(
    name="Request-Timeout",
    where="header",
    text="Seconds that the whole request may take, from its first byte; it can only shorten the server's own limit.",
    type=Annotated[float, Meta(gt=0, le=999_999_999)],
    sample=5,
)
"""Every route takes it."""

SIGNATURE_HEADERS = (
    Parameter(name="webhook-id", where="header", text="The event's id.", type=str),
    Parameter(name="webhook-timestamp", where="header", text="When it was sent: seconds since 1970.", type=int),
    Parameter(
        name="webhook-signature",
        where="header",
        text="As standardwebhooks.com defines it, for each valid secret one, with a blank between them.",
        type=str,
    ),
)
"""Every event that is posted to an endpoint has them."""

WITHOUT_NUL = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
CONVERSATION_ID = Parameter(
    name="conversation_id",
    where="path",
    text="As it was posted, percent-encoded.",
    type=Identifier,
    sample=samples.RECEIPT.conversation_id,
)
USER_ID = Parameter(
    name="user_id",
    where="path",
    text="As it was posted, percent-encoded.",
    type=Identifier,
    sample=samples.RELATIONSHIP.user_id,
)
WEBHOOK_ID = Parameter(name="webhook_id", where="path", text="As it was made.", type=str, sample=samples.WEBHOOK.id)
EVENT = Parameter(
    name="event", where="query", text="The id of one event.", type=str, sample=samples.ATTEMPTS.attempts[0].event_id
)
EVENT_TYPE = Parameter(name="type", where="query", text="Only events of this type.", type=EventType)
EVENT_TYPES_WANTED = Parameter(
    name="types",
    where="query",
    text="Only events of these types, with commas between them; `alert`: the alerts of this process, too.",
    type=str,
)
LAST_EVENT_ID = Parameter(
    name="Last-Event-ID",
    where="header",
    text="The `id` of the last event that the client has; what happened since is sent first.",
    type=Annotated[int, Meta(ge=0, le=999_999_999_999_999_999)],
)
UNTIL = Parameter(name="until", where="query", text="Only what happened before.", type=datetime)
SINCE_SEQ = Parameter(
    name="since",
    where="query",
    text="The `seq` of the last sample that the client has: only later ones are sent.",
    type=Annotated[int, Meta(ge=0)],
)
AS_OF = Parameter(
    name="as_of",
    where="query",
    text="The `sequence` of a frame of `GET /v1/live`: the answer holds what happened up to that event, and may be "
    "shared with others who look at the same. Without it, the answer holds all that is committed.",
    type=Annotated[int, Meta(ge=1, lt=10**18)],
)
TOPIC = Parameter(
    name="topic", where="path", text="The name of the page; `/docs` lists them.", type=str, sample="operating"
)
TRACEPARENT = Parameter(
    name="traceparent",
    where="header",
    text="The caller's trace, which the analysis goes on with where traces are recorded (W3C trace context). One that"
    " is not valid counts as none.",
    type=str,
)
ASSETS_VERSION = Parameter(
    name="version", where="path", text="A digest of all files of the page; the page names it.", type=str
)
ASSET = Parameter(name="asset", where="path", text="The name of the file.", type=str, sample="style.css")
IF_NONE_MATCH = Parameter(
    name="If-None-Match",
    where="header",
    text="The `ETag` that the client has; if nothing has changed, the answer is 304.",
    type=str,
)
WAIT = Parameter(
    name="wait",
    where="query",
    text="Seconds to wait for the final state, at most the request's time limit less 0.5 s.",
    type=Annotated[float, Meta(ge=0)],
    sample=5,
)
REVISION = Parameter(
    name="revision",
    where="query",
    text="Which revision is read, from 1; without it the newest.",
    type=Annotated[int, Meta(ge=1)],
)
COST = Parameter(
    name="cost",
    where="query",
    text="`1` to see also what the conversation has cost at language models, by part.",
    type=Literal["0", "1"],
)
LOG_FORM = Parameter(
    name="as",
    where="query",
    text="`turns`, the default, or `sent` for the log's bytes as they were sent.",
    type=Literal["turns", "sent"],
)
LIMIT = Parameter(
    name="limit",
    where="query",
    text="Rows in the page: 50 without it, at most `web.list_rows_max` (200).",
    type=Annotated[int, Meta(ge=1)],
    sample=20,
)
TURNS_LIMIT = Parameter(
    name="limit",
    where="query",
    text="Turns in the page: without it, and at most, `web.log_turns_max` (1000). Not with `as=sent`.",
    type=Annotated[int, Meta(ge=1)],
    sample=100,
)
STATE = Parameter(
    name="state",
    where="query",
    text="Only those with this `state`; `parked` are those `ready` that wait for a dependency that is out.",
    type=StateFilter,
)
REASON = Parameter(
    name="reason",
    where="query",
    text="Only those whose last error holds this text, in upper or lower case; in it `#` stands for a number as in the "
    "`reason` of `GET /v1/dead-letters`.",
    type=WITHOUT_NUL,
    sample="answered 401",
)
SINCE = Parameter(
    name="since",
    where="query",
    text="Only those that became dead letters at this time (RFC 3339) or later.",
    type=datetime,
    sample="2026-03-02T08:00:00Z",
)
AUDIT_SINCE = Parameter(
    name="since",
    where="query",
    text="Only what was done at this time (RFC 3339) or later.",
    type=datetime,
    sample="2026-03-02T08:00:00Z",
)
AUDIT_ACTION = Parameter(name="action", where="query", text="Only this action.", type=AuditAction)
OF_CONVERSATION = Parameter(
    name="conversation_id",
    where="query",
    text="Only what was done to this conversation, also to one that is erased since.",
    type=WITHOUT_NUL,
)
OF_USER = Parameter(
    name="user_id", where="query", text="Only what was done to conversations of this user.", type=WITHOUT_NUL
)
DRY_RUN = Parameter(
    name="dry_run",
    where="query",
    text="`true`: they are counted, and stay dead.",
    type=Literal["true", "false"],
)
COUNT_ONLY = Parameter(
    name="dry_run",
    where="query",
    text="`true`: the rows are counted, and nothing is erased.",
    type=Literal["true", "false"],
)
MANY_CONVERSATIONS = Parameter(
    name="conversations",
    where="query",
    text="How long so many conversations take.",
    type=Annotated[int, Meta(ge=1, le=999_999_999_999)],
    sample=1_000_000,
)
TARGET_RATE = Parameter(
    name="target",
    where="query",
    text="What this rate needs, as `500/s`, `30000/min`, `2000000/h` or `5000000/day`.",
    type=Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?/(s|min|h|day)$")],
    sample="500/s",
)
CURSOR = Parameter(name="cursor", where="query", text="The `next_cursor` of the page before.", type=str)


USER_PREFIX = Parameter(
    name="user_prefix", where="query", text="Only those of users whose id begins so.", type=WITHOUT_NUL
)


def filter_by(name: str, kind: Any) -> Parameter:
    """Return the query parameter that filters a list by one field."""
    return Parameter(name=name, where="query", text=f"Only those with this `{name}`.", type=kind)
