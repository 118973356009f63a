#!/usr/bin/env python3
"""Writes a board for Grafana, rules for Prometheus and monitors for Datadog, from convo's own metrics and alerts.

Open it to add a panel or a rule. A metric or a label that convo does not have is an error here, and a test compares the
files with what this makes: none of them can name what is gone.

    .venv/bin/python scripts/deploy/generate.py                         # writes the three files anew
    .venv/bin/python scripts/deploy/generate.py --public-url https://convo.example.com --job convo --to FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

from convo.alerts.formats import handbook_path  # noqa: E402  (found beside this file)
from convo.alerts.rules import KINDS, AlertKind  # noqa: E402
from convo.observe.metrics import MetricDescription, describe_metrics  # noqa: E402

Json = dict[str, Any]
BOARD, RULES, MONITORS = "grafana-board.json", "prometheus-rules.yaml", "datadog-monitors.json"
_KNOWN: dict[str, MetricDescription] = {one.name: one for one in describe_metrics()}
# In Grafana the width of its window, in rules a fixed one.
_WINDOW = "$__rate_interval"
_ON_BOARD = ("job", "instance")
# The agent's OpenMetrics check puts its namespace before each name, and leaves out Prometheus' _total.
_DATADOG = "convo"
_DATADOG_PRIORITY = {"CRITICAL": 1, "HIGH": 2, "MEDIUM": 3, "LOW": 4}


# --- expressions


def series(name: str, labels: Mapping[str, str], *, suffix: str = "", on_board: bool = True) -> str:
    """Write one metric with its filters, by label.

    Raises:
        ValueError: convo has no such metric, or it has no such label.
    """
    if name not in _KNOWN:
        raise ValueError(f"there is no metric {name}")
    for label in labels:
        if label not in _KNOWN[name].labels:
            raise ValueError(f"{name} has the labels {_KNOWN[name].labels}, not {label}")
    filters = [f"{label}{_operator(value)}" for label, value in labels.items()]
    filters += [f'{label}=~"${label}"' for label in _ON_BOARD if on_board]
    return f"{name}{suffix}{{{','.join(filters)}}}" if filters else f"{name}{suffix}"


def _operator(value: str) -> str:
    return f'=~"{value.removeprefix("~")}"' if value.startswith("~") else f'="{value}"'


def rate(name: str, *by: str, **labels: str) -> str:
    """Write how fast a counter grows, a second."""
    return f"{_summed(name, by)} (rate({series(name, labels)}[{_WINDOW}]))"


def gauge(name: str, *by: str, how: str = "sum", **labels: str) -> str:
    """Write a gauge of all processes together."""
    return f"{_summed(name, by, how)} ({series(name, labels)})"


def quantile(share: float, name: str, *by: str, **labels: str) -> str:
    """Write a quantile of a histogram."""
    inner = f"{_summed(name, (*by, 'le'))} (rate({series(name, labels, suffix='_bucket')}[{_WINDOW}]))"
    return f"histogram_quantile({share}, {inner})"


def _summed(name: str, by: Iterable[str], how: str = "sum") -> str:
    by = tuple(by)
    for label in by:
        if label not in (*_KNOWN[name].labels, "le", "instance"):
            raise ValueError(f"{name} has the labels {_KNOWN[name].labels}, not {label}")
    return f"{how} by ({', '.join(by)})" if by else how


# --- the board


def _panels() -> Iterator[tuple[str, list[tuple[str, str, list[tuple[str, str]]]]]]:
    """Yield each row of the board with its panels: title, unit, and expressions with their legends."""
    seconds = "convo_accept_seconds"
    yield (
        "Accepts",
        [
            ("Accepted conversations", "reqps", [(rate("convo_requests_total", status="202"), "accepted")]),
            (
                "Time of an accept",
                "s",
                [(quantile(share, seconds), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)],
            ),
            (
                "Answers that are no success",
                "reqps",
                [(rate("convo_requests_total", "route", "status", status="~[45].."), "{{route}} {{status}}")],
            ),
            (
                "Under way",
                "short",
                [
                    (gauge("convo_intake_in_flight"), "accepts"),
                    (gauge("convo_reads_in_flight"), "reads"),
                    (gauge("convo_event_streams"), "event streams"),
                ],
            ),
        ],
    )
    yield (
        "Analyses",
        [
            # Each process counts the jobs of all.
            ("Jobs", "short", [(gauge("convo_jobs", "state", how="max"), "{{state}}")]),
            ("Oldest ready job", "s", [(gauge("convo_oldest_ready_job_age_seconds", how="max"), "age")]),
            ("Endings of jobs", "ops", [(rate("convo_jobs_ended_total", "ending"), "{{ending}}")]),
            ("Time of a part, p95", "s", [(quantile(0.95, "convo_part_seconds", "part"), "{{part}}")]),
        ],
    )
    yield (
        "Dependencies",
        [
            (
                "Calls",
                "ops",
                [(rate("convo_remote_calls_total", "dependency", "outcome"), "{{dependency}} {{outcome}}")],
            ),
            ("Open breakers", "short", [(gauge("convo_breaker_open", "dependency"), "{{dependency}}")]),
            ("Retries", "ops", [(rate("convo_retries_total", "dependency", "verdict"), "{{dependency}} {{verdict}}")]),
            (
                "Model tokens and costs",
                "short",
                [
                    (rate("convo_llm_tokens_total", "kind"), "tokens {{kind}} a second"),
                    (gauge("convo_llm_spent_today", how="max"), "spent today"),
                ],
            ),
        ],
    )
    yield (
        "Database",
        [
            (
                "Time of a commit",
                "s",
                [(quantile(share, "convo_intake_commit_seconds"), f"p{share * 100:g}") for share in (0.5, 0.99)],
            ),
            ("Connections in use", "short", [(gauge("convo_database_connections", "purpose"), "{{purpose}}")]),
            ("Failures", "ops", [(rate("convo_database_failures_total", "code"), "{{code}}")]),
            ("Figures that differ from the ledger's", "short", [(gauge("convo_ledger_gaps", how="max"), "gaps")]),
        ],
    )
    yield (
        "Waits",
        [
            ("Waits by name, p99", "s", [(quantile(0.99, "convo_wait_seconds", "name"), "{{name}}")]),
            ("Deadlines that ran out", "ops", [(rate("convo_deadline_exceeded_total", "name"), "{{name}}")]),
            ("A pass of the loop, p99", "s", [(quantile(0.99, "convo_loop_pass_seconds", "instance"), "{{instance}}")]),
            ("Blocked loop", "ops", [(rate("convo_loop_blocked_total", "cause"), "{{cause}}")]),
        ],
    )
    yield (
        "Alerts and events",
        [
            ("Alerts that last", "short", [(gauge("convo_alert_conditions", "type", how="max"), "{{type}}")]),
            (
                "Messages of alerts",
                "ops",
                [
                    (rate("convo_alerts_delivered_total", "sink"), "{{sink}}"),
                    (rate("convo_alerts_dropped_total", "sink", "reason"), "{{sink}} dropped: {{reason}}"),
                ],
            ),
            ("Attempts of webhooks", "ops", [(rate("convo_webhook_attempts_total", "outcome"), "{{outcome}}")]),
            (
                "Way of a canary, p95",
                "s",
                [(quantile(0.95, "convo_canary_seconds"), "seconds")],
            ),
        ],
    )


def board() -> Json:
    """Make the board."""
    panels: list[Json] = []
    top = 0
    for title, row in _panels():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": top},
            }
        )
        panels += [
            _panel(len(panels) + number + 1, one, {"h": 8, "w": 6, "x": 6 * number, "y": top + 1})
            for number, one in enumerate(row)
        ]
        top += 9
    return {
        "uid": "convo",
        "title": "convo",
        "tags": ["convo"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                _variable("job", f"label_values({series('convo_build_info', {}, on_board=False)}, job)"),
                _variable(
                    "instance",
                    f'label_values({series("convo_build_info", {}, on_board=False)}{{job=~"$job"}}, instance)',
                ),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "query": query,
        "datasource": _SOURCE,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panel(number: int, panel: tuple[str, str, list[tuple[str, str]]], place: Json) -> Json:
    title, unit, targets = panel
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place_), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for place_, (expression, legend) in enumerate(targets)
        ],
    }


# --- the rules


def rules(job: str, public_url: str) -> list[Json]:
    """Make the groups of rules: one for each alert of convo, and what convo cannot report of itself."""
    return [
        {"name": "convo-alerts", "rules": [_of_alert(name, kind, public_url) for name, kind in KINDS.items()]},
        {"name": "convo-process", "rules": list(_of_process(job, public_url))},
    ]


def alert_name(kind: str) -> str:
    """Return the name that a rule has for a type of alert: ``DEAD_LETTER`` is ``ConvoDeadLetter``."""
    return "Convo" + "".join(word.capitalize() for word in kind.split("_"))


def _of_alert(name: str, kind: AlertKind, public_url: str) -> Json:
    # One process raises those that all share; of the others each process has its own.
    by = "job" if kind.shared else "job, instance"
    condition = series("convo_alert_conditions", {"type": name}, on_board=False)
    where = "" if kind.shared else " at {{ $labels.instance }}"
    return {
        "alert": alert_name(name),
        "expr": f"max by ({by}) ({condition}) > 0",
        "labels": {"severity": kind.level.lower()},
        "annotations": {
            "summary": f"convo reports {name}{where}",
            "description": kind.do,
            "runbook_url": public_url + handbook_path(name),
        },
    }


class ProcessRule(Struct, frozen=True, kw_only=True):
    """A rule on what convo cannot report of itself; ``wait`` is how long it holds before the rule fires."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    do: str


def _of_process(job: str, public_url: str) -> Iterator[Json]:
    for rule in _process_rules(job):
        yield {
            "alert": rule.name,
            "expr": rule.expr,
            "for": rule.wait,
            "labels": {"severity": rule.severity},
            "annotations": {
                "summary": rule.summary,
                "description": rule.do,
                "runbook_url": f"{public_url}/docs/operating",
            },
        }


def _process_rules(job: str) -> Iterator[ProcessRule]:
    def raw(name: str, **labels: str) -> str:
        return series(name, labels, on_board=False)

    requests, refused = raw("convo_requests_total"), raw("convo_requests_total", status="~5..")
    yield ProcessRule(
        name="ConvoDown",
        expr=f'up{{job="{job}"}} == 0',
        wait="1m",
        severity="critical",
        summary="convo does not answer at {{ $labels.instance }}",
        do="See whether the process runs, and whether /metrics can be read (a key, server.hosts).",
    )
    yield ProcessRule(
        name="ConvoAbsent",
        expr=f'absent({raw("convo_build_info")}{{job="{job}"}})',
        wait="5m",
        severity="critical",
        summary="no process of convo is seen",
        do="Start one, or correct the job of this rule (generate.py --job).",
    )
    yield ProcessRule(
        name="ConvoAnswersWithErrors",
        expr=f"sum by (job) (rate({refused}[5m])) > 0.01 * sum by (job) (rate({requests}[5m]))",
        wait="5m",
        severity="high",
        summary="over 1 % of the answers of convo are 5xx",
        do="See /readyz and the alerts of convo: the database is away, or too much arrives.",
    )
    yield ProcessRule(
        name="ConvoAlertsDropped",
        expr=f"sum by (job, sink) (increase({raw('convo_alerts_dropped_total')}[15m])) > 0",
        wait="0m",
        severity="high",
        summary="alerts of convo do not reach {{ $labels.sink }}",
        do="See alert_dropped in the log, and try it: convo alerts test.",
    )
    yield ProcessRule(
        name="ConvoLogDropped",
        expr=f"sum by (job, instance) (increase({raw('convo_log_dropped_total')}[15m])) > 0",
        wait="0m",
        severity="medium",
        summary="{{ $labels.instance }} loses lines of its log",
        do="See whether its standard output is read, and its disk.",
    )


def rules_text(groups: list[Json]) -> str:
    """Write groups of rules as YAML; every value is quoted as in JSON, which YAML takes."""
    lines = ["# Made by scripts/deploy/generate.py, which is to be changed in its place.", "groups:"]
    for group in groups:
        lines += [f"  - name: {json.dumps(group['name'])}", "    rules:"]
        for rule in group["rules"]:
            lines += _rule_lines(rule)
    return "\n".join(lines) + "\n"


def _rule_lines(rule: Json) -> Iterator[str]:
    mark = "      - "
    for key, value in rule.items():
        if isinstance(value, dict):
            yield f"{mark}{key}:"
            yield from (f"          {name}: {json.dumps(text, ensure_ascii=False)}" for name, text in value.items())
        else:
            yield f"{mark}{key}: {json.dumps(value, ensure_ascii=False)}"
        mark = "        "


# --- Datadog


def monitors(public_url: str) -> list[Json]:
    """Make a monitor for each alert, and one for alerts that were dropped."""
    found = [_monitor_of(name, kind, public_url) for name, kind in KINDS.items()]
    dropped = f"{_DATADOG}.{_datadog_name('convo_alerts_dropped_total')}"
    found.append(
        _monitor(
            "convo: alerts do not reach a sink",
            f"sum(last_15m):sum:{dropped}{{*}} by {{sink}}.as_count() > 0",
            "See alert_dropped in the log, and try it: convo alerts test.",
            2,
        )
    )
    return found


def _monitor_of(name: str, kind: AlertKind, public_url: str) -> Json:
    series("convo_alert_conditions", {"type": name}, on_board=False)
    metric = f"{_DATADOG}.{_datadog_name('convo_alert_conditions')}"
    by = "" if kind.shared else " by {host}"
    message = f"{kind.do}\n{public_url}{handbook_path(name)}"
    # Datadog keeps the values of tags in lower case.
    query = f"max(last_5m):max:{metric}{{type:{name.lower()}}}{by} > 0"
    return _monitor(f"convo: {name}", query, message, _DATADOG_PRIORITY[kind.level])


def _monitor(name: str, query: str, message: str, priority: int) -> Json:
    return {
        "name": name,
        "type": "query alert",
        "query": query,
        "message": message,
        "tags": ["service:convo"],
        "priority": priority,
        "options": {"thresholds": {"critical": 0}, "notify_no_data": False, "include_tags": True},
    }


def _datadog_name(name: str) -> str:
    return f"{name.removesuffix('_total')}.count" if _KNOWN[name].kind == "counter" else name


# --- the files


def files(job: str = "convo", public_url: str = "") -> dict[str, str]:
    """Return what each file holds, by its name."""
    return {
        BOARD: json.dumps(board(), indent=1, ensure_ascii=False) + "\n",
        RULES: rules_text(rules(job, public_url)),
        MONITORS: json.dumps(monitors(public_url), indent=1, ensure_ascii=False) + "\n",
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the board, the rules and the monitors anew.")
    parser.add_argument("--job", default="convo", help="the name of the job in Prometheus (default: convo)")
    parser.add_argument("--public-url", default="", help="what links to the handbook begin with: server.public_url")
    parser.add_argument("--to", type=Path, default=HERE, metavar="FOLDER", help="where (default: scripts/deploy)")
    asked = parser.parse_args()
    for name, text in files(asked.job, asked.public_url.rstrip("/")).items():
        (asked.to / name).write_text(text, "utf-8")
        print(asked.to / name)


if __name__ == "__main__":
    main()
