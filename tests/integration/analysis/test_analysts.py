from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from convo.analysis import local
from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.analyze import Analyst, analyze, in_process
from convo.analysis.llm import Model
from convo.analysis.part import PARTS
from convo.conversation.model import Answered, Finding
from convo.conversation.owed import DEFAULT_OWED, DeclaredPart, Owed, owed_of
from convo.errors import RemoteGarbage, RemoteUnavailable
from convo.settings import LlmSettings
from tests.support import fakes
from tests.support.fakes import FakeServer, conversation_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
TALK = conversation_of("Hi. How are you?", "Fine.")
DEFAULT = tuple(DeclaredPart(name=name, who="llm", required=True) for name in ("questions", "emotion"))


def part(name: str, **others: Any) -> DeclaredPart:
    usual: dict[str, Any] = {"who": "llm", "version": f"p1:{name}", "analyst": "m", "prompt": "?", "schema": SCHEMA}
    return DeclaredPart(name=name, **{**usual, **others})


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with fakes.open_model() as running:
        yield running


@pytest.fixture
async def model(server: FakeServer) -> AsyncIterator[Model]:
    async with Model(LlmSettings(base_url=server.url, model="m", attempts=1)) as model:
        yield model


def analysts(model: Model | None, **others: Any) -> AnalystsOfSets:
    lock = trio.Lock()
    embedded = {one.name: in_process(local.BY, one.analyst, lock) for one in PARTS}
    return AnalystsOfSets(embedded, {}, model=model, **others)


async def found_of(of: AnalystsOfSets, owed: Owed) -> tuple[dict[str, Finding], dict[str, Exception]]:
    found: dict[str, Finding] = {}

    async def store(name: str, _by: str, finding: Finding) -> None:
        found[name] = finding

    failures = await analyze(TALK, of.of(owed), (), store)
    return found, {name: one.error for name, one in failures.items()}


def asked(server: FakeServer) -> list[list[str]]:
    return sorted(
        call.json()["response_format"]["json_schema"]["schema"]["required"]
        for call in server.calls
        if call.method == "POST"
    )


async def test_the_default_parts_of_a_model_are_asked_for_in_one_call(server: FakeServer, model: Model) -> None:
    found, failed = await found_of(analysts(model), DEFAULT_OWED)
    assert (set(found), failed) == ({"questions", "emotion", "memories"}, {})
    assert asked(server) == [["questions", "emotion"]]


async def test_parts_of_one_model_share_calls_of_so_many_and_another_model_has_its_own(
    server: FakeServer, model: Model
) -> None:
    owed = owed_of([*DEFAULT, part("one"), part("two"), part("three", analyst="other"), part("four")])
    found, failed = await found_of(analysts(model, parts_per_call=3), owed)
    assert (len(found), failed) == (6, {})
    assert asked(server) == [["questions", "emotion", "one"], ["three"], ["two", "four"]]
    assert {call.json()["model"] for call in server.calls} == {"m", "other"}


async def test_what_fits_is_found_and_what_does_not_fails_alone(server: FakeServer, model: Model) -> None:
    server.then(fakes.completing('{"questions": [], "emotion": "sad", "one": {"a": true}, "two": {"a": "no"}}'))
    found, failed = await found_of(analysts(model), owed_of([*DEFAULT, part("one"), part("two")]))
    assert set(found) == {"questions", "emotion", "one"}
    assert found["one"] == Answered(answer={"a": True})
    assert type(failed["two"]) is RemoteGarbage
    assert "of two" in str(failed["two"])


async def test_a_part_that_this_process_cannot_find_says_what_it_needs() -> None:
    owed = owed_of([part("crm", who="http", required=True), part("memories", who="local")])
    one = analysts(None).of(owed)["crm"]
    assert one.missing == "part.crm@p1:crm"
    with pytest.raises(RemoteUnavailable, match="does not have the part crm"):
        await one.find(TALK)
    assert analysts(None).of(owed)["memories"].by == local.BY


async def test_a_process_is_able_to_do_what_its_services_are_there_for(model: Model) -> None:
    assert analysts(None).able() == [""]
    assert analysts(model).able() == ["llm", ""]


async def test_an_analyst_of_a_call_finds_its_part_alone_too(server: FakeServer, model: Model) -> None:
    one: Analyst = analysts(model).of(DEFAULT_OWED)["emotion"]
    await one.find(TALK)
    assert asked(server) == [["emotion"]]


async def test_analysts_are_kept_by_the_number_of_their_set(model: Model) -> None:
    of, owed = analysts(model), owed_of([part("one")])
    assert of.of(owed) is of.of(owed_of([part("one")]))
