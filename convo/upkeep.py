"""``convo backup``, ``restore`` and ``audit``: finds the database that the settings mean, running or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from convo import identity
from convo.bridge import open_bridge
from convo.config import Settings
from convo.errors import Refused
from convo.store import backup as copies
from convo.store import embedded, keys, ledger
from convo.store.keys import Key, Scope
from convo.store.migrate import migrate
from convo.store.postgres import Postgres, open_postgres
from convo.store.processes import signed_in


async def backup(settings: Settings, file: Path) -> int:
    """Write a consistent copy of the database to ``file``, while it is in use or not; return its size in bytes.

    Raises:
        Refused: there is no such database, or it does not let us.
    """
    url = settings.database.url.reveal() or embedded.address(Path(settings.server.data_dir))
    if url:
        return await copies.backup(url, file)
    if not (Path(settings.server.data_dir) / "postgres").is_dir():
        raise Refused(f"there is no database in {settings.server.data_dir}; name the folder with --data-dir")
    async with stopped(settings) as started:
        return await copies.backup(started, file)


async def restore(settings: Settings, file: Path) -> None:
    """Put the database back to what ``file`` holds, whole or not at all.

    Raises:
        Refused: a convo serves the database, ``file`` is no backup, or the database does not let us.
    """
    url = settings.database.url.reveal()
    if not url:
        async with stopped(settings) as started:
            await copies.restore(started, file)
        return
    async with open_bridge() as bridge, open_postgres(bridge, url, settings.database) as postgres:
        names = await signed_in(postgres)
    if names:
        raise Refused(f"{', '.join(names)} still serve on this database: stop them, then restore")
    await copies.restore(url, file)


async def audit(settings: Settings) -> list[str]:
    """Compare the tables with the books for all days, and with each other; return a sentence for each thing amiss.

    Raises:
        Refused: there is no such database, or it does not let us.
    """
    url = settings.database.url.reveal() or embedded.address(Path(settings.server.data_dir))
    if url:
        return await _audit(settings, url)
    if not (Path(settings.server.data_dir) / "postgres").is_dir():
        raise Refused(f"there is no database in {settings.server.data_dir}; name the folder with --data-dir")
    async with stopped(settings) as started:
        return await _audit(settings, started)


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[Postgres]:
    """Open the database that the settings mean: a given one, or the embedded one, running or not.

    Raises:
        Refused: there is no such database, or it does not let us.
    """
    url = settings.database.url.reveal() or embedded.address(Path(settings.server.data_dir)) or ""
    async with AsyncExitStack() as stack:
        found = url or await stack.enter_async_context(stopped(settings))
        bridge = await stack.enter_async_context(open_bridge())
        yield await stack.enter_async_context(open_postgres(bridge, found, settings.database))


async def new_key(settings: Settings, name: str, scopes: Sequence[Scope], requests_per_second: float) -> str:
    """Make a key for a client and return it; as ``store.keys.new``, on a database that is brought up to date."""
    async with database(settings) as postgres:
        await _up_to_date(postgres)
        return await keys.new(postgres, name, scopes, requests_per_second)


async def list_keys(settings: Settings) -> list[Key]:
    """Read the keys that are good."""
    async with database(settings) as postgres:
        await _up_to_date(postgres)
        return await keys.good(postgres)


async def revoke_key(settings: Settings, key_id: str) -> None:
    """Let a key be good no longer.

    Raises:
        NotFound: there is none of this id that is good.
    """
    async with database(settings) as postgres:
        await _up_to_date(postgres)
        await keys.revoke(postgres, key_id)


async def _up_to_date(postgres: Postgres) -> None:
    """Let the first key be made before the first server starts."""
    line = postgres.line()
    try:
        await migrate(line)
    finally:
        await line.close()  # noqa: ASYNC102  (shields itself, with a bound)


async def _audit(settings: Settings, url: str) -> list[str]:
    async with open_bridge() as bridge, open_postgres(bridge, url, settings.database) as postgres:
        line = postgres.line()
        try:
            found = [
                f"{gap.day}: {gap.booked} {gap.what} are in the books, {gap.found} in the tables"
                for gap in await ledger.gaps(line)
            ]
            found += [f"{odd.count} {odd.what}: {', '.join(odd.examples)}" for odd in await ledger.anomalies(line)]
        finally:
            await line.close()  # noqa: ASYNC102  (shields itself, with a bound)
    return found


@asynccontextmanager
async def stopped(settings: Settings) -> AsyncIterator[str]:
    """Run the embedded PostgreSQL for ourselves, made new where there is none; refused while a convo serves on it."""
    data_dir = Path(settings.server.data_dir)
    with identity.claim(data_dir):
        async with embedded.embedded(data_dir) as server:
            yield server.dsn
