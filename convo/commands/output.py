"""What the commands print with: tables, records of two lines, JSON, and texts that a terminal only shows.

Every text of a conversation comes from outside: ``plain`` makes of it what a terminal prints and never obeys.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 1000
_JOINER = "\N{ZERO WIDTH JOINER}"  # invisible, but what holds emoji of several people together


class RecordTable(Struct, frozen=True, kw_only=True):
    """Records of a list: a table where each fits a line, else two lines a record.

    The first ``leading`` columns stand in the first of the two lines. No text is broken or cut: an id is there to be
    copied.
    """

    names: tuple[str, ...]
    leading: int
    rows: tuple[tuple[Text, ...], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what fits the width."""
        widths = [max(cell_len(name), *(row[at].cell_len for row in self.rows)) for at, name in enumerate(self.names)]
        # Each column has a space on both sides and a line on its left; the last line is on the right.
        if sum(widths) + 3 * len(widths) + 1 <= options.max_width:
            table = make_table(*self.names)
            for row in self.rows:
                table.add_row(*row)
            yield table
            return
        for row in self.rows:
            rest = [Text.assemble((f"{name} ", "dim"), cell) for name, cell in zip(self.names, row, strict=True)]
            yield _unbroken(Text("  ").join(row[: self.leading]))
            yield _unbroken(Text("   ") + Text("  ").join(rest[self.leading :]))


def _unbroken(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ignore"
    return line


def print_json(value: object) -> None:
    """Print a value as JSON, indented."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_result(shown: RenderableType) -> None:
    """Print a table or a text; into a pipe without line breaks inside a row, so that a row stays one line."""
    # Not cropped: what is longer than the line is broken by the terminal, and can be copied whole.
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(shown, crop=False)


def make_table(*names: str) -> Table:
    """Make a table with these columns; what is too long is folded."""
    table = Table(title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def add_row(table: Table, *cells: Any) -> None:
    """Add a row of values of any kind."""
    table.add_row(*map(make_cell, cells))


def make_cell(value: Any) -> Text:
    """Return how a value is shown: a time in UTC, a dash for None."""
    if isinstance(value, Text):
        return value
    if isinstance(value, datetime):
        return Text(utc_text(value))
    return Text("–", style="dim") if value is None else plain(str(value))


def utc_text(at: datetime) -> str:
    """Return a time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") + "Z"


def plain(text: str, style: str = "") -> Text:
    """Make a text that a terminal prints and never obeys: characters that are not printable are shown as escapes."""
    return Text(
        "".join(letter if letter.isprintable() or letter == _JOINER else _escaped(letter) for letter in text), style
    )


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
