"""What is written of counts and distributions is what prometheus-client would write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from convo.observe.metrics import Folding

ODD = 'a"b\\c\nd, {é}'


def folding() -> Folding:
    made = Folding()
    counts = made.count("x_requests_total", "Requests \\ answered,\n all.", "route", "method", "status")
    counts.labels("/x", "GET", ODD).inc()
    counts.labels("/y", "POST", "200").inc(2e6)
    made.count("x_alone_total", 'Said to be "alone".').labels().inc(12_345_678)
    made.count("x_never_total", "Never met.", "reason")
    waits = made.distribution("x_wait_seconds", "Waits.", "zone", "a", bounds=(0.001, 0.5, 10.0))
    cell = waits.labels("one", ODD)
    for figure in (0.0001, 0.3, 0.3, 20.0, 5e7):
        cell.observe(figure)
    cell.note_exemplar(0.3, "a" * 32, "b" * 16)
    cell.note_exemplar(20.0, "c" * 32, "d" * 16)
    waits.labels("two", "")
    below = made.distribution("x_change", "May be below 0.", bounds=(1.0,)).labels()
    below.observe(-3.5)
    return made


def by_client(generate: Callable[[Any], Any]) -> str:
    registry = CollectorRegistry()
    registry.register(folding())
    return bytes(generate(registry)).decode()


def test_the_text_form_is_the_clients() -> None:
    assert "".join(folding().write(openmetrics=False)) == by_client(generate_latest)


def test_the_form_of_openmetrics_is_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convo.observe.metrics.time", lambda: 1_790_000_000.25)
    assert "".join(folding().write(openmetrics=True)) + "# EOF\n" == by_client(openmetrics.generate_latest)


def test_a_piece_has_the_lines_of_one_cell() -> None:
    pieces = list(folding().write(openmetrics=False))
    assert len(pieces) == 5 + 6
    assert max(piece.count("\n") for piece in pieces) == 6
