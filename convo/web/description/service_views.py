"""The JSON bodies of answers about the service itself: alerts, health and tasks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from convo.alerts.formats import AlertView
from convo.audit_actions import AuditAction
from convo.conversation.identity import IdKind
from convo.runtime.tasks import TaskView
from convo.web.description.views import Cursor, WholeNumber


class AlertsView(Struct, frozen=True, kw_only=True):
    """The alerts of one process: active ones, oldest first, and recently ended ones, latest first."""

    active: tuple[AlertView, ...]
    recent: tuple[AlertView, ...]
    leads: Annotated[
        bool, Meta(description="Whether this process also reports on what all share: backlog, dead letters, ledger.")
    ]
    sinks: Annotated[tuple[str, ...], Meta(description="Where alerts are sent.")]


class SinkTestView(Struct, frozen=True, kw_only=True):
    """Whether one sink accepted the test alert, and why not."""

    sink: str
    ok: bool
    detail: str | None = None


class AlertsTestView(Struct, frozen=True, kw_only=True):
    """The result of a test alert, for every sink."""

    sinks: tuple[SinkTestView, ...]


class AlertToAcknowledge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which alerts somebody has taken up: of a type, of one component or, without it, of all."""

    type: Annotated[str, Meta(max_length=100, description="As in the table of the handbook's page alerts.")]
    component: Annotated[Annotated[str, Meta(max_length=500)] | None, Meta(description="Null: every component.")] = None
    by: Annotated[
        str, Meta(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\Z", description="Who; empty: the name of the key.")
    ] = ""


class AcknowledgedAlertView(Struct, frozen=True, kw_only=True):
    """One alert, and who was the first to take it up."""

    type: str
    component: str
    acknowledged_by: str
    acknowledged_at: datetime


class AcknowledgedAlertsView(Struct, frozen=True, kw_only=True):
    """The alerts that are acknowledged now, of all processes."""

    alerts: tuple[AcknowledgedAlertView, ...]


class AuditEntryView(Struct, frozen=True, kw_only=True):
    """One row of the audit log: who did what, to what, and when. No id of a conversation or a user stands in it."""

    number: WholeNumber
    at: datetime
    action: AuditAction
    key_id: Annotated[str | None, Meta(description="The key that was shown; null where none was.")]
    address: Annotated[
        str | None,
        Meta(description="As the limits of clients see it; null for a command on the database and the process itself."),
    ]
    target_kind: IdKind | None
    target: Annotated[str | None, Meta(description="The HMAC of the target's id.")]
    of_user: Annotated[str | None, Meta(description="The HMAC of the id of the user whose it is.")]
    detail: dict[str, Any]


class AuditLogView(Struct, frozen=True, kw_only=True):
    """One page of the audit log, newest first."""

    entries: tuple[AuditEntryView, ...]
    next_cursor: Cursor


class IndexView(Struct, frozen=True, kw_only=True):
    """Where to go from ``/``."""

    service: Literal["convo"] = "convo"
    version: str
    links: dict[str, str]


class LiveView(Struct, frozen=True, kw_only=True):
    """The process runs and answers."""

    status: Literal["alive"] = "alive"


class DependencyView(Struct, frozen=True, kw_only=True):
    """Whether one dependency answered its last ping, how many seconds that took, and how long ago it ended.

    ``takes`` is what was learnt of its server: the form in which it takes requests. Null where nothing was.
    """

    ok: bool
    seconds: float | None
    age_seconds: Annotated[float | None, Meta(description="Since the ping ended; null before the first one did.")]
    detail: str | None = None
    takes: str | None = None


class ReadyView(Struct, frozen=True, kw_only=True):
    """Whether requests can be served, and what prevents it."""

    status: Literal["ready", "unavailable", "migrating", "draining"]
    dependencies: dict[str, DependencyView]
    warnings: tuple[str, ...] = ()


class TasksView(Struct, frozen=True, kw_only=True):
    """Every task of one process, as a tree from the main task."""

    pid: int
    tasks: WholeNumber
    root: TaskView
