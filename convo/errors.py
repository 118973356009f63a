"""Every error that convo raises on purpose, with its HTTP answer and whether a retry can help; add a new error here.

The module that calls a library turns the library's errors into these.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConvoError(Exception):
    """The root of the tree: an error with its answer.

    ``status`` is the HTTP status to answer, and ``code`` a stable name for the client's own code. ``retryable`` says
    whether the same call can succeed later without a change. ``headers`` are sent with the answer.
    """

    status = 500
    code = "internal"
    title = "Something went wrong on our side"
    retryable = False
    conversation_id: str | None = None

    def __init__(
        self,
        detail: str = "",
        *,
        path: str | None = None,
        retry_after_seconds: float | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.path = path
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers


class ConfigError(ConvoError):
    """The configuration cannot be used; the text names the key, its value and what to do."""

    code = "config"
    title = "The configuration cannot be used"


class Refused(ConvoError):
    """The command refuses to do its work; the text says what to change."""

    code = "refused"
    title = "convo refuses to do this"


# --- faults of a request


class BadRequest(ConvoError):
    """The request cannot be read: not JSON, a broken encoding."""

    status = 400
    code = "bad_request"
    title = "The request cannot be read"


class Unauthorized(ConvoError):
    """The request has no key, or no valid one."""

    status = 401
    code = "unauthorized"
    title = "A key is needed"

    def __init__(self, detail: str = "", *, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail, headers=[("WWW-Authenticate", "Bearer"), *headers])


class Forbidden(ConvoError):
    """The key is valid, but does not allow this."""

    status = 403
    code = "forbidden"
    title = "This key does not allow this"


class UnknownHost(ConvoError):
    """The request calls the server by a name that is not its own: a page may have had its name point here."""

    status = 403
    code = "unknown_host"
    title = "This server is not called by this name"


class CrossSite(ConvoError):
    """A browser sends this for a page of another site, which nobody has allowed to."""

    status = 403
    code = "cross_site"
    title = "Pages of other sites may not call this server"


class NotFound(ConvoError):
    """There is nothing at this address, or nothing of this name."""

    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(ConvoError):
    """The address exists, but not for this method."""

    status = 405
    code = "method_not_allowed"
    title = "This address does not support this method"


class Conflict(ConvoError):
    """The id belongs to a conversation with other content."""

    status = 409
    code = "conflict"
    title = "This conversation_id belongs to other content"


class TooMany(ConvoError):
    """As many of these exist as there may be."""

    status = 409
    code = "too_many"
    title = "There are as many of these as there may be"


class NotDead(ConvoError):
    """The conversation is no dead letter, and only a dead letter can be retried."""

    status = 409
    code = "not_dead"
    title = "This conversation is not a dead letter"


class NotAnalysed(ConvoError):
    """The analysis of the conversation has not ended well, and only what is done can be analysed again."""

    status = 409
    code = "not_analysed"
    title = "This conversation is not analysed"


class RerunOpen(ConvoError):
    """A part is found again for other conversations, or for this one already."""

    status = 409
    code = "rerun_open"
    title = "A re-run of this part is under way"


class Expired(ConvoError):
    """The conversation was received, and its content is no longer stored."""

    status = 410
    code = "expired"
    title = "This conversation has expired"


class Erased(ConvoError):
    """The conversation was erased, or its user after it had ended: it is not stored, and not accepted again."""

    status = 410
    code = "erased"
    title = "This conversation was erased"


class TooLarge(ConvoError):
    """The body is over the limit."""

    status = 413
    code = "too_large"
    title = "The body is too large"


class RequestTimeout(ConvoError):
    """The client sent its request too slowly."""

    status = 408
    code = "request_timeout"
    title = "The request did not arrive in time"
    retryable = True


class TargetTooLong(ConvoError):
    """The request's address is over the limit."""

    status = 414
    code = "target_too_long"
    title = "The address is too long"


class HeadTooLarge(ConvoError):
    """The request's head is over the limit."""

    status = 431
    code = "head_too_large"
    title = "The request's head is too large"


class VersionNotSupported(ConvoError):
    """The request is in a version of HTTP that convo does not support."""

    status = 505
    code = "version_not_supported"
    title = "This version of HTTP is not supported"


class UnsupportedMedia(ConvoError):
    """The body has a type or an encoding that convo does not support."""

    status = 415
    code = "unsupported_media"
    title = "This content type or encoding is not supported"


class Invalid(ConvoError):
    """The body is JSON, but not a conversation; ``path`` names the field."""

    status = 422
    code = "invalid"
    title = "The request is not valid"


# --- what the service cannot do at this moment


class Unavailable(ConvoError):
    """The service cannot do what the request needs now; the same request can succeed later."""

    status = 503
    code = "unavailable"
    title = "The service cannot do this now"
    retryable = True


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or cannot do the work now."""

    code = "database_unavailable"
    title = "The database cannot be reached"


class KeysUnavailable(Unavailable):
    """The keys of clients could not be read from the database for too long: any of them may be revoked."""

    code = "keys_unavailable"
    title = "No key can be checked now"


class PoolExhausted(DatabaseUnavailable):
    """No pooled connection of its purpose became free within ``database.acquire_seconds``."""

    code = "pool_exhausted"
    title = "No database connection became free in time"


class LogsUnavailable(Unavailable):
    """A log lies in object storage, which cannot be reached now."""

    code = "logs_unavailable"
    title = "Old logs cannot be read now"


class DiskFull(DatabaseUnavailable):
    """The database has no space left on its disk."""

    code = "disk_full"
    title = "The database's disk is full"


class Overloaded(Unavailable):
    """The process has its maximum of requests in progress; after ``retry_after_seconds`` some will be done."""

    code = "overloaded"
    title = "The service is overloaded"


class TooManyRequests(ConvoError):
    """One client sends more than its limit allows; after ``retry_after_seconds`` it may send again."""

    status = 429
    code = "rate_limited"
    title = "This client sends too much"
    retryable = True


class Draining(Unavailable):
    """The process is stopping; send the request to another process, or to the next one."""

    code = "draining"
    title = "The service is stopping"


class DeadlineExceeded(Unavailable):
    """A wait took longer than its deadline; ``name`` is the wait that used the time."""

    code = "deadline_exceeded"
    title = "The time for this ran out"

    def __init__(self, name: str, seconds: float, budget: str = "") -> None:
        own = f"{name} took longer than its {seconds:g} s"
        super().__init__(f"the {seconds:g} s of {budget} ran out in {name}" if budget else own)
        self.name = name
        self.seconds = seconds
        self.budget = budget


class DatabaseDeadlineExceeded(DeadlineExceeded, DatabaseUnavailable):
    """A unit of database work took longer than its deadline."""


# --- how the database failed one unit of work


class BadRow(ConvoError):
    """The database refuses this data (SQLSTATE classes 22, 23 and 54); a retry cannot help."""

    status = 422
    code = "refused_by_database"
    title = "The database refuses this conversation's content"

    def __init__(self, detail: str, *, sqlstate: str = "") -> None:
        super().__init__(detail)
        self.sqlstate = sqlstate


class TransactionLost(DatabaseUnavailable):
    """A deadlock, a serialization failure or a lost connection; an immediate retry can succeed."""

    code = "transaction_lost"


class LeaseLost(ConvoError):
    """The worker has lost its job: the lease ended, or another worker holds it."""

    code = "lease_lost"
    title = "The lease on this job is lost"


class WrongLog(ConvoError):
    """A stored log is not the one that was acknowledged: nobody may read it under this conversation."""

    code = "wrong_log"
    title = "The stored log is not the one that was acknowledged"


# --- how a remote dependency failed


class RemoteError(ConvoError):
    """A call to a remote dependency failed.

    ``dependency`` is its name (``llm``, ``memory``). ``outage`` is true where the failure is the dependency's and
    not the job's. Such a failure costs the job no attempt. It is ``systemic`` where it is an outage only because the
    call fails for all jobs alike. ``wait`` names the call that failed. ``answer_status`` and
    ``answer_words`` are the status and the first words of what was answered, where something was; no log shows the
    words, but for those of a fault that all jobs meet. ``ticket`` is what to ask with the next time; where it is empty,
    with nothing any more, and where it is None, as before. ``later_seconds`` is when to ask again at the earliest,
    where the error knows it. ``asked`` are the errors of all servers that were asked for the same, where there are
    several.
    """

    status = 502
    code = "remote"
    title = "A service that convo depends on failed"
    outage = False

    def __init__(self, dependency: str, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{dependency}: {detail}", retry_after_seconds=retry_after_seconds)
        self.dependency = dependency
        self.systemic = False
        self.ticket: str | None = None
        self.later_seconds: float | None = None
        self.asked: tuple[RemoteError, ...] = ()
        self.wait = ""
        self.answer_status: int | None = None
        self.answer_words = ""


class RemoteUnavailable(RemoteError):
    """Not reached, timed out, 408 or 5xx: a retry can succeed a moment later."""

    code = "remote_unavailable"
    retryable = True
    outage = True


class RemoteBusy(RemoteUnavailable):
    """429: it refuses calls for some time (``retry_after_seconds``, where its answer says how long)."""

    code = "remote_busy"


class RemoteTimeout(RemoteUnavailable):
    """It did not answer in time; ``outage`` unless it answered other calls meanwhile."""

    code = "remote_timeout"

    def __init__(self, dependency: str, detail: str, *, outage: bool) -> None:
        super().__init__(dependency, detail)
        self.outage = outage


class RemotePending(RemoteError):
    """It has taken the conversation and is at work on it: it is asked later, with ``ticket``, in ``later_seconds``."""

    code = "remote_pending"
    outage = True

    def __init__(self, dependency: str, detail: str, *, ticket: str, later_seconds: float) -> None:
        super().__init__(dependency, detail)
        self.ticket = ticket
        self.later_seconds = later_seconds


class RemoteFailedLater(RemoteError):
    """It had taken the conversation, and failed at it: it has to be given it again."""

    code = "remote_failed_later"

    def __init__(self, dependency: str, detail: str) -> None:
        super().__init__(dependency, detail)
        self.ticket = ""


class RemoteDown(RemoteError):
    """It failed so often that its breaker is open: no call is made for some time."""

    code = "remote_down"
    outage = True


class RemoteWithheld(RemoteError):
    """No call is made for a reason of our own: the budget of the day is spent."""

    code = "remote_withheld"
    outage = True


class RemoteRefused(RemoteError):
    """400, 413, 422 and similar: the same call would be refused again."""

    code = "remote_refused"


class RemoteDeclined(RemoteError):
    """A content filter refuses this conversation: the part ends without a finding, and no try can change that."""

    code = "remote_declined"


class RemoteDenied(RemoteError):
    """3xx, 401, 402, 403, 404, a wrong key or model told in any way: it refuses every call; a setting is wrong."""

    code = "remote_denied"
    outage = True


class RemoteGarbage(RemoteError):
    """The answer cannot be parsed or does not match its schema."""

    code = "remote_garbage"
    retryable = True
