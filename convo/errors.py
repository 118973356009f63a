"""Every error that convo raises on purpose: what to answer, and whether to try again.

It knows no library: foreign errors are turned into these at the edge where they arrive.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConvoError(Exception):
    """The root of the tree: an error with an answer.

    ``status`` is the HTTP status to answer, ``code`` the stable name a client may switch on,
    ``retryable`` whether the same call can succeed later without being changed; ``headers`` go with the answer.
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
    """The service will not start as things stand; the text says what to change."""

    code = "refused"
    title = "convo cannot start"


# --- what a client did


class BadRequest(ConvoError):
    """The request cannot be read: not JSON, a broken encoding."""

    status = 400
    code = "bad_request"
    title = "The request cannot be read"


class Unauthorized(ConvoError):
    """The request shows no key, or none that is good."""

    status = 401
    code = "unauthorized"
    title = "A key is needed"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, headers=[("WWW-Authenticate", "Bearer")])


class Forbidden(ConvoError):
    """The key is good, but not for this."""

    status = 403
    code = "forbidden"
    title = "This key may not do this"


class NotFound(ConvoError):
    """There is nothing at this address, or nothing of this name."""

    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(ConvoError):
    """The address exists, but not for this method."""

    status = 405
    code = "method_not_allowed"
    title = "This address does not take this method"


class Conflict(ConvoError):
    """The id is taken by a conversation with other content."""

    status = 409
    code = "conflict"
    title = "This conversation_id is taken by other content"


class NotDead(ConvoError):
    """Only a dead letter can be revived."""

    status = 409
    code = "not_dead"
    title = "This conversation is not a dead letter"


class TooLarge(ConvoError):
    """The body is over the limit."""

    status = 413
    code = "too_large"
    title = "The body is too large"


class RequestTimeout(ConvoError):
    """The client took longer over its request than it may."""

    status = 408
    code = "request_timeout"
    title = "The request did not come in time"
    retryable = True


class TargetTooLong(ConvoError):
    """The address asked for is over the limit."""

    status = 414
    code = "target_too_long"
    title = "The address is too long"


class HeadTooLarge(ConvoError):
    """The request's head is over the limit."""

    status = 431
    code = "head_too_large"
    title = "The request's head is too large"


class VersionNotSupported(ConvoError):
    """The request is in a version of HTTP that is not spoken here."""

    status = 505
    code = "version_not_supported"
    title = "This version of HTTP is not spoken here"


class UnsupportedMedia(ConvoError):
    """The body is in a type or an encoding that is not taken."""

    status = 415
    code = "unsupported_media"
    title = "This content type or encoding is not taken"


class Invalid(ConvoError):
    """The body is JSON, but not a conversation; ``path`` names the field."""

    status = 422
    code = "invalid"
    title = "The request is not valid"


# --- what the service cannot do now


class Unavailable(ConvoError):
    """What the request needs is away; the same request can succeed later."""

    status = 503
    code = "unavailable"
    title = "The service cannot do this now"
    retryable = True


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or cannot take the work now."""

    code = "database_unavailable"
    title = "The database cannot be reached"


class PoolExhausted(DatabaseUnavailable):
    """Every connection of the pool stayed in use for as long as one may wait, or none could be opened."""

    code = "pool_exhausted"
    title = "No database connection became free in time"


class DiskFull(DatabaseUnavailable):
    """The database has no room left on its disk."""

    code = "disk_full"
    title = "The database's disk is full"


class Overloaded(Unavailable):
    """More requests are under way than this process takes; ``retry_after_seconds`` is when some will be done."""

    code = "overloaded"
    title = "The service has as much to do as it takes"


class TooManyRequests(ConvoError):
    """One client sends more than its share; ``retry_after_seconds`` is when it may send again."""

    status = 429
    code = "rate_limited"
    title = "This client sends too much"
    retryable = True


class Draining(Unavailable):
    """The process is stopping; another one, or the next one, takes the request."""

    code = "draining"
    title = "The service is stopping"


class DeadlineExceeded(Unavailable):
    """A wait took longer than its deadline; ``name`` is the wait that used it up."""

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


# --- the database's word on one unit of work


class BadRow(ConvoError):
    """The database refuses this very data (SQLSTATE classes 22, 23 and 54); trying again cannot help."""

    status = 422
    code = "refused_by_database"
    title = "The database refuses this conversation's content"

    def __init__(self, detail: str, *, sqlstate: str = "") -> None:
        super().__init__(detail)
        self.sqlstate = sqlstate


class TransactionLost(DatabaseUnavailable):
    """A deadlock, a serialization failure or a lost connection: the same transaction can succeed at once."""

    code = "transaction_lost"


class LeaseLost(ConvoError):
    """The job is no longer ours: its lease ended, or another worker has it."""

    code = "lease_lost"
    title = "The lease on this job is lost"


# --- what a remote dependency did


class RemoteError(ConvoError):
    """A call to a remote dependency failed.

    ``dependency`` is its name (``llm``, ``memory``). ``outage`` is true where the failure says something of the
    dependency and nothing of the job: it is then no fault of the job.
    """

    status = 502
    code = "remote"
    title = "A service that convo depends on failed"
    outage = False

    def __init__(self, dependency: str, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{dependency}: {detail}", retry_after_seconds=retry_after_seconds)
        self.dependency = dependency


class RemoteUnavailable(RemoteError):
    """Not reached, timed out, 408 or 5xx: it may be different a moment later."""

    code = "remote_unavailable"
    retryable = True
    outage = True


class RemoteBusy(RemoteUnavailable):
    """429: it asks to be left alone for a while (``retry_after_seconds``, when it says how long)."""

    code = "remote_busy"


class RemoteTimeout(RemoteUnavailable):
    """It did not answer in time; ``outage`` unless it answered others meanwhile."""

    code = "remote_timeout"

    def __init__(self, dependency: str, detail: str, *, outage: bool) -> None:
        super().__init__(dependency, detail)
        self.outage = outage


class RemoteDown(RemoteError):
    """It failed so often that nobody asks it for a while."""

    code = "remote_down"
    outage = True


class RemoteRefused(RemoteError):
    """400, 413, 422 and the like: the same call will be refused again."""

    code = "remote_refused"


class RemoteDenied(RemoteError):
    """401, 402, 403, 404: it refuses us, whatever the call: a setting to be mended, no fault of the job."""

    code = "remote_denied"
    outage = True


class RemoteGarbage(RemoteError):
    """The answer does not parse or does not fit its schema."""

    code = "remote_garbage"
    retryable = True
