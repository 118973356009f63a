"""What goes wrong in a world: each fault is brought about, held for a while, and healed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import asyncpg
import httpx
import trio

from convo.conversation.identity import id_hash
from convo.store.event_rows import event_id
from tests.support.faking import script
from tests.torture.world import GATEWAY_SECONDS, LEASE_SECONDS, Convo, World, convo_command, family, signal_all

Fault = Callable[[World, float], Awaitable[None]]
"""Brings it about, holds it for so many seconds where it lasts at all, and heals it."""

HEALTHY = ("scattered", "0.02")
_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
# The database may be away meanwhile, on a busy machine for a minute.
_NOTICED_SECONDS = 90.0
_BACKLOG_SECONDS = 2.0


# --- what goes on request, and by itself


async def erasures(world: World, seconds: float) -> None:
    """Erase conversations and users at random, and kill -9 the process that does it; ask again until it is done."""
    until = trio.current_time() + seconds
    async with httpx.AsyncClient(timeout=GATEWAY_SECONDS) as client:
        while True:
            await _erase_some(world, client)
            if trio.current_time() >= until:
                return


async def _erase_some(world: World, client: httpx.AsyncClient) -> None:
    rows = await _some_stored(world, "true", 4)
    ids, users = [row["conversation_id"] for row in rows[:3]], [row["user_id"] for row in rows[3:]]
    paths = [*(f"/v1/conversations/{one}" for one in ids), *(f"/v1/users/{one}" for one in users)]
    convo = world.some_convo()
    async with convo.busy:
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(_delete, client, convo, path)
            await trio.sleep(world.chance.uniform(0, 0.1))
            await convo.killed()
        await convo.start()
    for path in paths:
        while await _delete(client, world.some_convo(), path) not in _DELETED:  # noqa: ASYNC110  (no event)
            await trio.sleep(0.5)
    world.erased |= set(ids)


# 404: the database was taken back meanwhile, and does not know it.
_DELETED = (200, 404)


async def _delete(client: httpx.AsyncClient, convo: Convo, path: str) -> int | None:
    with suppress(OSError, httpx.HTTPError):
        return (await client.delete(convo.url + path)).status_code
    return None


async def retention(world: World, seconds: float) -> None:
    """Make conversations old that are done, in the books too, so that they are over."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        rows = await _some_stored(world, "state = 'done'", 5)
        ids = [row["conversation_id"] for row in rows]
        # Before it is done: they may go at once.
        world.aged |= set(ids)
        with suppress(*_AWAY):
            await world.execute(_AGE.format(", ".join(f"'{one}'" for one in ids) or "''"))
        await trio.sleep(0.5)


async def _some_stored(world: World, condition: str, count: int) -> list[Any]:
    """Choose conversations that are stored; those of probes are waited for, so they stay."""
    while True:
        with suppress(*_AWAY):
            return await world.ask(_STORED.format(condition), str(world.chance.random()), count)
        await trio.sleep(0.1)


# By chance, and the same for the same number.
_STORED = """
SELECT conversation_id, user_id FROM conversation JOIN every_job USING (seq)
WHERE starts_with(conversation_id, 'torture-') AND {} ORDER BY md5(conversation_id || $1::text) LIMIT $2
"""
_BOOKED = """
INSERT INTO ledger (day, kind, n) SELECT (received_at AT TIME ZONE 'UTC')::date, kind, {} * count(*)
FROM old JOIN conversation USING (seq), (VALUES ('accepted'), ('done')) AS kinds (kind) GROUP BY 1, 2;
"""
_AGE = f"""
BEGIN;
CREATE TEMPORARY TABLE old ON COMMIT DROP AS
SELECT seq FROM conversation JOIN outcome USING (seq) WHERE conversation_id IN ({{}})
    AND received_at > convo_now() - interval '20 days' FOR UPDATE OF outcome;
{_BOOKED.format(-1)}
UPDATE conversation SET received_at = received_at - interval '40 days' WHERE seq IN (SELECT seq FROM old);
UPDATE receipt SET received_at = received_at - interval '40 days' WHERE seq IN (SELECT seq FROM old);
{_BOOKED.format(1)}
COMMIT;
"""


# --- to a process


async def kill_9(world: World, seconds: float) -> None:
    """Kill a process, and start another one in its place after a while."""
    convo = world.some_convo()
    async with convo.busy:
        await convo.killed()
        await trio.sleep(seconds)
        await convo.start()


async def sigterm_storm(world: World, seconds: float) -> None:
    """Send SIGTERM to a process five times; start another one when it has stopped."""
    convo = world.some_convo()
    async with convo.busy:
        convo.away()
        for _ in range(5):
            convo.signal(signal.SIGTERM)
            await trio.sleep(seconds / 5)
        await convo.ended([0])
        await convo.start()


async def stopped_past_its_lease(world: World, seconds: float) -> None:
    """Stop a process until its leases are long over and others have its jobs, then let it continue."""
    convo = world.some_convo()
    async with convo.busy:
        convo.away()
        convo.signal(signal.SIGSTOP)
        try:
            await trio.sleep(LEASE_SECONDS + seconds)
        finally:
            convo.signal(signal.SIGCONT)
        await _answers(convo)


async def _answers(convo: Convo) -> None:
    # What waited in its sockets is answered first.
    await trio.sleep(1.0)
    convo.back()


def other_settings(**settings: str) -> Fault:
    """Make the fault in which a process runs with other settings than those beside it (``__`` for the point)."""
    changed = {name.replace("__", "."): value for name, value in settings.items()}

    async def fault(world: World, seconds: float) -> None:
        convo = world.some_convo()
        async with convo.busy:
            await convo.stopped()
            await convo.start(settings=changed)
            await trio.sleep(seconds)
            await convo.stopped()
            await convo.start()

    return fault


async def parts_change(world: World, seconds: float) -> None:
    """Let one process declare a part that the others do not have, then another version of it, then none again.

    No score waits for it, and the model does not answer it: it stays behind as a job of its own, which only a process
    with the same declaration may take.
    """
    convo = world.some_convo()
    async with convo.busy:
        for prompt in ("What was it about?", "What was it about, in one word?"):
            await convo.stopped()
            await convo.start(settings={"parts.about.prompt": prompt, "parts.about.schema": _ABOUT})
            await trio.sleep(seconds / 2)
        await convo.stopped()
        await convo.start()


_ABOUT = '{"type": "object", "properties": {"about": {"type": "string"}}, "required": ["about"]}'


async def other_host(world: World, seconds: float) -> None:
    """Kill a process, and start it on a host of another name, as a container is; the same again back."""
    convo = world.some_convo()
    async with convo.busy:
        await convo.killed()
        await convo.start(program=("tests.support.renamed", f"pod-{world.chance.randrange(1_000_000)}"))
        await trio.sleep(seconds)
        await convo.killed()
        await convo.start()


async def folder_copied(world: World, seconds: float) -> None:
    """Copy a process's data folder while it works, and let another process take part on the copy for a while."""
    convo = world.some_convo()
    copy = Convo(world.folder / f"copy-{len(world.departed)}", world.settings)
    copy.visiting = True
    async with convo.busy, copy.busy:
        ignored = shutil.ignore_patterns("output.txt")
        await trio.to_thread.run_sync(partial(shutil.copytree, convo.folder, copy.folder, ignore=ignored))
        try:
            await copy.start()
            world.convos.append(copy)
            await trio.sleep(seconds)
            with trio.move_on_after(_NOTICED_SECONDS):
                while copy.folder_id == convo.folder_id:  # noqa: ASYNC110  (it changes in another process)
                    await trio.sleep(0.1)
            if copy.folder_id == convo.folder_id:
                copy.odd_ends.append(f"{copy.folder.name} has the id of the folder that it is a copy of")
            world.convos.remove(copy)
            world.departed.append(copy)
            await copy.stopped()
        finally:
            copy.signal(signal.SIGKILL)


# --- to the database


def taken_back(*, asleep: bool) -> Fault:
    """Make the fault in which a backup is restored that is so many seconds old.

    The processes are cut off meanwhile, because a restore is refused while one has a session; ``asleep``: one of them
    is stopped as well, and continues when the others have gone on. None is killed: the receipts that it must report are
    in its memory.
    """

    async def fault(world: World, seconds: float) -> None:
        async with AsyncExitStack() as stack:
            for convo in list(world.convos):
                await stack.enter_async_context(convo.busy)
            convos = list(world.convos)
            before = {convo.folder: _times_back(convo) for convo in convos}
            backup = str(world.folder / "backup")
            while (await convo_command(world, "backup", "--force", backup))[0]:  # noqa: ASYNC110  (a command is no event)
                await trio.sleep(0.2)
            await trio.sleep(seconds)
            # What is accepted now waits, with its words in the memory of the process that accepted it.
            await trio.to_thread.run_sync(partial(script, world.model, "stuck"))
            await trio.sleep(_BACKLOG_SECONDS)
            sleeper = world.chance.choice(convos) if asleep else None
            try:
                if sleeper is not None:
                    sleeper.away()
                    sleeper.signal(signal.SIGSTOP)
                await _restore(world, backup)
                await trio.sleep(LEASE_SECONDS if sleeper is not None else 0)
            finally:
                world.network.heal()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await trio.to_thread.run_sync(partial(script, world.model, *HEALTHY))
                if sleeper is not None:
                    sleeper.signal(signal.SIGCONT)
            if sleeper is not None:
                await _answers(sleeper)
            for convo in convos:
                await _notices(convo, before[convo.folder])

    return fault


async def _restore(world: World, backup: str) -> None:
    """Cut all processes off, restore, and note what is gone."""
    world.network.cut()
    while True:
        with suppress(*_AWAY):
            if not await world.ask(_SESSIONS):
                known, numbers = await _ids(world), await _event_numbers(world)
                code, _ = await convo_command(world, "restore", "--yes", backup)
                if code == 0:
                    world.gone |= known - await _ids(world)
                    left = await _event_numbers(world)
                    world.gone_events |= numbers.keys() - left.keys()
                    world.unnumbered_events |= {one for one, number in left.items() if number != numbers[one]}
                    world.network.heal()
                    return
        await trio.sleep(0.1)


_SESSIONS = "SELECT FROM pg_stat_activity WHERE starts_with(application_name, 'convo ')"


async def _ids(world: World) -> set[str]:
    """Read which conversations have a receipt; of what has expired that is all there is, so it is asked by its name."""
    stored = {row["conversation_id"] for row in await world.ask("SELECT conversation_id FROM conversation")}
    receipts = {row["id_hash"] for row in await world.ask("SELECT id_hash FROM receipt WHERE state = 'x'")}
    return stored | {name for name in world.aged if id_hash(name) in receipts}


async def _event_numbers(world: World) -> dict[str, int | None]:
    """Read the events of the outbox, each with its number in the order."""
    rows = await world.ask("SELECT number, salt, sequence FROM event")
    return {event_id(row["number"], row["salt"]): row["sequence"] for row in rows}


def _times_back(convo: Convo) -> int:
    return sum(1 for _ in convo.log_records("database_went_back"))


async def _notices(convo: Convo, before: int) -> None:
    """Wait until a process has reported that its database went back, in its log and as an alert."""
    alerts: list[str] = []
    async with httpx.AsyncClient(base_url=convo.url, timeout=GATEWAY_SECONDS) as client:
        with trio.move_on_after(_NOTICED_SECONDS):
            while _times_back(convo) == before or "DATABASE_WENT_BACK" not in alerts:
                await trio.sleep(0.2)
                with suppress(httpx.HTTPError):
                    alerts = [alert["type"] for alert in (await client.get("/v1/alerts")).json()["active"]]
            return
    convo.odd_ends.append(f"{convo.folder.name} did not report that its database went back")


async def postgres_dies(world: World, _: float) -> None:
    """Shut PostgreSQL down at once, as a crash does; it is started again and recovers."""
    before = world.postmaster
    with suppress(ProcessLookupError):
        os.kill(before, signal.SIGQUIT)
    while world.postmaster in {before, 0}:  # noqa: ASYNC110  (there is no event for its return)
        await trio.sleep(0.05)
    await _until_it_answers(world)


async def _until_it_answers(world: World) -> None:
    while True:
        with suppress(*_AWAY):
            await world.ask("SELECT 1")
            return
        await trio.sleep(0.1)


async def postgres_stands_still(world: World, seconds: float) -> None:
    """Stop all of PostgreSQL's processes for a while (SIGSTOP)."""
    pids = family(world.postmaster)
    signal_all(pids, signal.SIGSTOP)
    try:
        await trio.sleep(seconds)
    finally:
        signal_all(pids, signal.SIGCONT)


async def connections_terminated(world: World, seconds: float) -> None:
    """End convo's sessions one after the other, at random (pg_terminate_backend)."""
    statement = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE starts_with(application_name, 'convo ') ORDER BY random() LIMIT 2
    """
    with trio.move_on_after(seconds):
        while True:
            with suppress(*_AWAY):
                await world.ask(statement)
            await trio.sleep(0.1)


async def connections_exhausted(world: World, seconds: float) -> None:
    """Take every connection that the server has, as another client might, and end convo's own."""

    async def hold() -> None:
        held: list[Any] = []
        until = asyncio.get_running_loop().time() + seconds
        try:
            while (left := until - asyncio.get_running_loop().time()) > 0:
                with suppress(*_AWAY):
                    held.append(await asyncpg.connect(world.database, timeout=left + 1))
                    await held[0].execute(_OTHERS)
                    continue
                await asyncio.sleep(0.02)
        finally:
            for connection in held:
                connection.terminate()

    await trio.to_thread.run_sync(asyncio.run, hold())


_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, 'convo ')"


def transactions_fail(sqlstate: str) -> Fault:
    """Make the fault in which the server ends a part of the transactions with this SQLSTATE."""

    async def fault(world: World, seconds: float) -> None:
        await _change(world, _RAISING.format(sqlstate))
        try:
            for number, (table, event) in enumerate(_RAISING_AT):
                await _change(world, f"CREATE TRIGGER torture_{number} AFTER {event} ON {table} {_EACH}")
            await trio.sleep(seconds)
        finally:
            with trio.CancelScope(shield=True):
                for number, (table, _) in enumerate(_RAISING_AT):
                    await _change(world, f"DROP TRIGGER IF EXISTS torture_{number} ON {table}")

    return fault


_RAISING = """
CREATE OR REPLACE FUNCTION torture() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.3 THEN RAISE EXCEPTION 'torture' USING ERRCODE = '{}'; END IF;
    RETURN NULL;
END $$
"""
_EACH = "FOR EACH STATEMENT EXECUTE FUNCTION torture()"
_RAISING_AT = (("conversation", "INSERT"), ("relationship", "INSERT"), ("part", "INSERT"), ("job", "UPDATE"))


async def _change(world: World, statement: str) -> None:
    """Change the schema; repeat until the server does it."""
    while True:
        with suppress(*_AWAY):
            await world.execute(f"SET lock_timeout = '1s'; {statement}")
            return
        await trio.sleep(0.1)


def clock_stepped(hours: int) -> Fault:
    """Make the fault in which the database's clock is so many hours ahead for a while, then right again."""

    async def fault(world: World, seconds: float) -> None:
        try:
            await _change(world, _CLOCK.format(f"now() + interval ''{hours} hours''"))
            await trio.sleep(seconds)
        finally:
            with trio.CancelScope(shield=True):
                await _change(world, _CLOCK.format("now()"))

    return fault


_CLOCK = "CREATE OR REPLACE FUNCTION convo_now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT {}'"


# --- to the network


async def network_cut(world: World, seconds: float) -> None:
    """Tear down every connection to the database, and refuse new ones."""
    world.network.cut()
    await trio.sleep(seconds)
    world.network.heal()


async def network_hangs(world: World, seconds: float) -> None:
    """Let no byte through to the database, nor back."""
    world.network.hang()
    await trio.sleep(seconds)
    world.network.heal()


async def network_slow(world: World, seconds: float) -> None:
    """Let everything through a tenth of a second later."""
    world.network.delay(0.1)
    await trio.sleep(seconds)
    world.network.heal()


async def memory_away(world: World, seconds: float) -> None:
    """Refuse every connection to the memory service."""
    world.to_memory.cut()
    await trio.sleep(seconds)
    world.to_memory.heal()


# --- to the model


def model(*always: str) -> Fault:
    """Make the fault in which the model answers every call in this way."""

    async def fault(world: World, seconds: float) -> None:
        await trio.to_thread.run_sync(partial(script, world.model, *always))
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(partial(script, world.model, *HEALTHY))

    return fault


FAULTS: dict[str, Fault] = {
    "erasures, and kill -9 in between": erasures,
    "retention of what is old": retention,
    "kill -9 of a process": kill_9,
    "SIGTERM storm": sigterm_storm,
    "SIGSTOP of a process past its lease": stopped_past_its_lease,
    "other settings: lease_seconds": other_settings(jobs__lease_seconds="20"),
    "other settings: a weight of the score": other_settings(score__question="7"),
    "other settings: fairness.key": other_settings(fairness__key="bot"),
    "parts file of one process changes": parts_change,
    "host renamed": other_host,
    "data folder copied": folder_copied,
    "database taken back": taken_back(asleep=False),
    "database taken back, a process asleep": taken_back(asleep=True),
    "PostgreSQL dies and restarts": postgres_dies,
    "PostgreSQL stands still (SIGSTOP)": postgres_stands_still,
    "connections terminated at random": connections_terminated,
    "max_connections taken by others": connections_exhausted,
    "serialization failures": transactions_fail("40001"),
    "deadlocks": transactions_fail("40P01"),
    "clock 5 h ahead, and back": clock_stepped(5),
    "clock 5 h behind, and back": clock_stepped(-5),
    "network cut": network_cut,
    "network hangs": network_hangs,
    "network slow": network_slow,
    "model hangs": model("stuck"),
    "model answers 429 to half": model("sometimes", "0.5", "rate_limited", "1"),
    "model answers garbage": model("garbage"),
    "memory service away": memory_away,
}
