"""Curves over time in an SVG, written by hand, and a page that holds several; it knows no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from msgspec import Struct

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 900, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 34, 28
_COLOURS = ("#0b6e4f", "#c0764a", "#3b5b92", "#8a8f98")
_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c1f23; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #d8dbe0; padding: .25rem .75rem; text-align: left; vertical-align: top; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; }
"""


class Plot(Struct, frozen=True, kw_only=True):
    """Curves over seconds by their name, with a dashed line at each figure of ``marks``."""

    title: str
    curves: Mapping[str, Points]
    marks: Mapping[str, float] = {}


class Phase(Struct, frozen=True, kw_only=True):
    """A stretch of time with a name, in seconds."""

    name: str
    begins: float
    ends: float


def draw(plot: Plot, phases: Sequence[Phase]) -> str:
    """Draw one plot; return the SVG's text."""
    points = [point for curve in plot.curves.values() for point in curve]
    until = max([at for at, _ in points] + [phase.ends for phase in phases], default=0.0) or 1.0
    most = max([figure for _, figure in points] + list(plot.marks.values()), default=0.0) or 1.0
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="11"><title>{escape(plot.title)}</title>'
        f'<text x="{_LEFT}" y="18" font-size="14">{escape(plot.title)}</text>'
        + "".join(_phases(phases, until))
        + "".join(_axes(until, most))
        + "".join(_curves(plot, until, most))
        + "</svg>"
    )


def _x(at: float, until: float) -> float:
    return _LEFT + at / until * (_WIDTH - _LEFT - _RIGHT)


def _y(figure: float, most: float) -> float:
    return _HEIGHT - _BOTTOM - figure / most * (_HEIGHT - _TOP - _BOTTOM)


def _phases(phases: Sequence[Phase], until: float) -> Iterator[str]:
    for number, phase in enumerate(phases):
        left, right = _x(phase.begins, until), _x(phase.ends, until)
        fill = "#f3f4f6" if number % 2 else "#fafafa"
        height = _HEIGHT - _TOP - _BOTTOM
        yield f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{height}" fill="{fill}"/>'
        yield f'<text x="{left + 3:.1f}" y="{_TOP + 11}" fill="#777">{escape(phase.name)}</text>'


def _axes(until: float, most: float) -> Iterator[str]:
    for step in range(5):
        figure = most * step / 4
        height = _y(figure, most)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{figure:,.4g}</text>'
        at = until * step / 4
        yield f'<text x="{_x(at, until):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{at:.0f} s</text>'


def _curves(plot: Plot, until: float, most: float) -> Iterator[str]:
    for number, (name, curve) in enumerate(plot.curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = " ".join(f"{_x(at, until):.1f},{_y(figure, most):.1f}" for at, figure in curve)
        yield f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield f'<text x="{_WIDTH - _RIGHT + 8}" y="{_TOP + 14 + 15 * number}" fill="{colour}">{escape(name)}</text>'
    for number, (name, figure) in enumerate(plot.marks.items()):
        height = _y(figure, most)
        dashes = 'stroke="#a33" stroke-dasharray="5 4"'
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" {dashes}/>'
        line = _TOP + 14 + 15 * (len(plot.curves) + number)
        yield f'<text x="{_WIDTH - _RIGHT + 8}" y="{line}" fill="#a33">{escape(name)} {figure:,.4g}</text>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table; figures are aligned at their end."""
    first = "".join(f"<th>{escape(one)}</th>" for one in head)
    lines = ("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="figure">{value:,.4g}</td>'
    return f"<td>{escape(str(value))}</td>"


def write_page(title: str, parts: Sequence[str]) -> str:
    """Write a page that loads nothing: ``parts`` are HTML already."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def paragraph(text: str) -> str:
    """Write a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"
