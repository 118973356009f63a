from __future__ import annotations

import json
import re
from importlib import resources
from typing import get_args

import pytest

from convo.alerts.rules import LEVELS
from convo.conversation.model import EmotionName, JobState, Level, PartState, Speaker, StateFilter
from convo.errors import NotFound
from convo.event_types import WebhookState
from convo.resilience.breaker import State
from convo.web.description.figure_views import QueueFigures
from convo.web.page import files

FOLDER = resources.files("convo.web.page")
PAGE = FOLDER.joinpath("index.html").read_text("utf-8")
OURS = sorted(one.name for one in FOLDER.iterdir() if one.name.endswith(".js") and one.name != "uplot.js")
SCRIPTS = {name: FOLDER.joinpath(name).read_text("utf-8") for name in OURS}
TEXTS = {one: json.loads(FOLDER.joinpath(f"strings.{one}.json").read_text("utf-8")) for one in files.LANGUAGES}
VERSION = files.page_files().version
# Texts that are called by a kind and a value: what the value may be.
KINDS = {
    "state": {*get_args(JobState), *get_args(StateFilter), *QueueFigures.__struct_fields__},
    "queue_means": set(QueueFigures.__struct_fields__),
    "breaker": set(get_args(State)),
    "part_state": set(get_args(PartState)),
    "emotion": set(get_args(EmotionName)),
    "level": set(LEVELS),
    "level_of": set(get_args(Level)),
    "speaker": set(get_args(Speaker)),
    "webhook": set(get_args(WebhookState)),
    "log": {"stored", "expired"},
    "ending": {"settle", "fail", "bury", "park", "release", "rescue", "crash"},
    "part_name": {"questions", "emotion", "memories", "exchanges", "cap"},
    "live": {"waiting", "live", "paused", "off"},
}


@pytest.mark.parametrize(
    ("asked", "language"),
    [
        ("", "en"),
        ("vi", "vi"),
        ("vi-VN,vi;q=0.9,en;q=0.8", "vi"),
        ("en-US,en;q=0.9,vi;q=0.8", "en"),
        ("fr,vi;q=0.5,en;q=0.4", "vi"),
        ("VI ; q=0.7", "vi"),
        ("vi;q=0", "en"),
        ("de, *;q=0.5", "en"),
        ("vie", "en"),
        ("vi;q=2", "en"),
        ("\x00,,;;q=,vi", "vi"),
        ("x" * 100_000, "en"),
    ],
)
def test_the_language_is_the_one_that_is_asked_for_most(asked: str, language: str) -> None:
    assert files.best_language(asked) == language


async def test_the_page_names_its_language_its_view_and_its_files() -> None:
    shown = await files.show_page("live", "vi", 5)
    body = shown.body.decode()
    assert '<html lang="vi" data-view="live">' in body
    assert TEXTS["vi"]["noscript"] in body
    assert "$" not in body
    for name in re.findall(rf"/assets/{VERSION}/([\w.]+)", body):
        assert (await files.asset_answer(VERSION, name, "", 5)).status == 200
    assert ("Vary", "Accept, Accept-Language") in shown.headers
    assert ("Cache-Control", "no-cache") in shown.headers


async def test_the_policy_allows_files_of_ours_and_nothing_written_into_a_page() -> None:
    for answer in (await files.show_page("page", "", 5), await files.asset_answer(VERSION, "app.js", "", 5)):
        headers = dict(answer.headers)
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy.pop("default-src") == policy.pop("frame-ancestors") == "'none'"
        assert policy.pop("base-uri") == policy.pop("form-action") == policy.pop("trusted-types") == "'none'"
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert set(policy.values()) == {"'self'"}
        assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("name", sorted(files.page_files().files))
async def test_a_file_is_kept_for_ever_under_its_digest_and_not_asked_for_twice(name: str) -> None:
    first = await files.asset_answer(VERSION, name, "", 5)
    headers = dict(first.headers)
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert first.body == FOLDER.joinpath(name).read_bytes()
    for known in (headers["ETag"], f'W/{headers["ETag"]}, "x"', "*"):
        again = await files.asset_answer(VERSION, name, known, 5)
        assert (again.status, again.body, dict(again.headers)["ETag"]) == (304, b"", headers["ETag"])
    assert (await files.asset_answer(VERSION, name, '"x"', 5)).status == 200


async def test_a_page_of_another_release_gets_a_file_that_it_does_not_keep() -> None:
    answer = await files.asset_answer("0123456789abcdef", "app.js", "", 5)
    assert (answer.status, dict(answer.headers)["Cache-Control"]) == (200, "no-store")


@pytest.mark.parametrize(
    "name", ["", "index.html", "files.py", "../page/app.js", "__init__.py", "LICENSE.uplot.txt", "x"]
)
async def test_nothing_else_is_served(name: str) -> None:
    with pytest.raises(NotFound, match="the page has no file"):
        await files.asset_answer(VERSION, name, "", 5)


# --- the files themselves


def test_nothing_is_loaded_from_elsewhere_and_nothing_stands_in_the_page_itself() -> None:
    assert re.findall(r'(?:src|href)="(?!\$assets/|#main")', PAGE) == []
    assert re.findall(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", PAGE) == []
    style = FOLDER.joinpath("style.css").read_text("utf-8") + FOLDER.joinpath("uplot.css").read_text("utf-8")
    assert re.findall(r"@import|url\(|@font-face", style) == []
    for name, script in SCRIPTS.items():
        assert re.findall(r"https?://", script) == [], name
        assert re.findall(r'from "(?!\./)', script) == [], name


@pytest.mark.parametrize("name", OURS)
def test_no_script_turns_text_into_html_or_code_or_keeps_a_key(name: str) -> None:
    words = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    assert re.findall(rf"{words}|\beval\(|new Function|document\.cookie|sessionStorage", SCRIPTS[name]) == []
    if name not in ("theme.js", "text.js"):
        assert "localStorage" not in SCRIPTS[name]


@pytest.mark.parametrize("name", OURS)
def test_a_script_is_short_says_what_it_does_and_imports_what_is_there(name: str) -> None:
    script = SCRIPTS[name]
    assert script.count("\n") < 300
    assert script.startswith("// ")
    for names, module in re.findall(r'import \{ ([^}]+) \} from "\./([^"]+)"', script):
        for one in names.split(", "):
            assert re.search(rf"^export (?:async )?(?:function|const|let|class) {one}\b", SCRIPTS[module], re.MULTILINE)
            assert len(re.findall(rf"\b{one}\b", script)) > 1, f"{one} is not used"


# --- the texts


def _called() -> set[str]:
    """Find every key in the scripts and in the page: what is given to ``t`` as it is, or by a name that ends a list."""
    whole = "\n".join(SCRIPTS.values())
    found = set(re.findall(r'"([a-z_]+\.[\w-]+)"', whole)) | set(re.findall(r'\bt\("([\w.-]+)"', whole))
    for prefix, name in re.findall(r"\bt\(`(\w+)\.\$\{([\w.]+)\}(?:_text)?`", whole):
        assert (prefix, name) in {("tile", "one.key"), ("ask", "name"), ("act", "name"), ("did", "name")}
    tiles = re.findall(r'\{ key: "(\w+)", read:', SCRIPTS["overview.js"])
    acts = re.findall(r'act\("(\w+)"', SCRIPTS["acting.js"])
    found |= {f"tile.{one}" for one in tiles}
    found |= {key for one in acts for key in (f"ask.{one}", f"ask.{one}_text", f"act.{one}", f"did.{one}")}
    kinds = set(re.findall(r'\bword\("(\w+)"', whole))
    assert kinds == set(KINDS)
    found |= {f"{kind}.{value}" for kind, values in KINDS.items() for value in values}
    return found | {"skip", "noscript"}


def test_both_languages_have_the_same_keys_with_the_same_values_to_fill_in() -> None:
    english, vietnamese = TEXTS["en"], TEXTS["vi"]
    assert list(english) == list(vietnamese)
    for key in english:
        assert english[key].strip()
        assert set(re.findall(r"\{\w+\}", english[key])) == set(re.findall(r"\{\w+\}", vietnamese[key])), key
        assert not re.search(r"[<>]", english[key] + vietnamese[key]), key


def test_every_key_that_is_called_is_there_and_every_one_that_is_there_is_called() -> None:
    called = _called()
    known = set(TEXTS["en"])
    # What looks like a key and is none: an event's name, a service, a unit.
    assert {key for key in called if key.partition(".")[0] in {one.partition(".")[0] for one in known}} - known == set()
    assert known - called == set()


def test_every_value_of_a_kind_has_a_word_and_no_other_value_has_one() -> None:
    for kind, values in KINDS.items():
        shown = {key.partition(".")[2] for key in TEXTS["en"] if key.startswith(f"{kind}.")}
        assert shown - values <= ({"late", "late_short"} if kind == "live" else set()), kind
        assert values <= shown, kind


def test_uplot_s_licence_stands_beside_it() -> None:
    assert "Leon Sorokin" in FOLDER.joinpath("LICENSE.uplot.txt").read_text("utf-8")
    assert "v1.6.32" in FOLDER.joinpath("uplot.js").read_text("utf-8")[:80]
