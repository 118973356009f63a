"""``convo erase --scrub``: says what is locked for how long, asks, and shows each table that is written anew."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import trio
from msgspec.structs import asdict

from convo.commands import database
from convo.commands.output import print_json
from convo.errors import Refused
from convo.observe.log import open_log
from convo.scrub import ScrubbedTable, Size, expected_seconds
from convo.settings import Settings

_MEBIBYTE = 1 << 20


def run_scrub(settings: Settings, *, ask: bool, as_json: bool) -> int:
    """Write the tables anew, and print what may remain."""

    def confirm(sizes: Sequence[Size]) -> None:
        tables = ", ".join(f"{one.name} {one.bytes / _MEBIBYTE:,.0f} MiB" for one in sizes)
        # On stderr, with the question and the progress: what is printed on stdout is the command's result.
        print(
            f"written anew, one after the other: {tables}\nexpected: {_span(expected_seconds(sizes))} in all. A table"
            " is locked while it is written: requests that need it wait, and are answered 503 at their deadline.\n"
            f"free disk that it needs, for the largest: {max(one.bytes for one in sizes) / _MEBIBYTE:,.0f} MiB",
            file=sys.stderr,
        )
        if ask:
            _ask()

    def report(done: ScrubbedTable, left: float) -> None:
        sizes = f"{done.bytes_before / _MEBIBYTE:,.1f} MiB, now {done.bytes_after / _MEBIBYTE:,.1f} MiB"
        print(f"{done.name}: {sizes}, in {done.seconds:.1f} s; {_span(left)} are left", file=sys.stderr, flush=True)

    with open_log(settings.observe):
        done = trio.run(database.scrub_erased, settings, confirm, report)
    if as_json:
        print_json({"tables": [asdict(one) for one in done.tables], "remains": list(done.remains)})
    else:
        print("the tables are written anew; what was erased may remain in:")
        print("\n".join(f"- {one}" for one in done.remains))
    return 0


def _ask() -> None:
    if not sys.stdin.isatty():
        raise Refused("nothing was changed: there is no terminal to ask on; give --yes to write the tables anew")
    print("Write them anew? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was changed")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
