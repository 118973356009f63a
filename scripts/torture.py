#!/usr/bin/env python3
"""Torture convo: real processes on one database get duplicates while everything around them fails; then audit them.

    .venv/bin/python scripts/torture.py --seed 1 [--conversations 3000] [--processes 3] [--workers 8]
                                                 [--memory-away] [--short] [--events] [--objects] [--only WORDS ...]
                                                 [--keep]

The seed decides what is sent and what goes wrong when: the same seed, the same schedule (``--plan`` shows it). First
each fault comes alone, and the time is taken until a new conversation is accepted and done again; then they come mixed.
With ``--memory-away`` the memory service cannot be reached from the first conversation on, while all the rest goes
wrong as well: nothing can be done until it is back. With ``--events`` a receiver of webhooks and a RabbitMQ take part:
what they get is compared with the outbox, and conversations come by a queue, too. With ``--objects`` all logs move into
an S3 server, which fails as well: each must be read again, and of what was erased nothing may stand there. After that
everything is healed, the backlog is waited for, and the auditor compares its own record with what it can see from
outside. Last a disk is filled twice over: once so that no table can grow, once so that the database's log cannot and
the server ends itself. Exit code 0: lost 0, twice 0, stuck 0, late 0.

With ``--keep`` the folder of a run that found something stays: the database, the logs of all processes, the receipts.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import trio
from msgspec import Struct, structs
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convo.settings import JobsSettings  # noqa: E402
from tests.support.disk import fill_the_disk  # noqa: E402
from tests.torture.auditor import Calm, Finding, Record, audit, read_outcome  # noqa: E402
from tests.torture.faults import FAULTS, Fault  # noqa: E402
from tests.torture.load import Load, probe, revive_the_dead, until_done  # noqa: E402
from tests.torture.objects import (  # noqa: E402
    ObjectsOutside,
    open_objects,
    s3_cut,
    s3_killed,
    s3_loses_answers,
    s3_slow,
    s3_stands_still,
)
from tests.torture.outside import Outside, broker_killed, broker_stands_still, open_outside  # noqa: E402
from tests.torture.world import World, open_world, wall  # noqa: E402

# Faults of one process may come at the same time; of each other kind one at a time.
_LANES = {
    **dict.fromkeys(("erasures", "kill", "SIGTERM", "SIGSTOP of", "other settings", "parts file", "host"), ""),
    "data folder": "",
    "model": "model",
    "memory": "memory",
    "network": "network",
    "retention": "retention",
    "database taken back": "database model network",
    "RabbitMQ": "RabbitMQ",
    "S3": "S3",
}
_DATABASE = "database"
_GOOD = "good"
_MIXED = "all of them mixed"
_MEMORY = "memory service away"
_MEMORY_ALL = f"{_MEMORY}, the whole run"
_CALM_SECONDS = 6.0
_DRAIN_SECONDS = 240.0
_LOGGED = {
    "late workers refused": "lease_lost",
    "processes that differ from the others": "settings_disagree",
    "copied folders": "folder_copied",
    "times that a process noticed a database that went back": "database_went_back",
    "logs of another conversation": "log_mismatch",
    "times that what was erased was erased again": "erased_again",
}
console = Console(width=120)


class Doing(Struct, frozen=True, kw_only=True):
    """One fault of the schedule: when it begins, in seconds from the start of its stage, and how long it is held."""

    at: float
    fault: str
    seconds: float


class Form(Struct, frozen=True, kw_only=True):
    """How much of it: of each fault the times it comes, and how long it is held."""

    faults: dict[str, tuple[int, float, float]]
    mixed_seconds: float
    alone: bool


LONG = Form(
    faults={
        "erasures, and kill -9 in between": (6, 0.0, 3.0),
        "retention of what is old": (4, 3.0, 6.0),
        "kill -9 of a process": (20, 0.2, 8.0),
        "SIGTERM storm": (5, 0.2, 1.0),
        "SIGSTOP of a process past its lease": (3, 2.0, 4.0),
        "other settings: lease_seconds": (2, 3.0, 8.0),
        "other settings: a weight of the score": (2, 3.0, 8.0),
        "other settings: fairness.key": (2, 3.0, 8.0),
        "parts file of one process changes": (2, 4.0, 8.0),
        "host renamed": (3, 1.0, 4.0),
        "data folder copied": (2, 6.0, 10.0),
        "database taken back": (2, 10.0, 30.0),
        "database taken back, a process asleep": (2, 3.0, 10.0),
        "PostgreSQL dies and restarts": (10, 0.0, 0.0),
        "PostgreSQL stands still (SIGSTOP)": (2, 5.0, 15.0),
        "connections terminated at random": (4, 2.0, 4.0),
        "max_connections taken by others": (2, 3.0, 5.0),
        "serialization failures": (2, 3.0, 5.0),
        "deadlocks": (2, 3.0, 5.0),
        "clock 5 h ahead, and back": (2, 2.0, 5.0),
        "clock 5 h behind, and back": (2, 2.0, 5.0),
        "network cut": (3, 2.0, 8.0),
        "network hangs": (2, 3.0, 6.0),
        "network slow": (2, 4.0, 8.0),
        "model hangs": (2, 6.0, 10.0),
        "model answers 429 to half": (2, 5.0, 8.0),
        "model answers garbage": (2, 4.0, 6.0),
        "memory service away": (2, 6.0, 12.0),
    },
    mixed_seconds=90.0,
    alone=True,
)
SHORT = Form(
    faults={
        "erasures, and kill -9 in between": (3, 0.0, 1.0),
        "retention of what is old": (2, 2.0, 3.0),
        "kill -9 of a process": (4, 0.1, 3.0),
        "SIGTERM storm": (1, 0.2, 0.2),
        "SIGSTOP of a process past its lease": (1, 1.0, 1.0),
        "other settings: a weight of the score": (1, 2.0, 2.0),
        "parts file of one process changes": (1, 3.0, 3.0),
        "data folder copied": (1, 4.0, 4.0),
        "database taken back, a process asleep": (1, 3.0, 3.0),
        "PostgreSQL dies and restarts": (2, 0.0, 0.0),
        "PostgreSQL stands still (SIGSTOP)": (1, 3.0, 4.0),
        "connections terminated at random": (1, 1.0, 2.0),
        "serialization failures": (1, 2.0, 2.0),
        "clock 5 h ahead, and back": (1, 2.0, 2.0),
        "clock 5 h behind, and back": (1, 2.0, 2.0),
        "network cut": (1, 2.0, 2.0),
        "model hangs": (1, 4.0, 4.0),
        "model answers 429 to half": (1, 3.0, 3.0),
        "memory service away": (1, 4.0, 4.0),
    },
    mixed_seconds=18.0,
    alone=False,
)

# A broker's start takes ten seconds.
EVENT_FAULTS: dict[str, Fault] = {
    "RabbitMQ is killed and restarts": broker_killed,
    "RabbitMQ stands still (SIGSTOP)": broker_stands_still,
}
_LONG_EVENTS = {"RabbitMQ is killed and restarts": (5, 0.0, 3.0), "RabbitMQ stands still (SIGSTOP)": (2, 4.0, 8.0)}
_SHORT_EVENTS = {"RabbitMQ is killed and restarts": (1, 0.0, 1.0), "RabbitMQ stands still (SIGSTOP)": (1, 3.0, 4.0)}
OBJECT_FAULTS: dict[str, Fault] = {
    "S3 is killed and restarts": s3_killed,
    "S3 stands still (SIGSTOP)": s3_stands_still,
    "S3 cut off": s3_cut,
    "S3 loses answers": s3_loses_answers,
    "S3 slow": s3_slow,
}
_LONG_OBJECTS = {
    "S3 is killed and restarts": (4, 0.0, 8.0),
    "S3 stands still (SIGSTOP)": (2, 4.0, 8.0),
    "S3 cut off": (3, 2.0, 8.0),
    "S3 loses answers": (4, 3.0, 8.0),
    "S3 slow": (2, 4.0, 8.0),
}
_SHORT_OBJECTS = {
    "S3 is killed and restarts": (1, 0.0, 3.0),
    "S3 stands still (SIGSTOP)": (1, 2.0, 3.0),
    "S3 cut off": (1, 2.0, 3.0),
    "S3 loses answers": (2, 2.0, 3.0),
    "S3 slow": (1, 2.0, 3.0),
}
# A database that goes back refers to objects that were written anew since, as a backup does without its objects.
_NOT_WITH_OBJECTS = ("database taken back",)


def with_events(form: Form) -> Form:
    """Return the form in which events are looked at."""
    return structs.replace(form, faults=form.faults | (_LONG_EVENTS if form.alone else _SHORT_EVENTS))


def with_objects(form: Form) -> Form:
    """Return the form in which logs move into objects."""
    kept = {name: how for name, how in form.faults.items() if not name.startswith(_NOT_WITH_OBJECTS)}
    return structs.replace(form, faults=kept | (_LONG_OBJECTS if form.alone else _SHORT_OBJECTS))


def main() -> int:
    """Torture, print what was seen; return 0 when nothing was lost, twice, stuck or late."""
    asked = _arguments()
    form = SHORT if asked.short else LONG
    if asked.events:
        form = with_events(form)
    if asked.objects:
        form = with_objects(form)
    if asked.only:
        chosen = {name: how for name, how in form.faults.items() if any(words in name for words in asked.only)}
        form = structs.replace(form, faults=chosen)
    if asked.memory_away:
        form = structs.replace(form, faults={name: how for name, how in form.faults.items() if name != _MEMORY})
    alone, mixed = plan(asked.seed, form)
    if asked.plan:
        for doing in (*alone, *mixed):
            print(f"{doing.at:7.1f} s  {doing.fault}, {doing.seconds:.1f} s")
        return 0
    with _folder(keep=asked.keep) as folder:
        torture = Torture(folder, asked.seed, memory_away=asked.memory_away)
        try:
            found = trio.run(torture.run, asked, form, (alone, mixed))
        finally:
            torture.close()
        console.print(torture.faults_table(asked.seed))
        console.print(torture.verdict_table(found))
        odd = any(one.count for one in found)
        if not odd:
            (folder / _GOOD).touch()
    return 1 if odd else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="what is sent, and what goes wrong when")
    parser.add_argument("--conversations", type=int, default=0, help="how many (3000; in the short form 300)")
    parser.add_argument("--processes", type=int, default=3, help="convo processes on one database")
    parser.add_argument("--workers", type=int, default=JobsSettings().workers, help="workers in each process")
    parser.add_argument("--events", action="store_true", help="webhooks, RabbitMQ and a queue of conversations besides")
    parser.add_argument("--objects", action="store_true", help="logs move into an S3 server, which fails as well")
    parser.add_argument("--memory-away", action="store_true", help="the memory service is away until all is healed")
    parser.add_argument("--short", action="store_true", help="about a minute: fewer of everything, nothing alone")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="only the faults whose names hold one of these")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a run that found something")
    parser.add_argument("--plan", action="store_true", help="print the schedule, and do nothing")
    asked = parser.parse_args()
    asked.conversations = asked.conversations or (300 if asked.short else 3000)
    return asked


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """Make a folder that the database's own user can reach too, in memory where that is possible.

    With ``keep`` it goes only where the run has left its mark that all was good.
    """
    memory = Path("/dev/shm")  # noqa: S108  (a folder of its own is made there)
    folder = Path(tempfile.mkdtemp(prefix="convo-torture-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        if keep and not (folder / _GOOD).exists():
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def plan(seed: int, form: Form) -> tuple[list[Doing], list[Doing]]:
    """Make the schedule: what comes alone, one after the other, and what comes mixed."""
    chance = random.Random(seed)
    alone: list[Doing] = []
    mixed: list[Doing] = []
    for fault, (times, shortest, longest) in form.faults.items():
        for time_ in range(times):
            doing = Doing(
                at=round(chance.uniform(0, form.mixed_seconds), 1),
                fault=fault,
                seconds=round(chance.uniform(shortest, longest), 1),
            )
            (alone if form.alone and not time_ else mixed).append(doing)
    chance.shuffle(alone)
    return alone, sorted(mixed, key=lambda doing: doing.at)


class Torture:
    """One run: what was done to whom, and how long it took to recover."""

    def __init__(self, folder: Path, seed: int, *, memory_away: bool) -> None:
        self._folder = folder
        self._memory_away = memory_away
        self._chance = random.Random(seed)
        self._record = Record(folder / "receipts.jsonl")
        self._spans: list[tuple[float, float]] = []
        self._injected: Counter[str] = Counter()
        # After how many seconds a new conversation was accepted, and done.
        self._recovered: dict[str, tuple[float, float | None]] = {}
        self._lanes: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._facts: list[tuple[str, str]] = []

    def close(self) -> None:
        """Close the auditor's record."""
        self._record.close()

    async def run(
        self, asked: argparse.Namespace, form: Form, stages: tuple[Sequence[Doing], Sequence[Doing]]
    ) -> list[Finding]:
        """Start everything, torture it, heal it, and audit."""
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            outside = None
            if asked.events:
                outside = await stack.enter_async_context(open_outside(self._folder / "broker", asked.seed))
            objects = await stack.enter_async_context(open_objects(self._folder / "s3")) if asked.objects else None
            settings = {
                "jobs.workers": str(asked.workers),
                **(outside.settings if outside else {}),
                **(objects.settings if objects else {}),
            }
            world = await stack.enter_async_context(open_world(self._folder, asked.processes, self._chance, settings))
            world.objects = objects
            load = Load(world, self._record, asked.seed, asked.conversations)
            async with trio.open_nursery() as nursery:
                with self._memory(world):
                    nursery.start_soon(load.run)
                    if outside is not None:
                        world.broker = outside.broker
                        await outside.registered(world)
                        nursery.start_soon(outside.send_by_queue, asked.seed, asked.conversations // 5)
                    await trio.sleep(_CALM_SECONDS)
                    await self._alone(world, stages[0])
                    await self._mixed(world, stages[1])
                if outside is not None:
                    outside.heal()
                self._report("everything is healed")
                load.hurry()
            found = await self._look(world, "model answers garbage" in form.faults, asked.seed)
            if outside is not None:
                found += await self._look_outside(world, outside)
            if objects is not None:
                found += await self._look_at_objects(world, objects)
        if not asked.only:
            found.append(await self._disk_full())
        self._facts.append(("the run took", f"{time.monotonic() - began:.0f} s"))
        self._facts.append(("conversations accepted", f"{len({one.id for one in self._record.read()}):,}"))
        self._facts.append(("requests answered", f"{sum(self._record.statuses.values()):,}"))
        self._facts.append(("answers", ", ".join(f"{what} {n:,}" for what, n in self._record.statuses.most_common())))
        self._facts.append(("slowest answer", f"{self._record.slowest:.2f} s"))
        return found

    @contextmanager
    def _memory(self, world: World) -> Iterator[None]:
        """Keep the memory service away inside the block, where that was asked for."""
        if not self._memory_away:
            yield
            return
        began = wall()
        world.to_memory.cut()
        try:
            yield
        finally:
            world.to_memory.heal()
        self._injected[_MEMORY_ALL] += 1
        self._spans.append((began, wall()))

    async def _probe(self, world: World) -> tuple[float, float | None]:
        return await probe(world, self._record, can_be_done=not self._memory_away)

    async def _alone(self, world: World, stage: Sequence[Doing]) -> None:
        for doing in stage:
            await self._do(world, doing)
            self._recovered[doing.fault] = await self._probe(world)
            self._spans[-1] = (self._spans[-1][0], wall())

    async def _mixed(self, world: World, stage: Sequence[Doing]) -> None:
        began, wall_began = trio.current_time(), wall()
        async with trio.open_nursery() as nursery:
            for doing in stage:
                await trio.sleep_until(began + doing.at)
                nursery.start_soon(self._in_its_lane, world, doing)
        self._recovered[_MIXED] = await self._probe(world)
        self._spans.append((wall_began, wall()))

    async def _in_its_lane(self, world: World, doing: Doing) -> None:
        lane = next((lane for start, lane in _LANES.items() if doing.fault.startswith(start)), _DATABASE)
        async with AsyncExitStack() as stack:
            for name in lane.split():
                await stack.enter_async_context(self._lanes[name])
            await self._do(world, doing)

    async def _do(self, world: World, doing: Doing) -> None:
        self._report(f"{doing.fault}, {doing.seconds:.1f} s")
        began = wall()
        await (FAULTS | EVENT_FAULTS | OBJECT_FAULTS)[doing.fault](world, doing.seconds)
        self._injected[doing.fault] += 1
        self._spans.append((began, wall()))

    async def _look(self, world: World, garbage: bool, seed: int) -> list[Finding]:  # noqa: FBT001
        began = trio.current_time()
        await until_done(world, _DRAIN_SECONDS, self._report)
        # A backlog may be touched by what was wrong before.
        self._spans.append((min(begin for begin, _ in self._spans), wall()))
        self._facts.append(("backlog done after", f"{trio.current_time() - began:.0f} s"))
        calm = Load(world, self._record, seed, 60, name="calm")
        await calm.run()
        await until_done(world, _DRAIN_SECONDS, self._report)
        self._report("the audit")
        found = await audit(world, self._record, Calm(self._spans), garbage=garbage)
        self._facts.append(("dead letters, with a true reason", str(await revive_the_dead(world))))
        await until_done(world, _DRAIN_SECONDS, self._report)
        for what, event in _LOGGED.items():
            self._facts.append((f"{what} ({event})", str(sum(1 for _ in world.log_records(event)))))
        reported = {name for record in world.log_records("receipts_missing") for name in record["conversation_ids"]}
        gone = {one.id for one in self._record.read() if one.status == 202} & world.gone
        self._facts.append(("conversations that the database lost", f"{len(gone)}, reported {len(gone & reported)}"))
        self._facts.append(("reported, though the database never lost them", str(len(reported - world.gone))))
        outcome = await read_outcome(world, {one.id for one in self._record.read() if one.status == 202})
        self._facts.append(("conversations that were erased", str(len(outcome.erased))))
        self._facts.append(("conversations that expired", str(len(outcome.expired))))
        if not any(one.count for one in found):
            found = await audit(world, self._record, Calm(self._spans), garbage=False)
        return found

    async def _look_outside(self, world: World, outside: Outside) -> list[Finding]:
        self._report("the audit of events")
        await outside.until_delivered(world)
        await until_done(world, _DRAIN_SECONDS, self._report)
        await outside.until_delivered(world)
        self._facts += outside.facts
        return await outside.audit(world)

    async def _look_at_objects(self, world: World, objects: ObjectsOutside) -> list[Finding]:
        self._report("the audit of objects")
        await objects.until_moved(world)
        self._facts += await objects.facts(world)
        accepted = {one.id for one in self._record.read() if one.status == 202}
        return await objects.audit(world, await read_outcome(world, accepted))

    async def _disk_full(self) -> Finding:
        self._report("the disk of the database is full")
        outcome = await fill_the_disk(self._folder / "small")
        self._facts.append(("disk full", outcome.summary))
        for fault, seconds in outcome.recovered.items():
            self._injected[fault] += 1
            self._recovered[fault] = seconds
        return Finding(what="lost or not done after a full disk", count=len(outcome.odd), examples=outcome.odd[:3])

    def _report(self, what: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')} {what}")

    def faults_table(self, seed: int) -> Table:
        """Make the table of what was done and how long it took to recover from it."""
        table = Table(f"seed {seed}: fault", "times", "alone, healed: accepted after", "done after")
        for fault, times in [*self._injected.items(), (_MIXED, "")]:
            seconds = self._recovered.get(fault)
            times_to = ["" if one is None else f"{one:.1f} s" for one in seconds or ()]
            table.add_row(fault, str(times), *times_to)
        return table

    def verdict_table(self, found: Sequence[Finding]) -> Table:
        """Make the table of what was found."""
        table = Table("what", "found")
        for what, fact in self._facts:
            table.add_row(what, fact)
        table.add_section()
        for one in found:
            examples = f"[red]{one.count:,}: {'; '.join(one.examples)}" if one.count else "0"
            table.add_row(one.what, examples)
        return table


if __name__ == "__main__":
    sys.exit(main())
