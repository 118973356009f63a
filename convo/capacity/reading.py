"""Reads the usage of this process out of its own metrics; open it when a metric that capacity needs is renamed."""

from __future__ import annotations

import time
from collections.abc import Collection

from msgspec import structs

from convo.capacity.usage import Usage
from convo.dependencies import DEPENDENCIES, PART_PREFIX, row_name
from convo.observe import metrics
from convo.observe.metrics import Distribution

# What a dependency is called for while a conversation is analysed.
_CALLS = {
    **{name: [f"{name}.{word}" for word in row.calls if word != "forget"] for name, row in DEPENDENCIES.items()},
    # The services of all declared parts have one wait.
    PART_PREFIX: ["part.call"],
}


def read_usage(outside: Usage) -> Usage:
    """Read the metrics of this process, in the loop's own thread.

    ``outside`` has what no metric holds: the time, what the machine, the loop's thread and the pace count, and for how
    long any accept was under way.
    """
    calls = _calls()
    return structs.replace(
        outside,
        process_seconds=time.process_time(),
        accepted=metrics.intake_batch_rows.total,
        commits=float(sum(metrics.intake_commit_seconds.counts)),
        commit_seconds=metrics.intake_commit_seconds.total,
        analysed=_total(metrics.jobs_ended_total.cells.get(("settle",))),
        settles=_count("db.settle"),
        settle_seconds=_seconds(["db.settle"]),
        leases=_count("db.lease"),
        job_seconds=_seconds(["analysis.job"]),
        analyst_seconds=metrics.local_analysis_seconds_total.value,
        tokens_in=_tokens("in"),
        tokens_out=_tokens("out"),
        price=sum(cell.value for cell in metrics.llm_price_total.cells.values()),
        packed_logs=metrics.logs_packed_total.value,
        object_bytes=metrics.log_object_bytes_total.value,
        calls=calls,
        call_seconds=_call_seconds(calls),
    )


def _total(cell: metrics.Total | None) -> float:
    return 0.0 if cell is None else cell.value


def _count(name: str) -> float:
    found: Distribution | None = metrics.wait_seconds.cells.get((name,))
    return 0.0 if found is None else float(sum(found.counts))


def _seconds(names: Collection[str]) -> float:
    found: list[Distribution | None] = [metrics.wait_seconds.cells.get((name,)) for name in names]
    return sum(one.total for one in found if one is not None)


def _tokens(kind: str) -> float:
    return sum(cell.value for (_, _, one), cell in metrics.llm_tokens_total.cells.items() if one == kind)


def _calls() -> dict[str, float]:
    found: dict[str, float] = {}
    for (name, _), cell in metrics.remote_calls_total.cells.items():
        # A fallback is the language model, too.
        dependency = row_name(name)
        if dependency in DEPENDENCIES or dependency.startswith(PART_PREFIX):
            found[dependency] = found.get(dependency, 0.0) + cell.value
    return found


def _call_seconds(calls: dict[str, float]) -> dict[str, float]:
    of_parts = {name: count for name, count in calls.items() if name.startswith(PART_PREFIX)}
    found = {name: _seconds(_CALLS[name]) for name in calls if name in DEPENDENCIES}
    all_parts = sum(of_parts.values())
    seconds = _seconds(_CALLS[PART_PREFIX]) if all_parts else 0.0
    return found | {name: seconds * count / all_parts for name, count in of_parts.items()}
