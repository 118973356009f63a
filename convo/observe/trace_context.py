"""Reads and writes W3C trace contexts, as they come in headers and as they are stored; pure.

Open it for what counts as a valid ``traceparent``. What is not valid is no error: the request is then in no trace.
"""

from __future__ import annotations

import re

from msgspec import Struct

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LENGTH = 55
_NO_VERSION, _NO_TRACE, _NO_SPAN = "ff", "0" * 32, "0" * 16
# The standard lets a tracestate be dropped that is longer; anything but visible ASCII is none.
_STATE = re.compile(r"[\x20-\x7e]{1,512}")
_SAMPLED = 1


class TraceContext(Struct, frozen=True, kw_only=True, gc=False):
    """A place in a trace: the trace's id, the id of a span in it, and whether it is recorded.

    Ids are in lower-case hex (32 and 16 digits). ``state`` is what other tracing systems pass along (``tracestate``).
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""

    @property
    def traceparent(self) -> str:
        """Return it as the header of this name."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that pass it on."""
        state = {"tracestate": self.state} if self.state else {}
        return {"traceparent": self.traceparent, **state}

    @property
    def stored(self) -> str:
        """Return it as it is stored: both headers, with a space between them."""
        return f"{self.traceparent} {self.state}" if self.state else self.traceparent


def read_context(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """Return what these two headers say; None where ``traceparent`` is not valid."""
    traceparent = traceparent.strip()
    if len(traceparent) < _LENGTH:
        return None
    found = _FORM.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # Later versions may have more behind the fields of this one; version 00 has none.
    if more is not None and version == "00":
        return None
    if version == _NO_VERSION or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    state = tracestate.strip()
    if state and not _STATE.fullmatch(state):
        state = ""
    return TraceContext(trace_id=trace_id, span_id=span_id, sampled=bool(int(flags, 16) & _SAMPLED), state=state)


def read_stored_context(stored: str) -> TraceContext | None:
    """Return what was stored as ``TraceContext.stored``; None where it is no such text."""
    traceparent, _, state = stored.partition(" ")
    return read_context(traceparent, state)
