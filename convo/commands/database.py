"""``convo backup``, ``restore``, ``audit``, ``retention``, ``key``: they work on a database itself, not on a server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct

from convo import scrub
from convo.analysis.memory import MemoryService
from convo.conversation.identity import DEFAULT_TENANT
from convo.embedded import access, location
from convo.embedded.access import new_database
from convo.embedded.server import Embedded, open_embedded, running_dsn
from convo.erase_again import ErasedAgain, erase_again
from convo.errors import Refused
from convo.retention import held_back_by
from convo.retention_report import DueKind, read_due
from convo.runtime import identity
from convo.runtime.bridge import open_bridge
from convo.runtime.deadline import deadline
from convo.scrub import Scrubbed, ScrubbedTable, Size
from convo.settings import Settings
from convo.startup import describe_url
from convo.store import audit_log, erasure_file, erasure_list, keys, ledger, page_sessions, tenants
from convo.store.audit import anomalies
from convo.store.audit_log import AuditEntry
from convo.store.backup import read_made_at, restore_backup, write_backup
from convo.store.contents import read_contents
from convo.store.erasure_file import ErasureList
from convo.store.imported import BookedTotals, EarlierTotal, book_totals
from convo.store.keys import ApiKey, Expiry, Scope
from convo.store.migrate import contract_wait, migrate, read_schema
from convo.store.migrations import migrations
from convo.store.page_sessions import PageSession
from convo.store.postgres import Connection, DedicatedConnection, Postgres, open_postgres
from convo.store.processes import holders
from convo.store.untold import Telling
from convo.telling import telling_of

_FILE_SECONDS = 60.0
# A list of a million.
_LIST_SECONDS = 120.0

# As many as settlers may wait for.
_TOTALS_A_BATCH = 200


class Replacement(Struct, frozen=True, kw_only=True):
    """What a restore replaces, and by what, each in words for a person."""

    database: str
    contents: str
    backup: str
    made_at: str = ""


async def backup(settings: Settings, file: Path, *, replace: bool = False) -> int:
    """Write a consistent copy of the database to ``file``, also while it is in use; return its size in bytes.

    Raises:
        Refused: there is no such database, no convo has served it, it refuses the backup, or the file exists and
            ``replace`` is false.
    """
    if not replace and os.path.lexists(file):
        raise Refused(f"{file} exists already: choose another name, or replace it with --force")
    async with existing_database(settings) as url:
        async with _opened(settings, url) as (_, connection):
            await _refuse_unserved(settings, connection)
        return await write_backup(url, file, replace=replace)


async def restore(
    settings: Settings,
    file: Path,
    confirm: Callable[[Replacement], None] = lambda _replacement: None,
    *,
    without_erasures: bool = False,
) -> ErasedAgain:
    """Replace the database by what ``file`` holds, completely or not at all, after ``confirm`` has returned.

    What was erased since the backup was made is erased again, by the lists in the data folder and in the database that
    is replaced; return how much that was. ``without_erasures``: it comes back, where no process of such a list starts.
    ``confirm`` may raise, and nothing is changed then.

    Raises:
        Refused: a convo serves the database, ``file`` is no backup, no list of erasures of its installation is here,
            or the database refuses it.
    """
    lists = None if without_erasures else await _read_files(settings)
    url = settings.database.url.reveal()
    if url:
        await _refuse_holders(url, settings)
        replacement, ending = await _replacement(url, settings, file, describe_url(url), lists)
        confirm(replacement)
        await restore_backup(url, file, ending=ending)
        return await _erase_again(settings, url)
    async with _stopped(settings) as running:
        where = f"embedded PostgreSQL {running.version} in {running.data_folder}"
        replacement, ending = await _replacement(running.dsn, settings, file, where, lists)
        confirm(replacement)
        async with new_database(running.location) as fresh:
            await restore_backup(fresh, file, ending=ending)
            # Before it takes the place of the other one.
            return await _erase_again(settings, fresh)


async def scrub_erased(
    settings: Settings, confirm: Callable[[Sequence[Size]], None], report: Callable[[ScrubbedTable, float], None]
) -> Scrubbed:
    """Write every table anew that an erasure touches, after ``confirm`` has returned; as ``scrub.scrub``.

    Raises:
        Refused: there is no such database, no convo has served it, or an older transaction is open.
    """
    async with existing_database(settings) as url:
        here = None if settings.database.url else await location.prepare_location(Path(settings.server.data_dir))
        as_superuser = None if here is None else partial(access.run_as_superuser, here)
        async with open_bridge() as bridge, open_postgres(bridge, url, settings.database) as postgres:
            connection = postgres.dedicated(**scrub.SCRUB_SETTINGS)
            try:
                await _refuse_unserved(settings, connection)
                sizes = await scrub.read_sizes(connection)
                confirm(sizes)
                await connection.run("db.scrub", partial(_note_scrub, sizes))
                return await scrub.scrub(connection, sizes, report, as_superuser)
            finally:
                await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)


async def _note_scrub(sizes: Sequence[Size], connection: Connection) -> None:
    detail = {"tables": len(sizes), "bytes": sum(one.bytes for one in sizes)}
    await audit_log.append(connection, AuditEntry(action="scrub", detail=detail))


async def _read_files(settings: Settings) -> list[ErasureList]:
    with deadline("erasures.file", _FILE_SECONDS):
        return await trio.to_thread.run_sync(erasure_file.read_all, Path(settings.server.data_dir))


async def _erase_again(settings: Settings, url: str) -> ErasedAgain:
    """Erase what the restore has left to be erased, with this program's schema where there is any."""
    async with _opened(settings, url) as (postgres, connection):
        if not await connection.run("db.erasures", _any_left):
            return ErasedAgain()
        await migrate(connection)
        done = await erase_again(
            postgres,
            erased=lambda _seqs: None,
            telling=_telling(settings),
            in_objects=settings.logs.in_objects,
        )
    if done is None:
        raise Refused(
            "the backup is restored, and what was erased since it was made is not erased again yet: the next start of"
            " `convo serve` does it before it takes requests"
        )
    return done


async def _any_left(connection: Connection) -> bool:
    if not await connection.fetchval("SELECT to_regclass('public.erase_again') IS NOT NULL"):
        return False
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM public.erase_again)"))


def _telling(settings: Settings) -> Telling | None:
    return telling_of(MemoryService(settings.memory)) if settings.memory.url else None


async def _refuse_holders(url: str, settings: Settings) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, url, settings.database) as postgres:
        names = await holders(postgres)
    if names:
        raise Refused(
            f"{'; '.join(names)}: still on this database, also where it does not answer; stop each, or end its sessions"
            " with pg_terminate_backend when it is gone for good; then restore"
        )


async def _replacement(
    url: str, settings: Settings, file: Path, database: str, lists: Sequence[ErasureList] | None
) -> tuple[Replacement, str]:
    """Return what is replaced by what, and the SQL that ends the restore; ``lists`` are those of the data folder."""
    made_at, size_bytes = await read_made_at(file), file.stat().st_size
    async with _opened(settings, url) as (postgres, connection):
        contents = await read_contents(postgres)
        read = partial(erasure_list.read_list, place="the database itself")
        own = None if lists is None else await connection.run("db.erasures", read, seconds=_LIST_SECONDS)
    size = f"{file}: {size_bytes:,} bytes"
    replacement = Replacement(
        database=database,
        contents=contents.description,
        backup=f"{size}, made at {made_at}" if made_at else size,
        made_at=made_at,
    )
    noted = audit_log.restored(made_at, size_bytes, without_erasures=lists is None)
    return replacement, noted + ("" if lists is None else erasure_list.restoring([*lists, *([own] if own else [])]))


async def audit(settings: Settings) -> list[str]:
    """Compare the tables with the ledger for all days, and with each other; return a sentence for each difference.

    Raises:
        Refused: there is no such database, no convo has served it, its schema is not this program's, or it refuses the
            audit.
    """
    async with existing_database(settings) as url, _opened(settings, url) as (_, connection):
        await _refuse_other_schema(settings, connection, "audits")
        differences = [
            f"{gap.day}: {gap.booked} {gap.what} are in the books, {gap.found} in the tables"
            for gap in await ledger.gaps(connection)
        ]
        return differences + [
            f"{anomaly.count} {anomaly.what}: {', '.join(anomaly.examples)}" for anomaly in await anomalies(connection)
        ]


async def retention_due(settings: Settings, *, count: bool) -> list[DueKind]:
    """Read since when the oldest of each kind is stored, and when it goes; with ``count``, how many are over.

    Raises:
        Refused: as ``audit``.
    """
    async with existing_database(settings) as url, _opened(settings, url) as (postgres, connection):
        await _refuse_other_schema(settings, connection, "reads")
        return await read_due(postgres, settings.retention, count=count)


async def import_totals(
    settings: Settings,
    import_id: str,
    totals: Sequence[EarlierTotal],
    booked: Callable[[BookedTotals], None],
    *,
    tenant: str = DEFAULT_TENANT,
) -> None:
    """Add totals of an earlier service to a tenant's relationships, batch by batch, each once under ``import_id``.

    ``booked`` is called after each batch.

    Raises:
        Refused: as ``audit``, or an older convo is at work on the database.
    """
    async with existing_database(settings) as url, _opened(settings, url) as (postgres, connection):
        await _refuse_other_schema(settings, connection, "writes")
        for batch in (totals[at : at + _TOTALS_A_BATCH] for at in range(0, len(totals), _TOTALS_A_BATCH)):

            async def body(unit: Connection, batch: Sequence[EarlierTotal] = batch) -> BookedTotals:
                if older := await held_back_by(unit):
                    at_work = "; ".join(map(str, older))
                    raise Refused(f"nothing more is imported while an older convo is at work: {at_work}")
                return await book_totals(unit, await tenants.find_or_make(unit, tenant), import_id, batch)

            booked(await postgres.run("db.import", body))


@asynccontextmanager
async def open_served(settings: Settings, reads: str) -> AsyncIterator[Postgres]:
    """Open the database for the block; ``reads`` says what is done with it.

    Raises:
        Refused: as ``audit``.
    """
    async with existing_database(settings) as url, _opened(settings, url) as (postgres, connection):
        await _refuse_other_schema(settings, connection, reads)
        yield postgres


async def _refuse_other_schema(settings: Settings, connection: DedicatedConnection, reads: str) -> None:
    await _refuse_unserved(settings, connection)
    schema = await read_schema(connection)
    # A contract step that waits for older processes changes nothing that is read here, unless it is needed.
    if schema.missing([one for one in migrations() if one.needed]) is not None:
        raise Refused(
            f"the database has schema version {schema.version}, and this program {reads} version"
            f" {migrations()[-1].number}: `convo serve` brings it there"
        )


async def _refuse_unserved(settings: Settings, connection: DedicatedConnection) -> None:
    async def body(connection: Connection) -> bool:
        return await connection.fetchval("SELECT to_regclass('schema_version')") is not None

    if not await connection.run("db.schema", body):
        url = settings.database.url.reveal()
        where = describe_url(url) if url else f"the database in {settings.server.data_dir}"
        raise Refused(f"{where} has no tables of convo: no convo has served it yet. Is it the right one?")


# --- the keys of clients


async def new_key(  # noqa: PLR0913  (as store.keys.new)
    settings: Settings,
    name: str,
    scopes: Sequence[Scope],
    requests_per_second: float,
    expires: Expiry,
    *,
    tenant: str = DEFAULT_TENANT,
    bots: Sequence[str] = (),
) -> str:
    """Make a key for a client and return it; as ``store.keys.new``.

    The database is made where there is none: the first key can be made before the first server starts.
    """
    async with _running_database(settings) as url, _migrated(settings, url) as postgres:
        return await keys.new(postgres, name, scopes, requests_per_second, expires=expires, tenant=tenant, bots=bots)


async def rotate_key(settings: Settings, key_id: str, overlap: timedelta, expires: Expiry | None) -> str:
    """Make a key that replaces another and return it; as ``store.keys.rotate``."""
    async with existing_database(settings) as url, _migrated(settings, url) as postgres:
        return await keys.rotate(postgres, key_id, overlap, expires=expires)


async def list_keys(settings: Settings) -> list[ApiKey]:
    """Read the keys that are not revoked, also those that have expired.

    Raises:
        Refused: there is no such database.
    """
    async with existing_database(settings) as url, _migrated(settings, url) as postgres:
        return await keys.not_revoked(postgres)


async def revoke_key(settings: Settings, key_id: str) -> None:
    """Make a key invalid.

    Raises:
        Refused: there is no such database.
        NotFound: no valid key has this id.
    """
    async with existing_database(settings) as url, _migrated(settings, url) as postgres:
        await keys.revoke(postgres, key_id)


async def list_sessions(settings: Settings) -> list[PageSession]:
    """Read the sessions of browsers that are valid.

    Raises:
        Refused: there is no such database.
    """
    async with existing_database(settings) as url, _migrated(settings, url) as postgres:
        return await page_sessions.list_page_sessions(postgres)


async def revoke_session(settings: Settings, session_id: str) -> None:
    """End the session of a browser.

    Raises:
        Refused: there is no such database.
        NotFound: no valid session has this id.
    """
    async with existing_database(settings) as url, _migrated(settings, url) as postgres:
        await page_sessions.end_page_session(postgres, session_id)


@asynccontextmanager
async def _migrated(settings: Settings, url: str) -> AsyncIterator[Postgres]:
    async with _opened(settings, url) as (postgres, connection):
        await migrate(connection)
        waits = await contract_wait(connection)
        if waits is not None and waits.needed:
            raise Refused(f"{waits}; stop it, then try again")
        yield postgres


# --- the database that the settings name


@asynccontextmanager
async def _opened(settings: Settings, url: str) -> AsyncIterator[tuple[Postgres, DedicatedConnection]]:
    """Open the database at ``url`` for the block, with a connection of its own."""
    async with open_bridge() as bridge, open_postgres(bridge, url, settings.database) as postgres:
        connection = postgres.dedicated()
        try:
            yield postgres, connection
        finally:
            await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)


@asynccontextmanager
async def existing_database(settings: Settings) -> AsyncIterator[str]:
    """Yield the URL of the database, started for the block where it is embedded and does not run.

    Raises:
        Refused: there is none in ``server.data_dir``.
    """
    data_dir = Path(settings.server.data_dir)
    if not (settings.database.url or (data_dir / "postgres").is_dir()):
        raise Refused(f"there is no database in {settings.server.data_dir}; name the folder with --data-dir")
    async with _running_database(settings) as url:
        yield url


@asynccontextmanager
async def _running_database(settings: Settings) -> AsyncIterator[str]:
    url = settings.database.url.reveal() or running_dsn(Path(settings.server.data_dir))
    if url:
        yield url
        return
    async with stopped_database(settings) as started:
        yield started


@asynccontextmanager
async def stopped_database(settings: Settings) -> AsyncIterator[str]:
    """Run the embedded PostgreSQL for the block, made new where there is none, and yield its URL.

    Raises:
        Refused: a convo serves on this folder.
    """
    async with _stopped(settings) as running:
        yield running.dsn


@asynccontextmanager
async def _stopped(settings: Settings) -> AsyncIterator[Embedded]:
    data_dir = Path(settings.server.data_dir)
    with identity.claim(data_dir):
        async with open_embedded(data_dir) as running:
            yield running
