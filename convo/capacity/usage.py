"""What a process has used and done so far, as one reading of its counters, and what lies between two of them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Usage(Struct, frozen=True, kw_only=True):
    """One reading, each figure since the start of the process, or the difference of two of them.

    ``process_seconds`` is processor time of the process, ``machine_seconds`` that of all processes of its machine or
    container. ``loop_seconds`` is that of the loop's thread, ``queued_seconds`` how long it could run and had no
    processor. ``accepted`` are conversations stored in ``commits`` transactions of ``commit_seconds`` together;
    ``accept_busy_seconds`` are those in which any accept was under way. ``analysed`` are jobs that were settled, in
    ``settles`` transactions of ``settle_seconds`` together, and taken in ``leases``; ``job_seconds`` is how long all
    jobs were at work, and ``analyst_seconds`` what the embedded analyst had of the interpreter. ``pace_seconds`` is the
    share of the interpreter that analyses were allowed, times its time. ``calls`` and ``call_seconds`` are attempts to
    call each dependency, by its name.
    """

    at: float = 0.0
    process_seconds: float = 0.0
    machine_seconds: float = 0.0
    loop_seconds: float = 0.0
    queued_seconds: float = 0.0
    accepted: float = 0.0
    commits: float = 0.0
    commit_seconds: float = 0.0
    accept_busy_seconds: float = 0.0
    analysed: float = 0.0
    settles: float = 0.0
    settle_seconds: float = 0.0
    leases: float = 0.0
    job_seconds: float = 0.0
    analyst_seconds: float = 0.0
    pace_seconds: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    price: float = 0.0
    packed_logs: float = 0.0
    object_bytes: float = 0.0
    calls: Mapping[str, float] = {}
    call_seconds: Mapping[str, float] = {}

    def since(self, earlier: Usage) -> Usage:
        """Return what lies between an earlier reading and this one; ``at`` is then a length in seconds."""
        plain = {name: getattr(self, name) - getattr(earlier, name) for name in _PLAIN}
        return Usage(
            **plain,
            calls=_less(self.calls, earlier.calls),
            call_seconds=_less(self.call_seconds, earlier.call_seconds),
        )

    def plus(self, other: Usage) -> Usage:
        """Return two differences together."""
        plain = {name: getattr(self, name) + getattr(other, name) for name in _PLAIN}
        return Usage(
            **plain, calls=_more(self.calls, other.calls), call_seconds=_more(self.call_seconds, other.call_seconds)
        )


_PLAIN = tuple(name for name in Usage.__struct_fields__ if name not in ("calls", "call_seconds"))


def _less(later: Mapping[str, float], earlier: Mapping[str, float]) -> Mapping[str, float]:
    return {name: figure - earlier.get(name, 0.0) for name, figure in later.items()}


def _more(one: Mapping[str, float], other: Mapping[str, float]) -> Mapping[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}
