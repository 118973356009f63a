"""What the running task's job has asked of language models: each call that was answered, with its tokens and its price.

A call is noted when its answer is there, also where the answer cannot be used: it is paid for all the same. An attempt
without an answer is not noted, for nothing says what it took. Outside of a job nothing is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from secrets import randbits

from msgspec import Struct, field

from convo.analysis.llm_usage import Tokens
from convo.conversation.model import PartName


def _number() -> int:
    return randbits(63)


class PaidCall(Struct, kw_only=True):
    """One call: which server answered, as whom, and for which parts.

    ``tokens`` is None where the server did not say; ``nano`` (billionths of the currency) also where its model has no
    price. Tokens and price are shared out among ``parts`` in equal parts: who reads the answer may narrow these down to
    what it has answered, before it waits for anything else.
    """

    server: str
    by: str
    parts: tuple[PartName, ...]
    tokens: Tokens | None = None
    nano: int | None = None
    number: int = field(default_factory=_number)


class JobCalls:
    """The calls of one job: ``take`` returns those that are not stored yet; ``noted`` is told of each at once.

    ``bot`` are the tenant and the bot whose conversation it is.
    """

    def __init__(
        self, seq: int, noted: Callable[[PaidCall], None] | None = None, bot: tuple[str, str] = ("", "")
    ) -> None:
        self.seq = seq
        self.bot = bot
        self._noted = noted
        self._calls: list[PaidCall] = []

    def note(self, call: PaidCall) -> None:
        """Note one call."""
        if self._noted is not None:
            self._calls.append(call)
            self._noted(call)

    def take(self) -> list[PaidCall]:
        """Return the calls that were noted since the last time."""
        taken, self._calls = self._calls, []
        return taken


_at_work: ContextVar[JobCalls | None] = ContextVar("job_calls", default=None)


@contextmanager
def working_for(calls: JobCalls) -> Iterator[JobCalls]:
    """Have all calls inside noted for this job."""
    token = _at_work.set(calls)
    try:
        yield calls
    finally:
        _at_work.reset(token)


def calls_at_work() -> JobCalls | None:
    """Return the calls of the job that this task works for; None outside of one."""
    return _at_work.get()


def note_call(call: PaidCall) -> None:
    """Note a call for the job that this task works for."""
    calls = _at_work.get()
    if calls is not None:
        calls.note(call)
