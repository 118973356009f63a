"""A batch as the two bodies of a request: conversations as lines, and the lines that answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from convo.client.answers import Problem, Receipt
from convo.client.faults import ProblemError, fault_of

PATH = "/v1/conversations/batch"
MEDIA = "application/x-ndjson"
LINES_MAX = 1_000
# A request of more than 16 MiB is refused; half of it leaves room, and time, for each.
BYTES_MAX = 8 << 20


class _Kind(msgspec.Struct, frozen=True):
    code: str = ""


def groups(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the bodies in groups that fit one request, each body in one line; at least one body in each group."""
    group: list[bytes] = []
    size = 0
    for body in bodies:
        # In JSON a line break stands between two tokens only, where a space means the same.
        line = body.replace(b"\n", b" ")
        if group and (len(group) == LINES_MAX or size + len(line) > BYTES_MAX):
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line) + 1
    if group:
        yield group


def read(content: bytes) -> list[Receipt | ProblemError]:
    """Read the answer to a batch.

    Raises:
        msgspec.DecodeError: a line is neither a receipt nor a problem.
    """
    return [_read(line) for line in content.split(b"\n") if line]


def _read(line: bytes) -> Receipt | ProblemError:
    if msgspec.json.decode(line, type=_Kind).code:
        return fault_of(msgspec.json.decode(line, type=Problem))
    return msgspec.json.decode(line, type=Receipt)
