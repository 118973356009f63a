from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from convo import config
from convo.commands import check
from convo.commands.check import CheckResult
from convo.ladder import ladder
from convo.settings import Settings
from tests.support import fakes
from tests.support.fakes import FakeServer, Fault
from tests.support.making import ask, open_store
from tests.support.running import ROOT, environment, running

NOWHERE = "postgresql://me:sekrit@127.0.0.1:1/convo"


def settings_of(data_dir: Path, settings: Mapping[str, str] | None = None) -> Settings:
    variables = {f"CONVO_{name.replace('.', '__').upper()}": value for name, value in (settings or {}).items()}
    return config.read_settings(None, variables, {("server", "data_dir"): str(data_dir)})


async def checked(name: str, data_dir: Path, settings: Mapping[str, str] | None = None) -> CheckResult:
    (found,) = [one for one in await check.check_dependencies(settings_of(data_dir, settings)) if one.name == name]
    return found


def run(data_dir: Path, settings: Mapping[str, str] | None = None, *arguments: str) -> tuple[int, str]:
    """Run ``convo check`` as a program; return its exit code and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "convo", "check", "--data-dir", str(data_dir), *arguments],
        env=environment(settings=settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout


# --- a given database


async def test_a_given_database_is_told_with_its_version_its_schema_and_its_room(database: str, tmp_path: Path) -> None:
    found = await checked("database", tmp_path, {"database.url": database})
    assert found.good
    assert re.match(
        r"PostgreSQL \d+\.\d+.*; schema version \d+; takes \d+ connections, this process opens 18", found.detail
    )
    assert 0 < found.seconds < 10


async def test_a_database_without_a_schema_is_told_and_left_as_it_is(empty_database: str, tmp_path: Path) -> None:
    found = await checked("database", tmp_path, {"database.url": empty_database})
    assert found.good
    assert "no schema yet, `convo serve` brings it to" in found.detail
    async with open_store(empty_database) as postgres:
        assert await ask(postgres, "SELECT to_regclass('schema_version') IS NULL")


async def test_a_database_of_a_newer_convo_fails(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        await ask(postgres, "INSERT INTO schema_version (version) VALUES (999)")
    found = await checked("database", tmp_path, {"database.url": database})
    assert not found.good
    assert "schema version 999" in found.detail


async def test_a_pool_that_does_not_fit_fails_by_both_numbers(database: str, tmp_path: Path) -> None:
    found = await checked("database", tmp_path, {"database.url": database, "database.pool_max": "900"})
    assert not found.good
    assert "database.pool_max = 900" in found.detail
    assert "max_connections" in found.detail


async def test_a_database_that_is_not_there_fails_without_its_password(tmp_path: Path) -> None:
    found = await checked("database", tmp_path, {"database.url": NOWHERE})
    assert not found.good
    assert "cannot be reached" in found.detail
    assert "sekrit" not in found.detail


async def test_a_database_that_does_not_exist_fails(database: str, tmp_path: Path) -> None:
    absent = urlsplit(database)._replace(path="/convo_none").geturl()
    found = await checked("database", tmp_path, {"database.url": absent})
    assert not found.good
    assert "3D000" in found.detail


# --- the embedded one


async def test_an_embedded_database_that_was_never_made_is_fine_and_is_not_made(tmp_path: Path) -> None:
    found = await checked("database", tmp_path / "new")
    assert found.good
    assert re.match(r"embedded PostgreSQL \d+\.\d+ is not running; `convo serve` makes it in ", found.detail)
    assert not (tmp_path / "new").exists()


async def test_an_embedded_database_has_room_for_so_many(tmp_path: Path) -> None:
    found = await checked("database", tmp_path, {"database.pool_max": "150"})
    assert not found.good
    assert "max_connections 50" in found.detail


async def test_a_folder_of_another_version_fails(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    found = await checked("database", tmp_path)
    assert not found.good
    assert "PostgreSQL 9" in found.detail


def test_beside_a_running_server_its_database_is_asked_and_it_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as started:
        code, said = run(tmp_path)
        assert code == 0, said
        assert re.search(r"embedded, in .*: PostgreSQL \d+\.\d+.*; schema version \d+", said)
        assert started.process.poll() is None
    code, said = run(tmp_path)
    assert code == 0, said
    assert "is not running; `convo serve` starts it in" in said


# --- the model and the memory service


@pytest.fixture
async def model() -> AsyncIterator[FakeServer]:
    async with fakes.open_model() as server:
        yield server


def listing(*models: str) -> Fault:
    async def fault(exchange: fakes.Exchange) -> None:
        await exchange.answer_json(200, {"object": "list", "data": [{"id": name} for name in models]})

    return fault


async def redirecting(exchange: fakes.Exchange) -> None:
    await exchange.answer(308, b"", {"location": "/elsewhere?key=sekrit"})


async def model_checked(server: FakeServer, data_dir: Path, **settings: str) -> CheckResult:
    told = {"llm.base_url": server.url, "llm.model": "m-1", "llm.api_key": "sekrit"}
    return await checked("llm", data_dir, {**told, **{f"llm.{key}": value for key, value in settings.items()}})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (listing("m-0", "m-1"), "reachable; m-1 is among the 2 models it lists"),
        (listing("m-0"), "reachable, but m-1 is NOT among the 1 model it lists"),
        (listing(), "reachable; it lists no models (GET /models answered 200)"),
        (fakes.garbage, "it lists no models (GET /models answered 200)"),
        (fakes.huge, "too long to read"),
        (fakes.failing("404", "none"), "it lists no models (GET /models answered 404)"),
        # A key that may only call.
        (fakes.failing("403", "no"), "it lists no models (GET /models answered 403)"),
    ],
)
async def test_a_model_is_asked_for_its_models_and_called_once(
    model: FakeServer, tmp_path: Path, fault: Fault, said: str
) -> None:
    model.then(fault)
    found = await model_checked(model, tmp_path)
    assert found.good
    assert f"{said}; it answers, and takes json_schema, temperature 0, the role system" in found.detail
    assert [(call.method, call.path) for call in model.calls] == [("GET", "/models"), ("POST", "/chat/completions")]
    assert {call.headers["authorization"] for call in model.calls} == {"Bearer sekrit"}
    assert "sekrit" not in found.detail


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fakes.failing("401", "invalid_api_key"), "it refuses the key of CONVO_LLM__API_KEY"),
        (fakes.failing("400", "invalid_api_key"), "it refuses the key of CONVO_LLM__API_KEY"),
        (fakes.failing("403", "no"), "answered 403 (no): the key of CONVO_LLM__API_KEY does not allow this"),
        (fakes.failing("404", "model_not_found"), "it does not have the model of llm.model"),
        (fakes.failing("503", "ill"), "answered 503 (ill)"),
        (fakes.reset, "the connection failed"),
        (fakes.garbage, "the answer does not fit"),
        (fakes.completing("I would rather not."), "the answer does not fit"),
        (redirecting, "a wrong address; it points to /elsewhere"),
    ],
)
async def test_a_model_that_no_conversation_could_use_fails_the_check(
    model: FakeServer, tmp_path: Path, fault: Fault, said: str
) -> None:
    model.always = fault
    found = await model_checked(model, tmp_path)
    assert not found.good
    assert said in found.detail
    assert "sekrit" not in found.detail


async def test_each_fallback_is_checked_under_its_own_name_and_named_by_its_own_settings(
    model: FakeServer, tmp_path: Path
) -> None:
    async with fakes.open_model() as backup:
        backup.always = fakes.failing("401", "invalid_api_key")
        settings = {
            "llm.base_url": f"{model.url}/v1",
            "llm.model": "m-1",
            "llm.fallbacks.backup.base_url": f"{backup.url}/v1",
            "llm.fallbacks.backup.model": "m-2",
            "llm.fallbacks.backup.api_key": "sekrit",
        }
        assert (await checked("llm", tmp_path, settings)).good
        found = await checked("llm.backup", tmp_path, settings)
        assert not found.good
        assert found.detail.startswith("llm.backup: answered 401")
        assert "CONVO_LLM__FALLBACKS__BACKUP__API_KEY" in found.detail
        assert "sekrit" not in found.detail
        backup.always = fakes.healthy
        assert "it answers, and takes json_schema" in (await checked("llm.backup", tmp_path, settings)).detail
        settings |= {"llm.price_in": "1", "llm.price_out": "2"}
        assert "its calls count as free" in (await checked("llm.backup", tmp_path, settings)).detail
        assert "its calls count as free" not in (await checked("llm", tmp_path, settings)).detail


async def test_a_model_that_hangs_is_given_up_by_its_own_deadline(model: FakeServer, tmp_path: Path) -> None:
    model.always = fakes.stuck
    with trio.fail_after(5):
        found = await model_checked(model, tmp_path, attempt_seconds="0.3")
    assert not found.good
    assert "llm.check took longer than its 0.3 s" in found.detail
    assert 0.3 <= found.seconds < 3


async def test_a_key_that_cannot_be_sent_fails_without_being_shown(model: FakeServer, tmp_path: Path) -> None:
    found = await model_checked(model, tmp_path, api_key="sek\nrit")
    assert not found.good
    assert "llm.api_key" in found.detail
    assert "rit" not in found.detail.replace("written", "")
    assert model.calls == []


@pytest.mark.parametrize(
    ("fault", "good", "said"),
    [
        (fakes.healthy, True, "reachable (GET answered 200)"),
        (fakes.failing("404", "none"), True, "reachable (GET answered 404)"),
        (fakes.failing("401", "no"), False, "it refuses the key of CONVO_MEMORY__API_KEY"),
        (fakes.failing("500", "ill"), False, "answered 500"),
    ],
)
@pytest.mark.parametrize("dialect", ["extract_facts", "mem0"])
async def test_a_memory_service_is_asked_once(
    tmp_path: Path, dialect: str, fault: Fault, said: str, *, good: bool
) -> None:
    async with fakes.open_memory() as server:
        server.always = fault
        told = {"memory.url": server.url, "memory.dialect": dialect, "memory.api_key": "sekrit"}
        found = await checked("memory", tmp_path, told)
        assert (found.good, len(server.calls)) == (good, 1)
        assert said in found.detail
        assert server.calls[0].method == "GET"


async def test_only_what_is_configured_is_asked(tmp_path: Path) -> None:
    assert [one.name for one in await check.check_dependencies(settings_of(tmp_path))] == ["database"]


# --- the program


def test_all_well_is_exit_code_0_and_every_rung_is_shown(database: str, tmp_path: Path) -> None:
    code, said = run(tmp_path, {"database.url": database})
    assert code == 0, said
    for rung in ladder(Settings()):
        assert rung.inside in said
        assert rung.outside in said
    assert said.rstrip().endswith("the ladder stands; all that is configured answers")
    assert re.search(r"database +│ ok +│ +\d+ │ PostgreSQL", said)


def test_a_broken_rung_is_exit_code_1_with_what_would_happen_and_the_rest_is_asked_all_the_same(
    database: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.toml"
    file.write_text("[database]\nacquire_seconds = 10.0\nstatement_seconds = 10.0\n[web]\nrequest_seconds = 14.0\n")
    code, said = run(tmp_path, {"database.url": database}, "--config", str(file))
    assert code == 1
    assert re.search(
        r"web\.request_seconds \+ connection\.write_seconds +│ +15\.5 │ < +│ ladder\.gateway_seconds +│ +10 │ the",
        said,
    )
    assert re.search(r"│ +40 │ < +│ web\.request_seconds +│ +14 │ an accept that waits", said)
    assert re.search(r"jobs\.lease_seconds +│ +30 │ ok", said)
    assert re.search(r"database +│ ok", said)
    assert said.rstrip().endswith("2 of 13 rungs are broken; all that is configured answers")


def test_a_dependency_that_fails_is_exit_code_1_and_no_secret_is_shown(tmp_path: Path) -> None:
    told = {
        "database.url": NOWHERE,
        "llm.model": "m-1",
        "llm.base_url": "http://127.0.0.1:1",
        "llm.api_key": "sekrit",
        "memory.url": "http://127.0.0.1:1",
        "memory.api_key": "sekrit",
    }
    code, said = run(tmp_path, told)
    assert code == 1
    assert said.rstrip().endswith("the ladder stands; database and llm and memory failed")
    assert len(re.findall(r"│ fails", said)) == 3
    assert "sekrit" not in said
    assert "Traceback" not in said


def test_as_json_no_number_has_more_digits_than_anybody_reads(database: str, tmp_path: Path) -> None:
    told = {"database.url": database, "database.acquire_seconds": "0.1", "database.statement_seconds": "0.2"}
    code, said = run(tmp_path, told, "--json")
    assert code == 0, said
    found = json.loads(said)
    assert 0.6 in [rung["inside_seconds"] for rung in found["ladder"]]
    assert re.findall(r"\d\.\d{5,}", said) == []


def test_a_setting_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    code, said = run(tmp_path, {"database.statement_seconds": "0"})
    assert code == 1
    assert said.startswith("convo: config: statement_seconds = 0 would be no limit")
