"""Where the logs of a world move to: an S3 server behind a network that can fail, and what goes wrong with it.

The audit compares at the end: every log that is stored can be read and is the one that was sent, the objects are those
that are referred to, and of what was erased or has expired no word stands in any object or older version.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from tests.support.buckets import S3Server, own_s3, variables
from tests.support.old_logs import inflated
from tests.support.ports import free_port
from tests.support.proxy import Proxy, open_proxy
from tests.torture.auditor import Finding, Outcome, finding
from tests.torture.load import body
from tests.torture.world import GATEWAY_SECONDS, World, convo_command

# All logs move within seconds, also those of jobs that have not ended; small objects, so that there are many.
SETTINGS = {
    "pack_after_seconds": "3",
    "pack_bytes": "4096",
    "local_bytes_max": "1",
    "attempt_seconds": "1",
    "write_seconds": "2",
    "batch_seconds": "5",
    "look_seconds": "0.5",
    "cache_bytes": "20000",
    "breaker_open_seconds": "1",
}
_SETTLED_SECONDS = 120.0
_READERS = 4


class ObjectsOutside:
    """The object storage of a run."""

    def __init__(self, server: S3Server, network: Proxy) -> None:
        self.server = server
        self.network = network
        self.bucket = server.made(versions=True)

    @property
    def settings(self) -> dict[str, str]:
        """What the processes of the world are started with besides."""
        return variables(f"http://127.0.0.1:{self.network.port}", self.bucket, **SETTINGS)

    async def until_moved(self, world: World) -> None:
        """Wait until nothing moves any more, and nothing waits to be erased."""
        with trio.move_on_after(_SETTLED_SECONDS):
            while await world.ask(LEFT):  # noqa: ASYNC110  (a database rings no bell)
                await trio.sleep(0.5)

    async def audit(self, world: World, outcome: Outcome) -> list[Finding]:
        """Compare what can be read with what was sent, and what lies in the bucket with what should."""
        rows = await world.ask("SELECT conversation_id FROM conversation ORDER BY seq")
        odd = await self._read_all(world, [row["conversation_id"] for row in rows])
        code, text = await convo_command(world, "audit", "--objects", settings=self.settings)
        stands = inflated(list((await trio.to_thread.run_sync(self.server.bodies, self.bucket)).values())).decode()
        gone = outcome.erased | outcome.expired
        left = [tuple(row) for row in await world.ask(LEFT)]
        return [
            finding("logs that cannot be read, or are others", odd),
            finding("convo audit --objects", [text] if code else []),
            finding("erased or expired, and still in an object", sorted(one for one in gone if f"{one}." in stands)),
            finding("logs that wait to be erased, and objects to be deleted", left),
        ]

    async def _read_all(self, world: World, names: Sequence[str]) -> list[str]:
        odd: list[str] = []
        room = trio.CapacityLimiter(_READERS)

        async def read(name: str) -> None:
            async with room:
                url = f"{world.convos[len(name) % len(world.convos)].url}/v1/conversations/{name}/log?as=sent"
                answer = await client.get(url)
            if answer.status_code != 200 or answer.json() not in _sent(name):
                odd.append(f"{name}: {answer.status_code}")

        async with httpx.AsyncClient(timeout=GATEWAY_SECONDS) as client, trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(read, name)
        return odd

    async def facts(self, world: World) -> list[tuple[str, str]]:
        """What is worth telling of it."""
        (row,) = await world.ask("SELECT count(*), coalesce(sum(cardinality(seqs)), 0) AS logs FROM log_object")
        packed = sum(record["logs"] for record in world.log_records("logs_packed"))
        return [
            ("objects of logs, logs in them", f"{row['count']:,}, {row['logs']:,}"),
            ("logs that moved, as the processes say", f"{packed:,}" if packed else "not logged at this level"),
        ]


def _sent(name: str) -> list[object]:
    """Return the logs that can have been accepted under this id: which of the variants came first is chance."""
    return [body(name, "", variant)["conversation_log"] for variant in (0, 1)]


@asynccontextmanager
async def open_objects(folder: Path) -> AsyncIterator[ObjectsOutside]:
    """Start an S3 server, and the network before it."""
    async with own_s3(folder) as server, open_proxy(("127.0.0.1", server.port), port=free_port()) as network:
        yield ObjectsOutside(server, network)


# --- what goes wrong with it


async def s3_killed(world: World, seconds: float) -> None:
    """Kill the server, and start it again after a while."""
    if world.objects is not None:
        server = world.objects.server
        await trio.to_thread.run_sync(server.kill)
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(server.start)


async def s3_stands_still(world: World, seconds: float) -> None:
    """Stop the server for a while (SIGSTOP)."""
    if world.objects is not None:
        world.objects.server.signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            world.objects.server.signal(signal.SIGCONT)


async def s3_cut(world: World, seconds: float) -> None:
    """Cut every connection to the server, and refuse new ones."""
    if world.objects is not None:
        world.objects.network.cut()
        await trio.sleep(seconds)
        world.objects.network.heal()


async def s3_loses_answers(world: World, seconds: float) -> None:
    """Tear connections down again and again: what was asked may be done, and nobody learns of it."""
    if world.objects is not None:
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            world.objects.network.drop()
            await trio.sleep(world.chance.uniform(0.0, 0.1))


async def s3_slow(world: World, seconds: float) -> None:
    """Let everything through late."""
    if world.objects is not None:
        world.objects.network.delay(0.7)
        await trio.sleep(seconds)
        world.objects.network.heal()


LEFT = """
SELECT name, state AS what, at, convo_now() AS now FROM log_object
WHERE state <> 'stored' AND at < convo_now() + interval '10 minutes'
UNION ALL SELECT name, 'erased ' || seq || CASE WHEN urgent THEN ', urgent' ELSE '' END, at, convo_now() FROM erased_log
"""
