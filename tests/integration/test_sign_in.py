from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from convo.runtime import identity
from convo.runtime.identity import Identity
from convo.settings import JobsSettings, Settings
from convo.sign_in import sign_in, take_back_leases
from convo.store import processes
from convo.store.jobs.table import Jobs
from convo.store.postgres import Postgres
from tests.support.making import Process, ask, entry_of, open_process, open_store, rows, told

SETTINGS = Settings(jobs=JobsSettings(lease_seconds=0.6, heartbeat_seconds=0.2))


@contextmanager
def started(data_dir: Path, folder: str) -> Iterator[Identity]:
    """Claim a folder that holds this id, as a restart finds it, or a copy of it."""
    data_dir.mkdir(exist_ok=True)
    (data_dir / "instance").write_text(f"{folder} 4711 0123456789abcdef\n")
    with identity.claim(data_dir) as me:
        yield me


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


@asynccontextmanager
async def other_process(database: str, name: str) -> AsyncIterator[Process]:
    """Run another process: registered, and with a session."""
    async with open_process(database, SETTINGS, owner=name) as other:
        await processes.enter(other.postgres, entry_of(name, heartbeat_seconds=0.2))
        await other.accepted("talk-1")
        await other.jobs.lease(1)
        yield other


async def names(postgres: Postgres) -> list[str]:
    return [name for (name,) in await rows(postgres, "SELECT name FROM process ORDER BY name")]


async def signed_in(postgres: Postgres, me: Identity) -> Jobs:
    jobs = Jobs(postgres, SETTINGS.jobs, me.name)
    await sign_in(postgres, jobs, me, SETTINGS)
    await take_back_leases(jobs, me)
    return jobs


async def test_a_restart_is_the_same_folder_and_takes_its_leases_at_once(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    async with other_process(database, "two.1"):
        pass
    with started(tmp_path, "two") as me:
        with told() as records:
            await signed_in(postgres, me)
        assert me.folder == "two"
        assert await names(postgres) == [me.name]
    assert records == ["own_leases_released"]
    assert await ask(postgres, "SELECT crashes FROM job") == 1


async def test_a_copy_of_a_living_process_s_folder_gets_an_id_of_its_own_and_touches_nothing(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    async with other_process(database, "two.1") as living, trio.open_nursery() as nursery:

        async def beat() -> None:
            while True:
                await living.jobs.renew([])
                await trio.sleep(0.1)

        nursery.start_soon(beat)
        with started(tmp_path, "two") as me:
            with told() as records:
                jobs = await signed_in(postgres, me)
            assert me.folder != "two"
            assert jobs.owner == me.name
            assert (tmp_path / "instance").read_text().startswith(me.folder)
            assert sorted(await names(postgres)) == sorted([me.name, "two.1"])
        nursery.cancel_scope.cancel()
    assert records == ["folder_copied"]
    assert await rows(postgres, "SELECT leased_by, crashes FROM job") == [("two.1", 0)]


async def test_where_sessions_stay_and_nobody_is_seen_the_start_takes_another_id_after_two_heartbeats(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    async with other_process(database, "two.1"):
        with started(tmp_path, "two") as me:
            began = trio.current_time()
            await signed_in(postgres, me)
            assert me.folder != "two"
            assert trio.current_time() - began > 0.4


async def test_sessions_that_end_while_the_start_waits_were_those_of_a_dead_process(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    with started(tmp_path, "two") as me:
        async with trio.open_nursery() as nursery, other_process(database, "two.1"):
            nursery.start_soon(signed_in, postgres, me)
            await trio.sleep(0.3)
        assert me.folder == "two"
        assert await names(postgres) == [me.name]


async def test_a_living_process_of_an_earlier_program_is_seen_too(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    # Its sessions carry the folder's id, because it has no incarnation.
    async with other_process(database, "there/two"):
        with started(tmp_path, "two") as me:
            await signed_in(postgres, me)
            assert me.folder != "two"
