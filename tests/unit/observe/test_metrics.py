from __future__ import annotations

import sys

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from convo.observe import metrics
from convo.observe.metrics import Distribution, Family, Folding, Total

NAMES = {
    "convo_requests",
    "convo_accept_seconds",
    "convo_connections",
    "convo_connection_ended",
    "convo_intake_batch_rows",
    "convo_intake_commit_seconds",
    "convo_wait_seconds",
    "convo_deadline_exceeded",
    "convo_jobs",
    "convo_oldest_ready_job_age_seconds",
    "convo_part_seconds",
    "convo_jobs_ended",
    "convo_leases_rescued",
    "convo_log_dropped",
    "convo_loop_pass_seconds",
    "convo_loop_blocked",
    "convo_handover",
    "convo_build_info",
}


def value(name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_promised_figure_is_exposed_and_can_be_parsed_back() -> None:
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    assert {family.name for family in families} >= NAMES
    assert all(family.documentation for family in families)


def test_the_exposition_has_the_content_type_of_the_text_form() -> None:
    assert metrics.CONTENT_TYPE.startswith("text/plain; version=")


def test_a_count_is_exposed_under_its_labels() -> None:
    before = value("convo_requests_total", route="/x", method="GET", status="200") or 0.0
    metrics.requests_total.labels("/x", "GET", "200").inc()
    metrics.requests_total.labels("/x", "GET", "404").inc(2)
    assert value("convo_requests_total", route="/x", method="GET", status="200") == before + 1


def test_a_distribution_counts_a_figure_in_every_bound_at_or_above_it() -> None:
    cell = Distribution((1.0, 2.0, 5.0))
    for figure in (0.5, 1.0, 1.5, 7.0):
        cell.observe(figure)
    assert cell.cumulative() == [("1.0", 2.0), ("2.0", 3.0), ("5.0", 3.0), ("+Inf", 4.0)]
    assert cell.total == 10.0


def test_a_distribution_is_exposed_with_its_buckets_count_and_sum() -> None:
    metrics.wait_seconds.labels("test.wait").observe(0.004)
    metrics.wait_seconds.labels("test.wait").observe(40.0)
    assert value("convo_wait_seconds_bucket", name="test.wait", le="0.005") == 1
    assert value("convo_wait_seconds_bucket", name="test.wait", le="30.0") == 1
    assert value("convo_wait_seconds_bucket", name="test.wait", le="+Inf") == 2
    assert value("convo_wait_seconds_count", name="test.wait") == 2
    assert value("convo_wait_seconds_sum", name="test.wait") == pytest.approx(40.004)


def test_the_same_labels_find_the_same_cell() -> None:
    family = Folding().count("x_total", "X.", "a", "b")
    assert family.labels("1", "2") is family.labels("1", "2")
    assert family.labels("1", "2") is not family.labels("2", "1")


@pytest.mark.parametrize("values", [(), ("1",), ("1", "2", "3")])
def test_labels_that_do_not_fit_are_refused(values: tuple[str, ...]) -> None:
    family: Family[Total] = Family("x_total", "X.", ("a", "b"), Total)
    with pytest.raises(ValueError, match="x_total has the labels"):
        family.labels(*values)
    assert not family.cells


def test_odd_label_values_do_not_break_the_exposition() -> None:
    metrics.deadline_exceeded_total.labels('a"b\\c\nd').inc()
    families = text_string_to_metric_families(metrics.exposition().decode())
    samples = [sample for family in families for sample in family.samples]
    assert any(sample.labels.get("name") == 'a"b\\c\nd' for sample in samples)


def test_the_build_is_shown() -> None:
    metrics.set_build_info("1.2.3")
    assert value("convo_build_info", version="1.2.3", python=sys.version.split()[0]) == 1


def test_the_last_figure_of_a_bucket_that_was_met_in_a_trace_is_an_exemplar() -> None:
    folding = Folding()
    cell = folding.distribution("x_seconds", "X.", bounds=(1.0, 2.0)).labels()
    for figure, trace in ((0.5, "a" * 32), (0.7, "b" * 32), (9.0, "c" * 32)):
        cell.observe(figure)
        cell.note_exemplar(figure, trace, "d" * 16)
    (family,) = folding.collect()
    found = {one.labels["le"]: one.exemplar for one in family.samples if one.name == "x_seconds_bucket"}
    assert found["2.0"] is None
    assert found["1.0"] is not None
    assert found["+Inf"] is not None
    assert (found["1.0"].value, found["1.0"].labels) == (0.7, {"trace_id": "b" * 32, "span_id": "d" * 16})
    assert (found["+Inf"].value, found["+Inf"].labels["trace_id"]) == (9.0, "c" * 32)


def test_the_form_of_openmetrics_can_be_parsed_back_and_has_the_same_figures() -> None:
    families = list(openmetrics.text_string_to_metric_families(metrics.openmetrics_exposition().decode()))  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= NAMES


@pytest.mark.parametrize(
    ("accept", "takes"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3", True),
        ("text/plain, Application/OpenMetrics-Text", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text; version=1.0.0; q=0.0, text/plain", False),
    ],
)
def test_openmetrics_is_written_for_who_names_it(accept: str, takes: bool) -> None:  # noqa: FBT001
    assert metrics.takes_openmetrics(accept) is takes
