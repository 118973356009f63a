"""What ``convo reanalyse`` and ``convo compare`` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from convo.commands.output import add_row, make_table, plain, print_json, show_result
from convo.plural import plural

if TYPE_CHECKING:
    from convo.commands.reanalysing import CountedRerun, PartComparison, WorkedRerun
    from convo.store.costs import ComparedCost
    from convo.store.jobs.reruns import Rerun

_SHOWN_CHARS = 200


def show_rerun(rerun: Rerun | WorkedRerun, *, as_json: bool) -> None:
    """Print how a re-run stands, and where it found nothing to do, why."""
    if as_json:
        print_json(rerun)
        return
    table = make_table(f"{rerun.part} {rerun.version}", rerun.state)
    add_row(table, "conversations looked at", f"{rerun.looked_at:,} of {rerun.total:,}")
    add_row(table, "found", rerun.counts.get("done", 0) + rerun.counts.get("promoted", 0))
    add_row(table, "wait", rerun.counts.get("waiting", 0))
    add_row(table, "failed", rerun.counts.get("failed", 0))
    show_result(table)
    if why := getattr(rerun, "why_nothing", ""):
        show_result(plain(f"{why}."))


def show_count(counted: CountedRerun, *, as_json: bool) -> None:
    """Print what a re-run would do."""
    if as_json:
        print_json(counted)
        return
    table = make_table(f"{counted.part} {counted.version}", "conversations")
    add_row(table, "would be found again", counted.conversations)
    add_row(table, "have this version", counted.up_to_date)
    show_result(table)


def _shown_cost(cost: ComparedCost) -> str:
    unknown = f"; without a word of tokens: {cost.unknown_calls:,}" if cost.unknown_calls else ""
    unpriced = f"; without a price: {cost.unpriced_calls:,}" if cost.unpriced_calls else ""
    calls = f"{cost.calls:,} {plural(cost.calls, 'call')}"
    return f"{cost.cost:,.6f}, {calls}, {cost.tokens_in:,} + {cost.tokens_out:,} tokens{unknown}{unpriced}"


def _points(points: int) -> str:
    return f"{points:+,} {plural(points, 'point')}"


def show_comparison(found: PartComparison, *, as_json: bool) -> None:
    """Print how candidates and current results agree, where they differ, and what they cost."""
    if as_json:
        print_json(found)
        return
    table = make_table(f"{found.part} {found.version}", f"re-run {found.state}")
    add_row(table, "compared", found.compared)
    add_row(table, "agree", "-" if found.agreement is None else f"{found.agreement:.1%}")
    for name, count in found.fields.items():
        add_row(table, f"differ in {name}", count)
    add_row(table, "without a current result", found.without_current)
    add_row(table, "scores that would move", f"{found.scores_moved:,}, by {_points(found.points)} in all")
    calls = sum(found.made_by.values())
    mean = f", {found.seconds / calls:.2f} s each" if calls else ""
    add_row(table, "found by", ", ".join(f"{by} ({count:,})" for by, count in found.made_by.items()) or "-")
    add_row(table, "time", f"{found.seconds:,.0f} s{mean}")
    for what, cost in (("cost", found.cost), ("cost before", found.cost_before)):
        if cost is not None:
            add_row(table, what, _shown_cost(cost))
    add_row(table, "wait, failed", f"{found.counts.get('waiting', 0):,}, {found.counts.get('failed', 0):,}")
    if found.promoted is not None:
        done = found.promoted
        moved = f"{done.moved:,} {plural(done.moved, 'score')} by {_points(done.points)}"
        promoted = f"{done.conversations:,} {plural(done.conversations, 'conversation')}"
        add_row(table, "promoted", f"{promoted}, {moved}")
    show_result(table)
    for one in found.differences:
        print_line = Console().print
        print_line(plain(f"{one.conversation_id}: {', '.join(one.fields)}"), soft_wrap=True)
        for what, value in (("current", one.current), ("candidate", one.candidate)):
            text = msgspec.json.encode(value).decode()
            print_line(plain(f"  {what}: {text[:_SHOWN_CHARS]}"), soft_wrap=True)
