"""``convo check``: the ladder as it is set, and each dependency asked once with the time it took; it starts nothing.

It needs no running server and disturbs none: nothing is written, no schema is moved, no PostgreSQL is started.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct
from rich.table import Table
from rich.text import Text

from convo.analysis.llm import Model
from convo.analysis.memory import MemoryService
from convo.analysis.remote import open_client
from convo.bridge import Bridge, open_bridge
from convo.config import Rung, Settings, ladder
from convo.errors import ConvoError
from convo.store import embedded
from convo.store.migrate import migrations, stored_version
from convo.store.postgres import inspect, open_postgres
from convo.store.promises import check_room, connections_spare, connections_wanted, risks
from convo.terminal import plain, tell

_Ask = Callable[[], Awaitable[str]]


class Checked(Struct, frozen=True, kw_only=True):
    """One dependency, whether it will do, how long that took to find out, and what it said."""

    name: str
    good: bool
    seconds: float
    said: str


def check(settings: Settings) -> int:
    """Print the ladder and every dependency; return 1 when a rung is broken or a dependency fails, else 0."""
    rungs = ladder(settings)
    tell(draw_ladder(rungs))
    found = trio.run(ask, settings)
    tell(draw_dependencies(found))
    broken = [rung for rung in rungs if not rung.stands]
    failed = [one.name for one in found if not one.good]
    stands = f"{len(broken)} of {len(rungs)} rungs are broken" if broken else "the ladder stands"
    answers = f"{' and '.join(failed)} failed" if failed else "all that is configured answers"
    tell(plain(f"{stands}; {answers}"))
    return 1 if broken or failed else 0


# --- the dependencies


async def ask(settings: Settings) -> list[Checked]:
    """Ask the database, and the model and the memory service where they are configured, once, one after the other."""
    async with open_bridge() as bridge:
        asks: dict[str, _Ask] = {"database": partial(_database, settings, bridge)}
        if settings.llm.model:
            asks["llm"] = partial(_llm, settings)
        if settings.memory.url:
            asks["memory"] = partial(_memory, settings)
        return [await _timed(name, one) for name, one in asks.items()]


async def _timed(name: str, one: _Ask) -> Checked:
    began = trio.current_time()
    try:
        said, good = await one(), True
    except ConvoError as error:
        said, good = error.detail, False
    return Checked(name=name, good=good, seconds=trio.current_time() - began, said=said)


async def _database(settings: Settings, bridge: Bridge) -> str:
    if settings.database.url:
        return await _server(settings, bridge, settings.database.url.reveal())
    seen = await embedded.look(Path(settings.server.data_dir))
    if seen.dsn is None:
        check_room(embedded.CONNECTIONS, settings.database.pool_max)
        does = "starts it" if seen.made else "makes it"
        return f"embedded PostgreSQL {seen.version} is not running; `convo serve` {does} in {seen.data_folder}"
    return f"embedded, in {seen.data_folder}: {await _server(settings, bridge, seen.dsn)}"


async def _server(settings: Settings, bridge: Bridge, url: str) -> str:
    async with open_postgres(bridge, url, settings.database) as postgres:
        line = postgres.line()
        try:
            found = await inspect(postgres, line)
            check_room(found, settings.database.pool_max)
            version = await stored_version(line)
        finally:
            await line.close()  # noqa: ASYNC102  (shields itself, with a bound)
    wanted = connections_wanted(settings.database.pool_max)
    room = f"takes {connections_spare(found)} connections, this process opens {wanted} at most"
    warnings = [f"warning: {warning}" for warning in risks(found).values()]
    return "; ".join((f"PostgreSQL {found['server_version']}", _schema(version), room, *warnings))


def _schema(version: int) -> str:
    newest = migrations()[-1][0]
    if version == newest:
        return f"schema version {version}"
    has = f"schema version {version}" if version else "no schema yet"
    return f"{has}, `convo serve` brings it to {newest}"


async def _llm(settings: Settings) -> str:
    async with open_client(settings.llm) as client:
        return await Model(client, settings.llm).check()


async def _memory(settings: Settings) -> str:
    async with open_client(settings.memory) as client:
        return await MemoryService(client, settings.memory).check()


# --- how it looks


def draw_ladder(rungs: tuple[Rung, ...]) -> Table:
    """Draw every rung with its numbers, and what would happen at run time where it is broken."""
    table = _table("inside", "seconds", "", "outside", "seconds", "")
    for rung in rungs:
        verdict = Text("ok", "green") if rung.stands else plain(rung.otherwise, "red")
        table.add_row(
            plain(rung.inside),
            f"{rung.inside_seconds:g}",
            rung.relation,
            plain(rung.outside),
            f"{rung.outside_seconds:g}",
            verdict,
        )
    return table


def draw_dependencies(found: list[Checked]) -> Table:
    """Draw every dependency with its time and what it said."""
    table = _table("dependency", "", "ms", "")
    for one in found:
        verdict = Text("ok", "green") if one.good else Text("fails", "red")
        table.add_row(plain(one.name), verdict, f"{one.seconds * 1000:.0f}", plain(one.said, "" if one.good else "red"))
    return table


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in ("seconds", "ms") else "left")
    return table
