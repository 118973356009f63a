"""Bars in an SVG, written by hand; it knows figures and names, not what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT = 860, 170, 90
_ROW, _GAP, _TOP, _FOOT = 20, 42, 52, 34
_COLOURS = {"convo": "#0b6e4f", "ceiling": "#8a8f98", "busy": "#3fa37c"}
_OTHERS = "#c0764a"

Groups = Mapping[str, Mapping[str, float]]


def bars(title: str, groups: Groups, foot: str) -> str:
    """Draw one group of bars below the other, each group to its own scale; return the SVG's text."""
    height = _TOP + sum(_GAP + _ROW * len(group) for group in groups.values()) + _FOOT
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' font-family='system-ui, sans-serif'>"
        f"<rect width='{_WIDTH}' height='{height}' fill='#fff'/>"
        + _text(20, 30, title, "font-size='18'")
        + "".join(_groups(groups))
        + _text(20, height - 14, foot, "font-size='10' fill='#666'")
        + "</svg>\n"
    )


def _groups(groups: Groups) -> Iterator[str]:
    top = _TOP
    for name, group in groups.items():
        yield _text(20, top + 18, name, "font-size='13' font-weight='bold'")
        top += _GAP - 14
        most = max(group.values(), default=0.0) or 1.0
        for label, figure in group.items():
            yield _bar(top, label, figure, figure / most)
            top += _ROW
        top += 14


def _bar(top: int, label: str, figure: float, part: float) -> str:
    width = max(1.0, part * (_WIDTH - _LEFT - _RIGHT))
    colour = _COLOURS.get(label, _OTHERS)
    return (
        _text(_LEFT - 8, top + 14, label, "font-size='12' text-anchor='end'")
        + f"<rect x='{_LEFT}' y='{top + 3}' width='{width:.1f}' height='{_ROW - 6}' rx='2' fill='{colour}'/>"
        + _text(round(_LEFT + width) + 6, top + 14, f"{figure:,.0f}", "font-size='12'")
    )


def _text(left: int, top: int, text: str, style: str) -> str:
    return f"<text x='{left}' y='{top}' {style}>{escape(text)}</text>"
