from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from convo.errors import (
    DatabaseDeadlineExceeded,
    DatabaseUnavailable,
    NotFound,
    PoolExhausted,
    Refused,
    TransactionLost,
)
from convo.settings import DatabaseSettings
from convo.store import keys
from convo.store.postgres import DURABLE, RELAXED, SINGLE, Connection, Postgres
from tests.support.making import ask, open_dedicated, open_process, open_store

_ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.fixture
async def postgres(empty_database: str) -> AsyncIterator[Postgres]:
    async with open_store(empty_database) as opened:
        yield opened


def sleeping(seconds: float) -> Callable[[Connection], Any]:
    async def body(connection: Connection) -> None:
        await connection.fetchval("SELECT pg_sleep($1)", seconds)

    return body


async def ending(connection: Connection) -> None:
    await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
    await connection.fetchval("SELECT 1")


async def backends(postgres: Postgres) -> int:
    """Count the connections to this test's database but for the one that asks."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    count: int = await ask(postgres, query)
    return count


# --- deadlines and cancellation


async def test_a_deadline_fires_in_the_middle_of_a_query_and_the_connection_is_usable_again(
    empty_database: str,
) -> None:
    async with open_store(empty_database, acquire_seconds=0.2, statement_seconds=0.1) as postgres:
        with pytest.raises(DatabaseDeadlineExceeded, match=r"db\.slow took longer than its 0\.3 s"):
            await postgres.run("db.slow", sleeping(30))
        assert await ask(postgres, "SELECT 1") == 1
        assert await ask(postgres, _ASLEEP) == 0


async def test_after_hundreds_of_random_cancellations_every_connection_is_still_there(empty_database: str) -> None:
    rolls = random.Random(2)
    cancelled = 0

    async def unit(postgres: Postgres) -> None:
        nonlocal cancelled
        with trio.move_on_after(rolls.random() * 0.02) as scope:
            await postgres.run("db.unit", sleeping(rolls.random() * 0.02))
        cancelled += scope.cancelled_caught

    async with open_store(empty_database, pool_max=4, acquire_seconds=10.0) as postgres:
        for _ in range(25):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(unit, postgres)
        assert cancelled > 100
        together = trio.Event()
        inside = 0

        async def hold_one() -> None:
            nonlocal inside
            await postgres.run("db.all", sleeping(0.2))
            inside += 1
            if inside == 4:
                together.set()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(hold_one)
                await together.wait()
        assert await backends(postgres) <= 3


async def test_a_unit_that_was_cancelled_leaves_nothing_behind(postgres: Postgres) -> None:
    await ask(postgres, "CREATE TABLE kept (n integer)")
    written = trio.Event()

    async def body(connection: Connection) -> None:
        await connection.execute("INSERT INTO kept VALUES (1)")
        written.set()
        await connection.fetchval("SELECT pg_sleep(30)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(postgres.run, "db.unit", body)
        await written.wait()
        nursery.cancel_scope.cancel()
    assert await ask(postgres, "SELECT count(*) FROM kept") == 0


async def test_a_unit_that_raises_is_rolled_back_and_its_error_passes(postgres: Postgres) -> None:
    await ask(postgres, "CREATE TABLE kept (n integer)")

    async def body(connection: Connection) -> None:
        await connection.execute("INSERT INTO kept VALUES (1)")
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await postgres.run("db.unit", body)
    assert await ask(postgres, "SELECT count(*) FROM kept") == 0


async def test_a_full_pool_is_told_within_its_seconds(empty_database: str) -> None:
    async with open_store(empty_database, pool_max=2, acquire_seconds=0.2) as postgres, trio.open_nursery() as nursery:
        entered = [trio.Event(), trio.Event()]

        async def hold(mine: trio.Event) -> None:
            async def body(connection: Connection) -> None:
                mine.set()
                await connection.fetchval("SELECT pg_sleep(30)")

            await postgres.run("db.hold", body)

        for event in entered:
            nursery.start_soon(hold, event)
        with trio.fail_after(5):
            for event in entered:
                await event.wait()
        with pytest.raises(PoolExhausted, match=r"database\.acquire_seconds = 0\.2 s"):
            await postgres.run("db.unit", sleeping(0))
        nursery.cancel_scope.cancel()


async def test_readers_that_hold_all_of_their_connections_delay_nobody_else(database: str) -> None:
    """Also not the 96 that wait behind them."""
    async with open_process(database) as process:
        await process.accepted("talk-1", "talk-2")
        # Each purpose opens a connection of its own first, which is not what is timed.
        for name in ("db.lease", "db.renew", "db.part", "db.keys", "db.take"):
            await process.postgres.run(name, sleeping(0))
        async with trio.open_nursery() as readers:
            held = [trio.Event() for _ in range(process.settings.database.pool_max)]
            for event in held:
                readers.start_soon(holding, process.postgres, event)
            for event in held:
                await event.wait()
            for _ in range(96):
                readers.start_soon(until_cancelled, process.postgres)
            await wait_all_tasks_blocked(0.01)
            with trio.fail_after(process.settings.database.acquire_seconds):
                leased = await process.jobs.lease(2)
                # The heartbeat, the settler with its parts, the keys, the history, an accept.
                assert await process.jobs.renew(leased) == {one.token for one in leased}
                assert (await process.settler.settle(await process.analysed(leased[0]))).final
                await process.jobs.release(leased[1])
                assert (await keys.read_good(process.postgres)).keys == []
                assert await process.log_store.take(leased[1].seq) is not None
                await process.accepted("talk-3")
            with pytest.raises(PoolExhausted, match="of the readers"):
                await process.postgres.run("db.read", sleeping(0))
            readers.cancel_scope.cancel()


async def holding(postgres: Postgres, held: trio.Event) -> None:
    async def body(connection: Connection) -> None:
        held.set()
        await connection.fetchval("SELECT pg_sleep(30)")

    await postgres.run("db.read", body)


async def until_cancelled(postgres: Postgres) -> None:
    while True:
        with suppress(DatabaseUnavailable):
            await postgres.run("db.list", sleeping(30))


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a server process where it stands; skip where it is not ours to stop."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
        os.kill(pid, 0)
    except OSError:
        pytest.skip("the server's processes cannot be signalled from here")
    assert name.startswith("postgres"), f"pid {pid} is {name}"
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_frozen_backend_does_not_hold_up_a_cancellation(empty_database: str) -> None:
    async with open_store(empty_database, pool_max=2) as postgres:
        with ExitStack() as afterwards:

            async def body(connection: Connection) -> None:
                afterwards.enter_context(frozen(await connection.fetchval("SELECT pg_backend_pid()")))
                await connection.fetchval("SELECT 1")

            started = trio.current_time()
            with trio.move_on_after(0.3) as scope:
                await postgres.run("db.frozen", body)
            took = trio.current_time() - started
        assert scope.cancelled_caught
        assert (
            took < 0.3 + 2.0
        )  # undoing and giving the connection up takes two times 0.25 s; the rest is for the machine
        assert await ask(postgres, "SELECT 1") == 1


# --- what a connection is told


async def test_a_vanished_process_leaves_no_transaction_behind_for_long(postgres: Postgres) -> None:
    expected = {"statement_timeout": "4500ms", "idle_in_transaction_session_timeout": "4500ms", "jit": "off"}
    for name, value in expected.items():
        assert await ask(postgres, f"SHOW {name}") == value


async def test_a_line_has_the_pools_settings_and_its_own(postgres: Postgres) -> None:
    async def body(connection: Connection) -> list[str]:
        return [await connection.fetchval(f"SHOW {name}") for name in ("application_name", "work_mem", "jit")]

    async with open_dedicated(postgres, application_name="convo test", work_mem="7MB") as dedicated:
        assert await dedicated.run("db.show", body) == ["convo test", "7MB", "off"]


async def shown(connection: Connection, name: str) -> str:
    """Return a setting as a unit of work sees it."""
    value: str = await connection.fetchval(f"SHOW {name}")
    return value


@pytest.mark.parametrize("default", ["on", "off"])
async def test_a_unit_commits_durably_or_not_as_it_says_whatever_the_servers_default(
    empty_database: str, default: str
) -> None:
    async with open_store(empty_database) as postgres:
        await ask(postgres, f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = {default}',"
                            " current_database()); END $$")  # fmt: skip
    async with open_store(empty_database) as postgres:
        body = partial(shown, name="synchronous_commit")
        assert await postgres.run("db.durable", body) == "on"
        assert await postgres.run("db.relaxed", body, begin=RELAXED) == "off"


async def test_a_unit_runs_at_read_committed_whatever_the_servers_default(empty_database: str) -> None:
    async with open_store(empty_database) as postgres:
        await ask(postgres, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation ="
                            " serializable', current_database()); END $$")  # fmt: skip
    async with open_store(empty_database) as postgres:
        body = partial(shown, name="transaction_isolation")
        assert await postgres.run("db.show", body) == "read committed"
        assert await postgres.run("db.show", body, begin=SINGLE) == "read committed"


async def test_a_unit_without_a_transaction_sends_its_statements_and_nothing_else(postgres: Postgres) -> None:
    sent = list[str]()

    async def body(connection: Any) -> None:
        connection.add_query_logger(lambda record: sent.append(record.query))
        await connection.fetchval("SELECT 2")

    async def refusing(connection: Any) -> None:
        await connection.fetchval("SELECT 1")
        raise NotFound

    await postgres.run("db.read", body, begin=SINGLE)
    with pytest.raises(NotFound):
        await postgres.run("db.read", refusing, begin=SINGLE)
    assert sent == ["SELECT 2", "SELECT 1"]
    with pytest.raises(NotFound):
        await postgres.run("db.read", refusing)
    assert sent[2:] == [DURABLE, "SELECT 1", "ROLLBACK"]


async def test_a_line_opens_again_after_its_connection_was_ended(postgres: Postgres) -> None:
    async def pid(connection: Connection) -> int:
        found: int = await connection.fetchval("SELECT pg_backend_pid()")
        return found

    async with open_dedicated(postgres) as dedicated:
        first = await dedicated.run("db.dedicated", pid)
        assert await dedicated.run("db.dedicated", pid) == first
        with pytest.raises(TransactionLost):
            await dedicated.run("db.dedicated", ending)
        assert await dedicated.run("db.dedicated", pid) != first


@pytest.mark.parametrize(
    "url", ["postgresql://convo@127.0.0.1:1/convo", "postgresql:///convo?host=/nonexistent&user=convo"]
)
async def test_a_server_that_is_not_there_is_an_unavailable_database(url: str) -> None:
    async with open_store(url) as postgres:
        with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
            await postgres.run("db.unit", sleeping(0))
        with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
            await postgres.dedicated().run("db.unit", sleeping(0))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://there/convo", "got 'mysql'"),
        ("nonsense-sekrit", "invalid DSN"),
        ("postgresql://me:sekrit/sekrit@there/convo", "ValueError"),
        ("postgresql://me:sekrit@there/convo?sslmode=some", "sslmode"),
        ("postgresql://me:sekrit@[::1/convo", "ValueError"),
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_without_a_word_of_its_password(url: str, said: str) -> None:
    async with open_store(url) as postgres:
        for run in (postgres.run, postgres.dedicated().run):
            with pytest.raises(Refused, match=rf"database\.url cannot be used: .*{said}") as caught:
                await run("db.unit", sleeping(0))
            assert "sekrit" not in str(caught.value)


async def test_the_password_is_in_no_error(empty_database: str) -> None:
    async with open_store("postgresql://convo:sekrit@127.0.0.1:1/convo") as postgres:
        with pytest.raises(DatabaseUnavailable) as caught:
            await postgres.run("db.unit", sleeping(0))
    assert "sekrit" not in caught.value.detail


async def test_closing_leaves_no_connection_behind(empty_database: str) -> None:
    async with open_store(empty_database) as one:
        async with open_store(empty_database) as other:
            await ask(other, "SELECT 1")
            assert await backends(one) == 1
        with trio.fail_after(5):
            # The server tells of the end of a connection a moment after the client has closed it.
            while await backends(one):  # noqa: ASYNC110  (nothing here could tell us)
                await trio.sleep(0.01)


async def test_units_of_work_leave_no_timer_behind_that_outlives_them_for_long(postgres: Postgres) -> None:
    for _ in range(20):
        await ask(postgres, "SELECT 1")
    # Cancelled ones are kept until their time, each with the whole context it was made in.
    await trio.sleep(DatabaseSettings().acquire_seconds + 0.3)
    gc.collect()
    assert sum(isinstance(one, asyncio.TimerHandle) for one in gc.get_objects()) < 10
