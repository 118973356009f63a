"""How ``convo capacity`` is drawn on a terminal: the resources with their formulas, and the plan."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from convo.capacity.ceilings import Ceiling
from convo.capacity.forecast import CapacityReport, ManyForecast
from convo.capacity.planning import Plan
from convo.commands.output import add_row, make_table
from convo.plural import plural

_LIMITS = {"accepts": "accepts", "analyses": "analyses", "both": "accepts and analyses"}
_STEPS = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0))


def draw_capacity(report: CapacityReport) -> RenderableType:
    """Draw the whole report."""
    return Group(*_parts(report))


def _parts(report: CapacityReport) -> Iterator[RenderableType]:
    yield Text(f"{report.measured.note}.", style="" if report.measured.enough else "yellow")
    if report.resources:
        yield _resources(report)
        # Beneath the table: in a column of it they would make it wider than a terminal.
        for one in report.resources:
            yield Text(f"{one.name} ({_LIMITS[one.limits]}): {one.formula}", style="dim")
    yield _ceiling("taken in", report.accepts, report.processes)
    yield _ceiling("taken in and analysed", report.analyses, report.processes)
    if report.load_ratio is not None:
        yield Text(f"load ratio of this process now: {report.load_ratio:.2f}")
    if report.many is not None:
        yield _many(report.many)
    if report.plan is not None:
        yield _plan(report.plan)


def _resources(report: CapacityReport) -> Table:
    table = make_table("resource", "limits", "conversations/s")
    worst = {one.bottleneck for one in (report.accepts, report.analyses) if one is not None}
    for one in report.resources:
        name = Text(one.name, style="bold red" if one.name in worst else "")
        span = f"{one.per_second:,.1f} ({one.low:,.1f} to {one.high:,.1f})"
        add_row(table, name, _LIMITS[one.limits], span)
    return table


def _ceiling(what: str, ceiling: Ceiling | None, processes: int) -> Text:
    if ceiling is None:
        return Text(f"{what}: not measured", style="dim")

    def rate(count: int) -> str:
        low, high = f"{ceiling.low * count:,.1f}", f"{ceiling.high * count:,.1f}"
        if ceiling.sharpen:
            return f"between {low} and {high}/s"
        return f"at most {ceiling.per_second * count:,.1f}/s ({low} to {high})"

    one = f"{what}: {rate(1)} by one process; the bottleneck is {ceiling.bottleneck}"
    if processes > 1:
        one += f". {processes} like it: {rate(processes)}"
    if ceiling.sharpen:
        return Text(f"{one}. Not enough load was seen yet: {ceiling.sharpen}", style="yellow")
    return Text(one)


def _many(many: ManyForecast) -> Text:
    found = [
        f"{what} within {_length(seconds)}"
        for what, seconds in (("taken in", many.accept_seconds), ("analysed", many.analyse_seconds))
        if seconds is not None
    ]
    count = f"{many.conversations:,} {plural(many.conversations, 'conversation')}"
    return Text(f"{count}: {', '.join(found) or 'not known'} ({many.formula})")


def _plan(plan: Plan) -> Table:
    table = make_table(f"for {plan.per_second:,.3g}/s", "needed")
    rows: list[tuple[str, object]] = [
        ("processes", plan.processes),
        ("jobs.workers of each", plan.workers),
        *((f"{name}.concurrency of each", count) for name, count in plan.concurrency.items()),
        ("connections of PostgreSQL", plan.connections),
        ("tokens in a month, millions: in", _millions(plan.tokens_in_month)),
        ("tokens in a month, millions: out", _millions(plan.tokens_out_month)),
        ("price of a month", f"{plan.price_month:,.2f}" if plan.price_month else None),
        ("gigabytes of a month", None if plan.gigabytes_month is None else f"{plan.gigabytes_month:,.1f}"),
    ]
    for what, needed in rows:
        if needed is not None:
            add_row(table, what, needed)
    for formula in plan.formulas:
        add_row(table, Text("formula", style="dim"), formula)
    for problem in plan.problems:
        add_row(table, Text("problem", style="red"), problem)
    return table


def _millions(tokens: float | None) -> str | None:
    # With the embedded analyst there are none.
    return f"{tokens / 1e6:,.1f}" if tokens else None


def _length(seconds: float) -> str:
    for unit, size in _STEPS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
