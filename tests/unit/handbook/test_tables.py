from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from convo import config, errors, handbook
from convo.alerts.rules import KINDS, LEVELS
from convo.handbook import tables
from convo.handbook.tables import TABLES
from convo.ladder import ladder
from convo.observe import metrics
from convo.runtime import waits
from convo.settings import Settings
from convo.web.description import openapi
from tests.support.prose import rows

KEYS = [
    (section.name, key.name)
    for section in msgspec.structs.fields(Settings)
    if isinstance(section.type, type)
    for key in msgspec.structs.fields(section.type)
]


def column(name: str, number: int = 0) -> list[str]:
    return [row[number].strip("`") for row in rows(TABLES[name]())]


@pytest.mark.parametrize("name", list(TABLES))
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(name: str) -> None:
    for block in re.split(r"\n\n", TABLES[name]()):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1, block[:200]


def test_a_bar_in_a_text_does_not_end_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(waits.NAMES, "db.read", "one | or the other")
    assert "| `db.read` | one \\| or the other |" in TABLES["waits"]()


def test_the_ladder_has_every_rung_with_its_numbers_and_its_reason() -> None:
    assert rows(TABLES["ladder"]()) == [
        (
            rung.inside,
            f"{rung.inside_seconds:g} s",
            f"{rung.relation} {rung.outside}",
            f"{rung.outside_seconds:g} s",
            rung.otherwise,
        )
        for rung in ladder(Settings())
    ]


def test_every_named_wait_is_listed_with_what_it_bounds() -> None:
    assert dict(zip(column("waits"), column("waits", 1), strict=True)) == waits.NAMES


def test_every_alert_is_listed_with_its_level_and_what_to_do() -> None:
    assert [row[1:] for row in rows(TABLES["alerts"]())] == [
        (kind.level, "one process for all" if kind.shared else "each process", kind.do) for kind in KINDS.values()
    ]
    assert column("alerts") == list(KINDS)


def test_every_alert_has_its_section_in_the_order_of_the_table() -> None:
    assert re.findall(r"^### (\w+)$", handbook.page("alerts"), re.MULTILINE) == list(KINDS)


def test_every_level_of_alerts_is_listed_with_its_pace() -> None:
    assert rows(TABLES["alert-levels"]()) == [
        ("CRITICAL", "15 min", "no limit"),
        ("HIGH", "30 min", "5 in 5 min"),
        ("MEDIUM", "60 min", "3 in 10 min"),
        ("LOW", "120 min", "1 in 30 min"),
    ]
    assert column("alert-levels") == list(LEVELS)


def test_every_metric_that_is_exposed_is_listed() -> None:
    exposed = set(re.findall(r"^# TYPE (\w+)", metrics.exposition().decode(), re.MULTILINE))
    assert set(column("metrics")) == {name for name in exposed if not name.endswith("_created")}


def test_a_metric_is_listed_with_its_labels_whether_anything_was_counted_or_not() -> None:
    labels = dict(zip(column("metrics"), column("metrics", 2), strict=True))
    assert labels["convo_requests_total"] == "route`, `method`, `status"
    assert labels["convo_connections"] == "phase"
    assert labels["convo_breaker_open"] == "dependency"
    assert labels["convo_accept_seconds"] == ""


def test_every_code_of_the_description_is_listed_with_its_status() -> None:
    listed = dict(zip(column("problems", 1), column("problems"), strict=True))
    described = {
        code: str(example["value"]["status"])
        for methods in openapi.document()["paths"].values()
        for one in methods.values()
        for response in one["responses"].values()
        for code, example in response.get("content", {})
        .get("application/problem+json", {"examples": {}})["examples"]
        .items()
    }
    assert described.items() <= listed.items()


def test_a_code_that_derives_from_a_described_one_is_listed_and_an_internal_one_is_not() -> None:
    codes = column("problems", 1)
    assert errors.PoolExhausted.code in codes
    assert errors.TransactionLost.code in codes
    assert not {errors.ConfigError.code, errors.LeaseLost.code, errors.RemoteBusy.code} & set(codes)


def test_a_problem_says_whether_the_same_request_can_succeed() -> None:
    trying = dict(zip(column("problems", 1), column("problems", 3), strict=True))
    assert trying["overloaded"] == trying["rate_limited"] == "send the same again, after `Retry-After"
    assert trying["request_timeout"] == "send the same again"
    assert trying["conflict"] == "the same request fails again"
    assert trying["internal"] == "a fault in convo; the same may be sent again"


def test_every_setting_is_listed_under_its_section_with_default_bounds_and_meaning() -> None:
    text = TABLES["settings"]()
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for block in text.split("## [")[1:]:
        section = block.partition("]")[0]
        found |= {(section, row[0].strip("`")): row[1:] for row in rows(block)}
    assert list(found) == KEYS
    assert all(meaning for _, _, meaning in found.values())
    assert found["server", "port"][:2] == ("`30020`", "from 0 to 65535")
    assert found["web", "request_seconds"][:2] == ("`8.0`", "above 0 to 31536000")
    assert found["fairness", "key"][:2] == ('`"user"`', "`bot`, `none`, `user`")
    assert found["auth", "keys"][:2] == ("`false`", "true, false")
    assert found["retention", "bots"][:2] == ("`{}`", "a table")
    assert found["llm", "api_key"] == (
        "none",
        "secret text",
        "secret; only from the environment: `CONVO_LLM__API_KEY`",
    )


def test_a_comment_of_several_lines_is_one_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '# head\n\n[web]  # what one\n       # request takes\nport = 1 # the port,\n    # on two lines\nbare = "x"\n'
    )
    monkeypatch.setattr(tables, "DEFAULT_FILE", file)
    sections, keys = tables.setting_comments()
    assert sections == {"web": "what one request takes"}
    assert keys == {("web", "port"): "the port, on two lines", ("web", "bare"): ""}


def test_settings_are_listed_without_meanings_where_the_file_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "DEFAULT_FILE", tmp_path / "none.toml")
    assert [row[0].strip("`") for row in rows(TABLES["settings"]())] == [key for _, key in KEYS]
    assert config.DEFAULT_FILE.exists()
