"""The metrics of this process and their exposition in Prometheus' text form; add one here to count something new.

Counters and distributions that are written on every request are plain cells: prometheus-client's own take a lock and
search the labels anew at each call, ten times the price. ``exposition.py`` writes their lines.
Cells are written from the loop's thread alone; what other threads count (``log_dropped_total``) is
prometheus-client's own, with its lock.
"""

from __future__ import annotations

import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from time import time
from typing import Any, Generic, TypeVar, cast

import prometheus_client
from msgspec import Struct
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from convo.observe import exposition as exposition_lines

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""What ``exposition`` is written in."""
OPENMETRICS_TYPE = openmetrics.CONTENT_TYPE_LATEST
"""What ``openmetrics_exposition`` is written in."""
_EOF = b"# EOF\n"
_NEVER = re.compile(r";\s*q=0(\.0*)?\s*(;|\Z)")

WAIT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
PASS_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
ROW_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Total:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount``."""
        self.value += amount


class Distribution:
    """How often a figure fell at or below each bound, and the sum of all."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, tuple[float, float, str, str]] = {}

    def observe(self, figure: float) -> None:
        """Note one figure, in the unit of the family's name."""
        self.counts[bisect_left(self.bounds, figure)] += 1
        self.total += figure

    def note_exemplar(self, figure: float, trace_id: str, span_id: str) -> None:
        """Note in which trace a figure was met that ``observe`` notes as well: the last one of each bucket is shown."""
        self.exemplars[bisect_left(self.bounds, figure)] = (figure, time(), trace_id, span_id)

    def cumulative(self) -> list[tuple[str, float]]:
        """List each bound with the number of figures at or below it."""
        reached, rows = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            reached += count
            rows.append(("+Inf" if bound == float("inf") else str(bound), float(reached)))
        return rows


Cell = TypeVar("Cell")


class Family(Generic[Cell]):
    """The cells of one name, one for each combination of label values that was ever asked for."""

    def __init__(self, name: str, text: str, label_names: tuple[str, ...], new_cell: Callable[[], Cell]) -> None:
        self.name = name
        self.text = text
        self.label_names = label_names
        self.cells: dict[tuple[str, ...], Cell] = {}
        self._new_cell = new_cell

    def labels(self, *values: str) -> Cell:
        """Find the cell of these label values, in the order of the family's label names.

        Raises:
            ValueError: there are more or fewer values than names.
        """
        cell = self.cells.get(values)
        return self._add(values) if cell is None else cell

    def _add(self, values: tuple[str, ...]) -> Cell:
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {values}")
        cell = self.cells[values] = self._new_cell()
        return cell


class Folding(Collector):
    """Shows families of cells to prometheus-client when it collects."""

    def __init__(self) -> None:
        self._counts: list[Family[Total]] = []
        self._distributions: list[Family[Distribution]] = []

    def count(self, name: str, text: str, *label_names: str) -> Family[Total]:
        """Add a family of counts; Prometheus' ``_total`` is part of the name."""
        family = Family(name, text, label_names, Total)
        self._counts.append(family)
        return family

    def distribution(
        self, name: str, text: str, *label_names: str, bounds: tuple[float, ...] = WAIT_BOUNDS
    ) -> Family[Distribution]:
        """Add a family of distributions over ``bounds``."""
        family = Family(name, text, label_names, lambda: Distribution(bounds))
        self._distributions.append(family)
        return family

    def collect(self) -> Iterator[Metric]:
        """Fold every cell into prometheus-client's families."""
        for counts in self._counts:
            yield _fold_counts(counts)
        for distributions in self._distributions:
            yield _fold_distributions(distributions)

    def write(self, *, openmetrics: bool) -> Iterator[str]:
        """Write every cell, the lines of one at a time, in either form; exemplars are OpenMetrics' alone."""
        for counts in self._counts:
            yield exposition_lines.head(counts.name, counts.text, "counter", openmetrics=openmetrics)
            for values, total in list(counts.cells.items()):
                yield exposition_lines.count_line(counts.name, _labels_of(counts, values), total.value)
        for family in self._distributions:
            yield exposition_lines.head(family.name, family.text, "histogram", openmetrics=openmetrics)
            for values, cell in list(family.cells.items()):
                exemplars = dict(cell.exemplars) if openmetrics else {}
                labels = _labels_of(family, values)
                yield exposition_lines.distribution_lines(family.name, labels, cell.cumulative(), cell.total, exemplars)


def _labels_of(family: Family[Any], values: tuple[str, ...]) -> exposition_lines.Labels:
    return exposition_lines.Labels(family.label_names, values)


def _fold_counts(family: Family[Total]) -> CounterMetricFamily:
    metric = CounterMetricFamily(family.name, family.text, labels=family.label_names)
    for values, cell in list(family.cells.items()):
        metric.add_metric(values, cell.value)
    return metric


def _fold_distributions(family: Family[Distribution]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(family.name, family.text, labels=family.label_names)
    for values, cell in list(family.cells.items()):
        buckets: list[Any] = list(cell.cumulative())
        for at, (figure, noted_at, trace_id, span_id) in list(cell.exemplars.items()):
            buckets[at] = (*buckets[at], Exemplar({"trace_id": trace_id, "span_id": span_id}, figure, noted_at))
        metric.add_metric(values, buckets=buckets, sum_value=cell.total)
    return metric


_folding = Folding()
_others = CollectorRegistry()
"""What is prometheus-client's own."""
ProcessCollector(registry=_others)
registry = CollectorRegistry()
registry.register(_folding)
registry.register(cast("Collector", _others))

# --- requests
requests_total = _folding.count("convo_requests_total", "Requests answered.", "route", "method", "status")
requests_on_deadline_total = _folding.count(
    "convo_requests_on_deadline_total", "Requests that ended on a deadline of convo."
).labels()
accept_seconds = _folding.distribution(
    "convo_accept_seconds", "From the head of an accepted conversation to its receipt."
).labels()

# --- connections
CONNECTION_PHASES = ("handshake", "idle", "head", "body", "handler", "write", "stream", "linger")
connections = Gauge("convo_connections", "Open client connections, by what they do.", ["phase"], registry=_others)
event_streams = Gauge("convo_event_streams", "Open streams of events.", registry=_others)
connection_ended_total = _folding.count("convo_connection_ended_total", "Client connections that ended.", "reason")

# --- the keys of clients
KEY_REFUSALS = ("wrong", "limited", "crowded", "not_read")
keys_refused_total = _folding.count(
    "convo_keys_refused_total",
    "Keys refused: wrong, limited by address, crowded out by other unknown ones, or not read for too long.",
    "reason",
)
for _reason in KEY_REFUSALS:
    keys_refused_total.labels(_reason)

# --- admission
intake_in_flight = Gauge("convo_intake_in_flight", "Accept requests under way.", registry=_others)
intake_in_flight_bytes = Gauge(
    "convo_intake_in_flight_bytes", "Bytes that the accept requests under way may hold.", registry=_others
)

reads_in_flight = Gauge("convo_reads_in_flight", "Reads under way.", registry=_others)
reads_in_flight_bytes = Gauge(
    "convo_reads_in_flight_bytes",
    "Bytes that the reads under way and their unsent answers hold.",
    registry=_others,
)

# --- the audit log
audit_rows_waiting = Gauge(
    "convo_audit_rows_waiting", "Rows of the audit log that are not stored yet.", registry=_others
)

# --- retention
RETIRED = ("conversations", "dead_letters", "logs", "runs", "memories", "audit_rows")
retired_total = _folding.count("convo_retired_total", "What was over and was removed by retention.", "what")
for _what in RETIRED:
    retired_total.labels(_what)

# --- logs in object storage
logs_packed_total = _folding.count("convo_logs_packed_total", "Logs that this process has moved into objects.").labels()
log_object_bytes_total = _folding.count(
    "convo_log_object_bytes_total", "Bytes of objects of logs that this process has written."
).labels()
log_objects_erased_total = _folding.count(
    "convo_log_objects_erased_total", "Objects of logs that this process has deleted, with all their versions."
).labels()
old_logs_read_total = _folding.count(
    "convo_old_logs_read_total", "Logs read that lie in objects: found in memory (hit) or asked for (miss).", "outcome"
)
local_log_bytes = Gauge(
    "convo_local_log_bytes",
    "Bytes of logs in PostgreSQL, where logs.local_bytes_max is set and this process moves logs.",
    registry=_others,
)

# --- events
events_numbered_total = _folding.count(
    "convo_events_numbered_total", "Events that this process has put in their order."
).labels()

events_published_total = _folding.count(
    "convo_events_published_total", "Events that RabbitMQ has confirmed to this process."
).labels()
queue_messages_total = _folding.count(
    "convo_queue_messages_total", "Messages of rabbitmq.intake_queue, by what became of them.", "outcome"
)
webhook_attempts_total = _folding.count(
    "convo_webhook_attempts_total", "Attempts to deliver an event or a ping to an endpoint, by outcome.", "outcome"
)

# --- the committer
intake_batch_rows = _folding.distribution(
    "convo_intake_batch_rows", "Conversations in one transaction of the committer.", bounds=ROW_BOUNDS
).labels()
intake_commit_seconds = _folding.distribution(
    "convo_intake_commit_seconds", "One transaction of the committer, fsync included."
).labels()

# --- batches of a client
batch_lines_total = _folding.count(
    "convo_batch_lines_total", "Lines of batches, by the status of their answer.", "status"
)

# --- every named wait
wait_seconds = _folding.distribution("convo_wait_seconds", "Time inside a named deadline.", "name")
deadline_exceeded_total = _folding.count("convo_deadline_exceeded_total", "Named deadlines that ran out.", "name")

# --- the database
database_connections = Gauge(
    "convo_database_connections", "Pooled connections in use, by purpose.", ["purpose"], registry=_others
)
database_failures_total = _folding.count(
    "convo_database_failures_total", "Units of database work that failed because of the database, by code.", "code"
)

# --- remote dependencies
remote_calls_total = _folding.count(
    "convo_remote_calls_total", "Attempts to call a dependency, by outcome.", "dependency", "outcome"
)
retries_total = _folding.count(
    "convo_retries_total", "Retries made, or refused by their budget.", "dependency", "verdict"
)
llm_tokens_total = _folding.count(
    "convo_llm_tokens_total",
    "Tokens of model calls: in, out, and cached, which are among those in.",
    *("server", "part", "kind"),
)
llm_price_total = _folding.count(
    "convo_llm_price_total", "What model calls cost, in the currency of the prices.", "server", "part"
)
llm_bot_tokens_total = _folding.count(
    "convo_llm_bot_tokens_total", "Tokens by bot; past 100 bots the others are one.", "tenant", "bot", "kind"
)
llm_bot_price_total = _folding.count(
    "convo_llm_bot_price_total", "What model calls cost by bot; past 100 bots the others are one.", "tenant", "bot"
)
llm_unknown_calls_total = _folding.count(
    "convo_llm_unknown_calls_total", "Answered model calls whose server did not name their tokens.", "server"
)
llm_unpriced_calls_total = _folding.count(
    "convo_llm_unpriced_calls_total", "Answered model calls that count as free because nothing is priced.", "server"
)
llm_spent_today = Gauge(
    "convo_llm_spent_today", "What all processes have spent since 00:00 UTC, as last read.", registry=_others
)
breaker_open = Gauge("convo_breaker_open", "1 while the breaker is open.", ["dependency"], registry=_others)

# --- jobs and their parts
jobs = Gauge("convo_jobs", "Jobs by state, sampled.", ["state"], registry=_others)
oldest_ready_job_age_seconds = Gauge(
    "convo_oldest_ready_job_age_seconds", "Age of the oldest job that is ready and due, sampled.", registry=_others
)
part_seconds = _folding.distribution("convo_part_seconds", "One attempt at one part.", "part", "outcome")
local_analysis_seconds_total = _folding.count(
    "convo_local_analysis_seconds_total", "Seconds for which the embedded analyst had the interpreter."
).labels()
analyses_share = Gauge(
    "convo_analyses_share", "The share of the interpreter that analyses may have, besides accepts.", registry=_others
)
jobs_ended_total = _folding.count("convo_jobs_ended_total", "Endings of leased jobs.", "ending")
leases_rescued_total = _folding.count("convo_leases_rescued_total", "Leases whose holder was gone.").labels()
ledger_gaps = Gauge("convo_ledger_gaps", "Figures of a day that differ from the ledger's.", registry=_others)
handover_total = _folding.count(
    "convo_handover_total", "Logs that a worker found in memory (hit) or had to read (miss).", "outcome"
)

# --- alerts, and the canary
alerts_active = Gauge("convo_alerts_active", "Conditions that last, by level.", ["level"], registry=_others)
alert_conditions = Gauge(
    "convo_alert_conditions", "Conditions that last, by the type of their alert.", ["type"], registry=_others
)
alerts_delivered_total = _folding.count("convo_alerts_delivered_total", "Messages that a sink accepted.", "sink")
alerts_dropped_total = _folding.count(
    "convo_alerts_dropped_total",
    "Messages that a sink did not get: its buffer was full, or it failed.",
    "sink",
    "reason",
)
canary_seconds = _folding.distribution("convo_canary_seconds", "From the sending of a canary to its score.").labels()
canaries_total = _folding.count("convo_canaries_total", "Canaries that ended, by outcome.", "outcome")

# --- traces
SPANS_DROPPED = ("queue_full", "failed", "refused", "stopped")
spans_sent_total = _folding.count("convo_spans_sent_total", "Spans of traces that the collector has taken.").labels()
spans_dropped_total = _folding.count(
    "convo_spans_dropped_total",
    "Spans that were not sent: too many waited, the collector failed or refused them, or the process stopped.",
    "reason",
)
otel_records_sent_total = _folding.count(
    "convo_otel_records_sent_total", "Log records that the collector has taken."
).labels()
otel_records_dropped_total = _folding.count(
    "convo_otel_records_dropped_total",
    "Log records that were not sent: too many waited, the collector failed or refused them, or the process stopped.",
    "reason",
)
for _reason in SPANS_DROPPED:
    spans_dropped_total.labels(_reason)
    otel_records_dropped_total.labels(_reason)

# --- capacity
load_ratio = Gauge(
    "convo_load_ratio",
    "How full this process is, 1 being full: the largest of convo_load_share. NaN without capacity.sample_seconds.",
    registry=_others,
)
# Not 0: that would be an idle process, and an autoscaler would take it away.
load_ratio.set(float("nan"))
load_share = Gauge(
    "convo_load_share",
    "How full a resource of this process is, as a smooth mean; workers up to 2, by the age of the oldest due job.",
    ["resource"],
    registry=_others,
)

# --- this process
loop_pass_seconds = _folding.distribution(
    "convo_loop_pass_seconds", "One pass of the scheduler, in which nothing else can run.", bounds=PASS_BOUNDS
).labels()
loop_blocked_total = _folding.count("convo_loop_blocked_total", "Passes over observe.loop_block_seconds.", "cause")
log_dropped_total = prometheus_client.Counter(
    "convo_log_dropped_total", "Lines of the log and of standard output that could not be written.", registry=_others
)
build_info = Gauge("convo_build_info", "Always 1; the labels show what runs.", ["version", "python"], registry=_others)


def set_build_info(version: str) -> None:
    """Show which version of convo runs, and on which Python."""
    build_info.labels(version, platform.python_version()).set(1)


class MetricDescription(Struct, frozen=True, kw_only=True):
    """One metric as it is exposed; ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def describe_metrics() -> list[MetricDescription]:
    """Return every metric that is exposed, with its labels, whether anything was counted or not."""
    labels = _labels()
    return [
        MetricDescription(
            name=f"{one.name}_total" if one.type == "counter" else one.name,
            kind=one.type,
            labels=labels.get(one.name, ()),
            text=one.documentation,
        )
        for one in registry.collect()
    ]


def _labels() -> dict[str, tuple[str, ...]]:
    """Find the label names of every family; one that is kept as a single cell has none."""
    found: dict[str, tuple[str, ...]] = {}
    for value in globals().values():
        if isinstance(value, Family):
            found[value.name.removesuffix("_total")] = value.label_names
        # prometheus-client has no public name for the labels of a gauge that nobody has set yet.
        elif isinstance(names := getattr(value, "_labelnames", None), tuple):
            found[value._name] = names  # noqa: SLF001
    return found


class _OneMetric(Struct, frozen=True):
    """A registry of one metric."""

    metric: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric


def _nothing() -> None:
    """Do nothing after a metric was written."""


def exposition(after_some: Callable[[], None] = _nothing) -> bytes:
    """Write every metric in Prometheus' text form, as ``CONTENT_TYPE`` says; call ``after_some`` after a few lines."""
    return _written(generate_latest, after_some, openmetrics=False)


def takes_openmetrics(accept: str) -> bool:
    """Return whether who sent this ``Accept`` header names OpenMetrics among what it takes."""
    kinds = [one.strip() for one in accept.split(",")]
    return any(
        kind.partition(";")[0].strip().lower() == "application/openmetrics-text" and not _NEVER.search(kind)
        for kind in kinds
    )


def openmetrics_exposition(after_some: Callable[[], None] = _nothing) -> bytes:
    """Write every metric in OpenMetrics' form, with the traces in which figures were met (``OPENMETRICS_TYPE``)."""
    return _written(_one_in_openmetrics, after_some, openmetrics=True) + _EOF


def _written(
    write: Callable[[CollectorRegistry], bytes], after_some: Callable[[], None], *, openmetrics: bool
) -> bytes:
    parts = []
    for lines in _folding.write(openmetrics=openmetrics):
        parts.append(lines.encode())
        after_some()
    for metric in _others.collect():
        parts.append(write(cast("CollectorRegistry", _OneMetric(metric))))
        after_some()
    return b"".join(parts)


def _one_in_openmetrics(one: CollectorRegistry) -> bytes:
    # prometheus-client carries no types here.
    text: bytes = openmetrics.generate_latest(one)  # type: ignore[no-untyped-call]
    return text.removesuffix(_EOF)
