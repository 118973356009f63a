from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from convo.alerts.rules import KINDS
from convo.observe.metrics import describe_metrics
from tests.support.source_tree import ROOT

FOLDER = ROOT / "scripts/deploy"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = loaded()


@pytest.mark.parametrize("name", [generate.BOARD, generate.RULES, generate.MONITORS])
def test_the_files_are_what_convos_metrics_and_alerts_make_of_them(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == generate.files()[name], "run scripts/deploy/generate.py"


def expressions() -> list[str]:
    board: list[str] = [target["expr"] for panel in generate.board()["panels"] for target in panel.get("targets", ())]
    return board + [rule["expr"] for group in generate.rules("convo", "") for rule in group["rules"]]


def test_every_metric_that_is_named_is_exposed() -> None:
    known = {one.name for one in describe_metrics()}
    named = {name for one in expressions() for name in re.findall(r"convo_[a-z_]+", one)}
    assert {re.sub(r"_bucket$", "", name) for name in named} <= known
    assert len(named) > 25


def test_a_metric_or_a_label_that_is_gone_cannot_be_named() -> None:
    with pytest.raises(ValueError, match="there is no metric convo_gone_total"):
        generate.rate("convo_gone_total")
    with pytest.raises(ValueError, match="convo_requests_total has the labels"):
        generate.rate("convo_requests_total", "path")
    with pytest.raises(ValueError, match="convo_requests_total has the labels"):
        generate.rate("convo_requests_total", path="/")


def test_every_alert_has_a_rule_and_a_monitor_with_what_to_do_and_its_section() -> None:
    by_alert = {rule["alert"]: rule for group in generate.rules("convo", "https://c") for rule in group["rules"]}
    monitors = {one["name"]: one for one in generate.monitors("https://c")}
    for name, kind in KINDS.items():
        rule = by_alert[generate.alert_name(name)]
        assert rule["annotations"]["runbook_url"] == f"https://c/docs/alerts#{name.lower()}"
        assert rule["annotations"]["description"] == kind.do
        assert rule["labels"] == {"severity": kind.level.lower()}
        monitor = monitors[f"convo: {name}"]
        assert monitor["message"] == f"{kind.do}\nhttps://c/docs/alerts#{name.lower()}"
        assert f"{{type:{name.lower()}}}" in monitor["query"]


def test_the_panels_of_the_board_stand_side_by_side_and_have_numbers_of_their_own() -> None:
    panels = generate.board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23


# --- with Prometheus' own program


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    return found


def run(promtool: str, *arguments: str) -> str:
    ran = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_prometheus_takes_the_rules(promtool: str) -> None:
    printed = run(promtool, "check", "rules", str(FOLDER / generate.RULES))
    assert re.search(rf"SUCCESS: {len(KINDS) + 5} rules found", printed)


def test_prometheus_takes_every_expression_of_the_board(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"convo:panel:{number}", "expr": one.replace("$__rate_interval", "5m")}
        for number, one in enumerate(expressions())
    ]
    # JSON is YAML.
    (tmp_path / "board.yaml").write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    run(promtool, "check", "rules", str(tmp_path / "board.yaml"))


def firing(name: str, series: dict[str, str], at: str, labels: dict[str, str] | None) -> dict[str, Any]:
    """Describe a test of one rule: after ``at`` it fires with these labels and its own texts, or not at all."""
    rule = next(rule for group in generate.rules("convo", "") for rule in group["rules"] if rule["alert"] == name)
    expected = []
    if labels is not None:
        texts = {
            key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
            for key, text in rule["annotations"].items()
        }
        expected = [{"exp_labels": {**rule["labels"], **labels}, "exp_annotations": texts}]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected}],
    }


HERE = {"job": "convo", "instance": "a:1"}
ON_A = 'job="convo",instance="a:1"'


def test_rules_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    dead = f'convo_alert_conditions{{type="DEAD_LETTER",{ON_A}}}'
    model = f'convo_alert_conditions{{type="LLM_UNAVAILABLE",{ON_A}}}'
    up, dropped = f"up{{{ON_A}}}", f'convo_alerts_dropped_total{{sink="slack",reason="failed",{ON_A}}}'
    good, bad = (f'convo_requests_total{{route="/x",method="GET",status="{status}",{ON_A}}}' for status in (200, 503))
    tests = [
        firing("ConvoDeadLetter", {dead: "0x10"}, "5m", None),
        # One process raises it for all: it has no instance of its own.
        firing("ConvoDeadLetter", {dead: "0 0 1 1 1"}, "3m", {"job": "convo"}),
        firing("ConvoDeadLetter", {dead: "1 1 0 0 0"}, "3m", None),
        firing("ConvoLlmUnavailable", {model: "0 1 1"}, "2m", HERE),
        firing("ConvoDown", {up: "1 1 0 0 0"}, "2m", None),
        firing("ConvoDown", {up: "1 1 0 0 0"}, "4m", HERE),
        firing("ConvoAbsent", {f"convo_build_info{{{ON_A}}}": "1x20"}, "10m", None),
        firing("ConvoAbsent", {'convo_build_info{job="other"}': "1x20"}, "10m", {"job": "convo"}),
        firing("ConvoAlertsDropped", {dropped: "0x20"}, "10m", None),
        firing("ConvoAlertsDropped", {dropped: "0 0 0 1 1 1"}, "5m", {"job": "convo", "sink": "slack"}),
        firing("ConvoAnswersWithErrors", {good: "0+1000x30", bad: "0+5x30"}, "20m", None),
        firing("ConvoAnswersWithErrors", {good: "0+1000x30", bad: "0+20x30"}, "20m", {"job": "convo"}),
    ]
    (tmp_path / "rules.yaml").write_text((FOLDER / generate.RULES).read_text("utf-8"))
    (tmp_path / "tests.yaml").write_text(
        json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    run(promtool, "test", "rules", str(tmp_path / "tests.yaml"))
