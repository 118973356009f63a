"""How deep JSON is nested, found in its bytes without reading it.

How deep the decoder reads depends on the Python: 1,000 levels in 3.11, 10,000 in 3.13. The answer must not.
"""

from __future__ import annotations

from itertools import accumulate

from convo import errors
from convo.conversation.sent import LEVELS_MAX

BODY_LEVELS_MAX = LEVELS_MAX + 2
"""How deep a body may be nested: an item stands in the log, and the log in the body."""
TOO_DEEP = f"is nested deeper than {LEVELS_MAX} levels"

# Each bracket as the signed byte that it adds to the depth.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - set(b'[{]}"'))
# The loop has its turn between two slices where this runs in a thread.
_SLICE_BYTES = 1 << 14


def is_nested_deeper(data: bytes, levels: int) -> bool:
    """Return whether JSON is nested deeper than ``levels``; of what is no JSON, whether so many brackets are open."""
    if data.count(b"[") + data.count(b"{") <= levels:
        return False
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_STEPS, _OTHERS)
    # Two quotes with no bracket between them: the text that they bound, or the gap between two texts.
    marks = marks.replace(b'""', b"")
    depth, in_text = 0, 0
    for start in range(0, len(marks), _SLICE_BYTES):
        pieces = marks[start : start + _SLICE_BYTES].split(b'"')
        depths = [*accumulate(memoryview(b"".join(pieces[in_text::2])).cast("b"), initial=depth)]
        if max(depths) > levels:
            return True
        depth = depths[-1]
        in_text ^= 1 - len(pieces) % 2
    return False


def too_deep(path: str) -> errors.Invalid:
    """Return the error for what is nested too deeply."""
    return errors.Invalid(TOO_DEEP, path=path)
