from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from convo import contracts
from convo.commands.check import check_dependencies
from convo.commands.database import list_keys
from convo.errors import Refused
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings
from convo.store import migrate as module
from convo.store.migrations import migrations, parse_migration
from convo.store.postgres import open_postgres
from convo.store.processes import ProcessEntry, enter, leave
from tests.support.making import ask, open_store
from tests.support.running import eventually, loaded_settings, serving

NEWEST = migrations()[-1].number
HELD = "folder.oldone on box-1"


def with_contract(monkeypatch: pytest.MonkeyPatch, *, needed: bool) -> None:
    """Let this program know a contract step that is not applied yet."""
    head = f"-- kind: contract\n-- needed: {'yes' if needed else 'no'}\n-- run: transaction\n-- lock: none\n"
    more = [*migrations(), parse_migration(NEWEST + 1, f"{head}CREATE TABLE added (n integer);")]
    monkeypatch.setattr(module, "migrations", lambda: more)


@asynccontextmanager
async def older_process(database: str) -> AsyncIterator[None]:
    """Have an older process at work while the block runs."""
    async with open_bridge() as bridge, open_postgres(bridge, database, DatabaseSettings(), name="oldone") as postgres:
        entry = ProcessEntry(
            name="folder.oldone",
            folder="folder",
            host="box-1",
            pid=1,
            connections_max=1,
            lease_seconds=30,
            heartbeat_seconds=5,
        )
        await enter(postgres, entry)
        yield
        await leave(postgres, "folder.oldone")


async def at_work(database: str, until: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    """Be an older process until the event."""
    async with older_process(database):
        task_status.started()
        await until.wait()


async def readyz(url: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/readyz")
        return answer.status_code, answer.json()


async def is_applied(database: str) -> bool:
    async with open_store(database) as postgres:
        applied: bool = await ask(postgres, "SELECT to_regclass('added') IS NOT NULL")
        return applied


async def test_a_step_that_is_needed_holds_the_start_until_the_older_process_has_gone(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_contract(monkeypatch, needed=True)
    stops = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(at_work, database, stops)
        async with serving(tmp_path, database, prepared=False) as url:
            while not (found := await readyz(url))[1].get("warnings"):  # noqa: ASYNC110  (seen in an answer only)
                await trio.sleep(0.05)
            status, view = found
            assert (status, view["status"]) == (503, "migrating")
            assert f"MIGRATION_WAITS: migration {NEWEST + 1}" in view["warnings"][0]
            assert HELD in view["warnings"][0]
            async with httpx.AsyncClient() as client:
                assert (await client.post(f"{url}/v1/conversations/end", json={})).status_code == 503
            stops.set()
            while (found := await readyz(url))[0] != 200:  # noqa: ASYNC110  (the same)
                await trio.sleep(0.05)
            assert not any("MIGRATION_WAITS" in warning for warning in found[1]["warnings"])
    assert await is_applied(database)


async def test_a_step_that_is_not_needed_is_applied_later_while_this_process_serves(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contracts, "_AGAIN_SECONDS", 0.2)
    with_contract(monkeypatch, needed=False)
    stops = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(at_work, database, stops)
        async with serving(tmp_path, database) as url:
            status, view = await readyz(url)
            assert status == 200
            assert any("this process serves meanwhile" in one and HELD in one for one in view["warnings"])
            assert not await is_applied(database)
            stops.set()
            while not await is_applied(database):  # noqa: ASYNC110  (seen in the database only)
                await trio.sleep(0.05)
            while any("MIGRATION_WAITS" in one for one in (await readyz(url))[1]["warnings"]):  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_the_log_and_check_name_who_holds_a_step_back(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_contract(monkeypatch, needed=True)
    async with older_process(database):
        (found,) = await check_dependencies(loaded_settings(tmp_path, database))
        assert found.good
        assert f"schema version {NEWEST}; migration {NEWEST + 1} waits until no older process is left" in found.detail
        assert HELD in found.detail
        with capture_logs() as records:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve_until_cancelled, tmp_path, database)
                await eventually(lambda: [one for one in records if one["event"] == "contract_waits"])
                nursery.cancel_scope.cancel()
        assert HELD in next(one["reason"] for one in records if one["event"] == "contract_waits")


async def _serve_until_cancelled(data_dir: Path, database: str) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, database, DatabaseSettings(), name="newone") as postgres:
        connection = postgres.dedicated()
        try:
            await contracts.Contracts(postgres, "newone").until_served(connection)
        finally:
            await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)


async def test_a_command_that_needs_a_held_back_step_is_refused_with_who_holds_it(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded_settings(tmp_path, database)
    async with older_process(database):
        with monkeypatch.context() as patch:
            with_contract(patch, needed=False)
            assert await list_keys(settings) == []
        with_contract(monkeypatch, needed=True)
        # The command line takes what it reports out of the nurseries' groups.
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match=HELD), flatten_subgroups=True):
            await list_keys(settings)
