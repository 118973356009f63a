"""The list of erasures as a database has it: read whole, followed, and put into a database that is restored.

Open it to change what a process learns of erasures, or what a restore does with it. What is done with what a restore
left stands in ``erase_again.py``; the file of a process in ``erasure_file``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct

from convo.store.erasure_file import ErasureList, Listed, in_chunks
from convo.store.installation_key import FINGERPRINT, read_installation_key
from convo.store.postgres import RELAXED, Connection, Postgres

_PAGE_ROWS = 1000


class Followed(Struct, frozen=True, kw_only=True):
    """What was noted since the last look, and where the next one begins."""

    listed: Sequence[Listed]
    position: str


async def read_installation(connection: Connection) -> str:
    """Return the fingerprint of the installation that a database is of."""
    return (await read_installation_key(connection)).fingerprint


async def read_position(connection: Connection) -> str:
    """Return from where ``read_since`` finds all that is noted from now on."""
    position: str = await connection.fetchval(_POSITION)
    return position


async def read_since(connection: Connection, position: str) -> Followed:
    """Read what transactions noted that were not seen at ``position``; a thing may come twice."""
    # Before the rows: what is committed between the two comes again at the next look.
    following = await read_position(connection)
    rows = await connection.fetch(_SINCE, position)
    return Followed(listed=[listed_of(row) for row in rows], position=following)


async def read_pages(postgres: Postgres) -> AsyncIterator[list[Listed]]:
    """Read the whole list, page by page."""
    for statement, columns in ((_PAGE, 1), (_MEMORY_PAGE, 2)):
        after, more = (b"", b"")[:columns], True
        while more:
            page = await postgres.run("db.erasures", partial(_read_page, statement, after), begin=RELAXED)
            more = len(page) == _PAGE_ROWS
            if page:
                yield page
                after = (page[-1].hmac, page[-1].other)[:columns]


async def _read_page(statement: str, after: tuple[bytes, ...], connection: Connection) -> list[Listed]:
    return [listed_of(row) for row in await connection.fetch(statement, *after, _PAGE_ROWS)]


async def read_list(connection: Connection, place: str) -> ErasureList | None:
    """Read the whole list of a database of any version, for a restore that replaces it; None where it has none."""
    if not await connection.fetchval(_HAS_LIST):
        return None
    installation = await read_installation(connection)
    rows = [listed_of(row) for row in await connection.fetch(_WHOLE)]
    if await connection.fetchval("SELECT to_regclass('public.erase_again') IS NOT NULL"):
        rows += [listed_of(row) for row in await connection.fetch(_AGAIN)]
    listed: dict[tuple[str, bytes, bytes], Listed] = {}
    for one in rows:
        if one.key not in listed or listed[one.key].number < one.number:
            listed[one.key] = one
    return ErasureList(place=place, installation=installation, listed=listed)


def listed_of(row: Mapping[str, Any]) -> Listed:
    """Read one thing out of a row."""
    return Listed(kind=row["kind"], hmac=row["hmac"], number=row["number"], other=row["other"] or b"")


async def note_again(connection: Connection, listed: Sequence[Listed]) -> None:
    """Note what is to be erased again, in the caller's transaction."""
    await connection.execute(
        _NOTE_AGAIN,
        [one.kind for one in listed],
        [one.hmac for one in listed],
        [one.number for one in listed],
        [one.other for one in listed],
    )


def restoring(lists: Sequence[ErasureList]) -> str:
    """Return the SQL that notes, at the end of a restore and in its transaction, what is to be erased again.

    It ends the restore where the backup is of another installation than all of these lists: HMACs say nothing there.
    """
    places = "; ".join(f"{one.place} ({one.installation})" for one in lists) or "none"
    known = ", ".join(f"'{one.installation}'" for one in lists) or "''"
    # A backup from before there was a key does not say whose it is: no matter, where nothing was ever erased.
    matters = "true" if any(one.listed for one in lists) or not lists else "false"
    check = f"""
DO $convo$
DECLARE
    of_backup text;
    here text := {_quoted(places)};
BEGIN
    IF to_regclass('public.installation_key') IS NULL THEN
        IF {matters} THEN
            RAISE EXCEPTION 'the backup is older than the list of erasures, so what was erased since cannot be found in'
                ' it. With --without-erasures it is restored all the same, and what was erased comes back';
        END IF;
        RETURN;
    END IF;
    EXECUTE $query${FINGERPRINT}$query$ INTO of_backup;
    IF of_backup IS NULL OR of_backup NOT IN ({known}) THEN
        RAISE EXCEPTION 'no list of erasures of this backup is here: it is of the installation %, and here are: %. Copy'
            ' the file erasures-% from the data folder of a host that served it into this data folder. With'
            ' --without-erasures the backup is restored all the same, and what was erased since it was made comes back',
            of_backup, here, of_backup;
    END IF;
    {MAKE_AGAIN}
END
$convo$;
"""
    return check + "".join(
        _inserted(each.installation, chunk) for each in lists for chunk in in_chunks(each.listed.values(), _PAGE_ROWS)
    )


def _inserted(installation: str, listed: Sequence[Listed]) -> str:
    values = ",\n".join(
        f"('{one.kind}', '\\x{one.hmac.hex()}'::bytea, {one.number}::bigint, '\\x{one.other.hex()}'::bytea)"
        for one in listed
    )
    return f"""
INSERT INTO public.erase_again (kind, hmac, number, other)
SELECT * FROM (VALUES {values}) AS listed WHERE ({FINGERPRINT}) = '{installation}'
{_NEWER};
"""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


# The same as migration 24 makes: a backup from before has no such table.
MAKE_AGAIN = """
    CREATE TABLE IF NOT EXISTS public.erase_again (
        kind   text COLLATE "C" NOT NULL,
        hmac   bytea NOT NULL,
        number bigint NOT NULL,
        other  bytea NOT NULL,
        PRIMARY KEY (kind, hmac, other)
    );
"""
_MICROSECONDS = "(extract(epoch FROM begun_at) * 1000000)::bigint"
_POSITION = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
# erasure_noted_by, erased_memory_noted_by. What was restored into another cluster has numbers of that one: those that
# this cluster has not given yet are passed over, or they would be read at each look.
_SINCE = f"""
SELECT kind, id_hmac AS hmac, {_MICROSECONDS} AS number, hash_hmac AS other FROM erasure
WHERE noted_by >= $1::text::xid8 AND noted_by < pg_snapshot_xmax(pg_current_snapshot())
UNION ALL
SELECT 'memory', user_hmac, until_seq, key_hmac FROM erased_memory
WHERE noted_by >= $1::text::xid8 AND noted_by < pg_snapshot_xmax(pg_current_snapshot())
"""
_PAGE = f"""
SELECT kind, id_hmac AS hmac, {_MICROSECONDS} AS number, hash_hmac AS other
FROM erasure WHERE id_hmac > $1 ORDER BY id_hmac LIMIT $2
"""
_MEMORY_PAGE = """
SELECT 'memory' AS kind, user_hmac AS hmac, until_seq AS number, key_hmac AS other
FROM erased_memory WHERE (user_hmac, key_hmac) > ($1, $2) ORDER BY user_hmac, key_hmac LIMIT $3
"""
_HAS_LIST = "SELECT to_regclass('public.erasure') IS NOT NULL"
# A column that this version of the database may not have.
_WHOLE = f"""
SELECT kind, id_hmac AS hmac, {_MICROSECONDS} AS number,
       (to_jsonb(erasure) ->> 'hash_hmac')::bytea AS other FROM erasure
UNION ALL SELECT 'memory', user_hmac, until_seq, key_hmac FROM erased_memory
"""
_AGAIN = "SELECT kind, hmac, number, other FROM erase_again"
_NEWER = "ON CONFLICT (kind, hmac, other) DO UPDATE SET number = greatest(erase_again.number, excluded.number)"
_NOTE_AGAIN = f"""
INSERT INTO erase_again (kind, hmac, number, other)
SELECT * FROM unnest($1::text[], $2::bytea[], $3::bigint[], $4::bytea[]) {_NEWER}
"""
