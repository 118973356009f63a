"""``convo reanalyse`` and ``convo compare``: what can be typed, and how the results are printed."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from convo.commands.expiry import read_span
from convo.commands.later import import_later
from convo.commands.options import add_command, add_settings, settings_of
from convo.errors import Refused

if TYPE_CHECKING:
    from convo.commands import reanalysing, rerun_drawing
    from convo.commands.options import Commands
else:
    # Not before a command runs that needs them.
    reanalysing = import_later("convo.commands.reanalysing")
    rerun_drawing = import_later("convo.commands.rerun_drawing")

_RATE_MAX = 1e6
_WORKERS_MAX = 64


def add_reruns(commands: Commands) -> None:
    """Add reanalyse and compare."""
    again = add_command(
        commands, "reanalyse", "find one part again for stored conversations, behind live work", _reanalyse
    )
    again.epilog = (
        "The same command goes on where one has ended, also one that was killed, and several of them share the work."
        " What is found changes nothing: `convo compare NAME` shows it beside the current results."
    )
    again.add_argument("--part", required=True, metavar="NAME", help="the part, as it is declared now")
    again.add_argument("--since", metavar="WHEN", help="conversations received since then: a date or time, or 30d")
    again.add_argument("--bot", metavar="ID", help="conversations of this bot alone")
    again.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="a share of them, such as 0.1")
    again.add_argument("--rate", type=float, default=0.0, metavar="N", help="at most N a second, by all together")
    again.add_argument("--workers", type=int, default=4, metavar="N", help="conversations at a time (default: 4)")
    doing = again.add_mutually_exclusive_group()
    doing.add_argument("--dry-run", action="store_true", help="count them, and do nothing")
    doing.add_argument("--pause", action="store_true", help="let every process stop working on it")
    add_settings(again)
    compare = add_command(commands, "compare", "compare what a re-run found with the current results", _compare)
    compare.add_argument("part", metavar="NAME", help="the part that was found again")
    compare.add_argument(
        "--promote", action="store_true", help="let what was found take the place of the current results"
    )
    compare.add_argument(
        "--min-agreement", type=float, default=0.0, metavar="SHARE", help="promote nothing where fewer agree: 0.9"
    )
    compare.epilog = "The exit code is 1 where --promote is refused, because fewer agree than --min-agreement."
    add_settings(compare)


def _reanalyse(asked: argparse.Namespace) -> int:
    if not 0 < asked.sample <= 1:
        raise Refused(f"--sample {asked.sample:g}: give a share above 0, at most 1")
    if not 0 <= asked.rate <= _RATE_MAX:
        raise Refused(f"--rate {asked.rate:g}: give a number from 0, which is no limit")
    if not 1 <= asked.workers <= _WORKERS_MAX:
        raise Refused(f"--workers {asked.workers}: give a number from 1 to {_WORKERS_MAX}")
    since = None if asked.since is None else read_beginning(asked.since)
    settings = settings_of(asked)
    if asked.pause:
        paused = reanalysing.pause_rerun(settings, asked.part)
        rerun_drawing.show_rerun(paused, as_json=asked.json)
        return 0
    wanted = reanalysing.WantedRerun(
        part=asked.part, received_since=since, bot_id=asked.bot, sample=asked.sample, rate=asked.rate
    )
    if asked.dry_run:
        rerun_drawing.show_count(reanalysing.count_rerun(settings, wanted), as_json=asked.json)
        return 0
    report = reanalysing.reanalyse(settings, wanted, asked.workers)
    rerun_drawing.show_rerun(report, as_json=asked.json)
    return 0


def _compare(asked: argparse.Namespace) -> int:
    if not 0 <= asked.min_agreement <= 1:
        raise Refused(f"--min-agreement {asked.min_agreement:g}: give a share from 0 to 1")
    settings = settings_of(asked)
    found = reanalysing.compare_part(settings, asked.part, promote=asked.promote, min_agreement=asked.min_agreement)
    rerun_drawing.show_comparison(found, as_json=asked.json)
    if asked.promote and found.promoted is None:
        raise Refused(
            f"nothing was promoted: {found.agreement:.1%} agree, and --min-agreement is {asked.min_agreement:.1%}"
        )
    return 0


def read_beginning(text: str) -> datetime:
    """Read a time: a date (its beginning), a time, or a span such as ``30d`` before now; UTC without an offset.

    Raises:
        Refused: ``text`` is none of these.
    """
    text = text.strip()
    if text[-1:] in "smhdw" and text[:-1].isdigit():
        return datetime.now(UTC) - read_span(text, "--since")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(
            f"--since {text!r}: give a date or time such as 2026-01-31 or 2026-01-31T18:00Z, or a span such as 30d"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
