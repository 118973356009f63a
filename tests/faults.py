"""What goes wrong in a world: each fault is brought about, held, and healed; who recovers is not its business."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import asyncpg
import trio

from tests.faking import script
from tests.world import LEASE_SECONDS, Convo, World, family, signal_all

Fault = Callable[[World, float], Awaitable[None]]
"""Brings it about, holds it for so many seconds where it lasts at all, and heals it."""

HEALTHY = ("scattered", "0.02")
_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)


# --- to a process


async def kill_9(world: World, seconds: float) -> None:
    """Kill a process, and start another one in its place after a while."""
    convo = world.some_convo()
    async with convo.busy:
        await convo.killed()
        await trio.sleep(seconds)
        await convo.start()


async def sigterm_storm(world: World, seconds: float) -> None:
    """Tell a process to stop, again and again; start another one when it has."""
    convo = world.some_convo()
    async with convo.busy:
        convo.away()
        for _ in range(5):
            convo.signal(signal.SIGTERM)
            await trio.sleep(seconds / 5)
        await convo.ended([0])
        await convo.start()


async def stopped_past_its_lease(world: World, seconds: float) -> None:
    """Stop a process until its leases are long over and others have its jobs, then let it go on."""
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


# --- to the database


async def postgres_dies(world: World, _: float) -> None:
    """Shut PostgreSQL down at once, as a crash does; it is started again and recovers."""
    before = world.postmaster
    with suppress(ProcessLookupError):
        os.kill(before, signal.SIGQUIT)
    while world.postmaster in {before, 0}:  # noqa: ASYNC110  (nothing rings when it is back)
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
    """Take every connection that the server has, as somebody else might, and end convo's own."""

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
    """Change the schema, again and again until the server takes it."""
    while True:
        with suppress(*_AWAY):
            await world.tell(f"SET lock_timeout = '1s'; {statement}")
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
    """Make the fault in which the model meets every call like this."""

    async def fault(world: World, seconds: float) -> None:
        await trio.to_thread.run_sync(partial(script, world.model, *always))
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(partial(script, world.model, *HEALTHY))

    return fault


FAULTS: dict[str, Fault] = {
    "kill -9 of a process": kill_9,
    "SIGTERM storm": sigterm_storm,
    "SIGSTOP of a process past its lease": stopped_past_its_lease,
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
