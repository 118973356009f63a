"""The samples for autoscalers: they are valid, and name what convo has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from convo.observe import metrics

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the tools of the tests")
DEPLOY = Path(__file__).parents[3] / "scripts" / "deploy"
SAMPLES = ["hpa.yaml", "keda.yaml"]


def document(name: str) -> Any:
    (one,) = yaml.safe_load_all((DEPLOY / name).read_text("utf-8"))
    return one


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_names_only_metrics_that_there_are(name: str) -> None:
    named = set(re.findall(r"\bconvo_[a-z_]+\b", (DEPLOY / name).read_text("utf-8")))
    known = {family.name for family in metrics.registry.collect()}
    assert named == {"convo_load_ratio"} & known


@pytest.mark.parametrize("name", SAMPLES)
def test_it_goes_down_more_slowly_than_up_and_one_process_at_a_time(name: str) -> None:
    spec = document(name)["spec"]
    config = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", spec)
    up, down = config["behavior"]["scaleUp"], config["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 5 * up["stabilizationWindowSeconds"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]
    assert spec["scaleTargetRef"]["kind"] == "StatefulSet"


def test_both_aim_at_the_same_ratio() -> None:
    pods = document("hpa.yaml")["spec"]["metrics"][0]["pods"]
    (trigger,) = document("keda.yaml")["spec"]["triggers"]
    assert pods["target"] == {"type": "AverageValue", "averageValue": "700m"}
    assert (trigger["type"], trigger["metricType"], trigger["metadata"]["threshold"]) == (
        "prometheus",
        "AverageValue",
        "0.7",
    )
