"""Writes counts and distributions as lines of Prometheus' text form or of OpenMetrics', those of one cell at a time.

prometheus-client makes an object of each line first, and writes a family in one go: a family of two hundred waits took
25 ms, during which nothing else had the interpreter for longer than half a millisecond. The lines are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_DIGITS_MAX = 6

Exemplar = tuple[float, float, str, str]
"""A figure, when it was met (as ``time.time``), and the ids of the trace and the span in which it was."""


class Labels:
    """The labels of one cell, in the order of their names."""

    def __init__(self, names: Sequence[str], values: Sequence[str]) -> None:
        pairs = sorted(zip(names, values, strict=True))
        self._before_le = "".join(f"{_pair(*pair)}," for pair in pairs if pair[0] < "le")
        self._after_le = "".join(f",{_pair(*pair)}" for pair in pairs if pair[0] > "le")
        alone = ",".join(_pair(*pair) for pair in pairs)
        self.text = f"{{{alone}}}" if alone else ""

    def with_le(self, bound: str) -> str:
        """Return them with the bound of a bucket."""
        return f'{{{self._before_le}le="{bound}"{self._after_le}}}'


def head(name: str, text: str, kind: str, *, openmetrics: bool) -> str:
    """Return what stands above the lines of a family; ``name`` is that of a counter with its ``_total``."""
    if openmetrics:
        name = name.removesuffix("_total") if kind == "counter" else name
        return f"# HELP {name} {_escaped(text)}\n# TYPE {name} {kind}\n"
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def count_line(name: str, labels: Labels, value: float) -> str:
    """Return the line of one count."""
    return f"{name}{labels.text} {_number(value)}\n"


def distribution_lines(
    name: str, labels: Labels, cumulative: Sequence[tuple[str, float]], total: float, exemplars: Mapping[int, Exemplar]
) -> str:
    """Return the lines of one distribution; ``exemplars`` are by the place of their bucket."""
    return "".join(_distribution(name, labels, cumulative, total, exemplars))


def _distribution(
    name: str, labels: Labels, cumulative: Sequence[tuple[str, float]], total: float, exemplars: Mapping[int, Exemplar]
) -> Iterator[str]:
    for place, (bound, reached) in enumerate(cumulative):
        exemplar = _exemplar(exemplars[place]) if place in exemplars else ""
        yield f"{name}_bucket{labels.with_le(bound)} {_number(reached)}{exemplar}\n"
    yield f"{name}_count{labels.text} {_number(cumulative[-1][1])}\n"
    yield f"{name}_sum{labels.text} {_number(total)}\n"


def _exemplar(exemplar: Exemplar) -> str:
    figure, noted_at, trace_id, span_id = exemplar
    return f' # {{span_id="{span_id}",trace_id="{trace_id}"}} {_number(figure)} {noted_at}'


def _pair(name: str, value: str) -> str:
    return f'{name}="{_escaped(value)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """Write a number as Go does, which writes an exponent sooner than Python."""
    text = repr(value)
    dot = text.find(".")
    if value <= 0 or dot <= _DIGITS_MAX:
        return text
    mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
    return f"{mantissa}e+{dot - 1:02d}"
