"""What can go wrong with a call, one class for each thing that a program can do about it.

A problem document becomes the class of its ``code``, or of its status where the code is a new one.
"""

from __future__ import annotations

from convo.client.answers import Problem
from convo.client.retrying import RETRYABLE


class ClientError(Exception):
    """The call failed. ``retryable``: the same call can succeed later, unchanged."""

    retryable = False


class NotReached(ClientError):
    """No answer came within the time of the call; ``why`` says what happened at the last attempt."""

    retryable = True

    def __init__(self, text: str, *, why: str) -> None:
        super().__init__(text)
        self.why = why


class NotConvo(ClientError):
    """What answers at this address is not convo, or of a version that this client cannot read."""


class ProblemError(ClientError):
    """convo has refused; ``code`` is stable, ``detail`` is for people, ``path`` names the field that is wrong."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}".rstrip(": "))
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.path = problem.path or None
        self.conversation_id = problem.conversation_id or None
        self.retry_after_seconds = problem.retry_after_seconds or None
        self.retryable = problem.status in RETRYABLE


class Unauthorized(ProblemError):
    """The key is missing or not valid."""


class Forbidden(ProblemError):
    """The key does not allow this."""


class NotFound(ProblemError):
    """There is nothing of this name."""


class Conflict(ProblemError):
    """The id belongs to a conversation with other content: send this one under an id of its own."""


class Expired(ProblemError):
    """The content is no longer stored."""


class Erased(ProblemError):
    """The conversation was erased, and is not accepted again."""


class TooLarge(ProblemError):
    """The body is over a limit."""


class UnsupportedMedia(ProblemError):
    """The body has a type or an encoding that convo does not support."""


class Invalid(ProblemError):
    """The request cannot be read, or is not valid; ``path`` names the field."""


class TooManyRequests(ProblemError):
    """The client sends more than its limit allows."""


class Unavailable(ProblemError):
    """convo, or a gateway before it, could not do it within the time of the call."""


_BY_CODE: dict[str, type[ProblemError]] = {"conflict": Conflict, "expired": Expired, "erased": Erased}
_BY_STATUS: dict[int, type[ProblemError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: Unavailable,
    410: Expired,
    413: TooLarge,
    415: UnsupportedMedia,
    422: Invalid,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def fault_of(problem: Problem) -> ProblemError:
    """Return the error that a problem document stands for."""
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(problem.status) or ProblemError
    return kind(problem)
