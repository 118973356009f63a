"""Partitions by month: which there are, making the next ones, beginning the next month, and dropping one.

Open it when a table comes to lie in partitions, or to change when a month begins. What is over is decided elsewhere.

A partition has ``MONTH_SEQS`` numbers of the conversations' own sequence: partition n those from n * 2^36 on. So a
``seq`` says where its rows are, for ever, and reads by it open one partition. A month begins when the sequence is set
forward to the next partition's first number. Which month a partition is of is known by what was received in it, and
not by its number: so a clock that jumps by years and comes back uses two numbers of partitions, and no more.

No row ever finds no partition: the sequence is set forward only to one that was committed before, two more are always
made ahead, and where nobody does either for years, all goes on in the partition of the day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from msgspec import Struct

from convo.store.ledger import TRY_LOCK
from convo.store.postgres import Connection

MonthTable = Literal["conversation_log", "run"]
MONTH_TABLES: tuple[MonthTable, ...] = get_args(MonthTable)

_BITS = 36
MONTH_SEQS = 1 << _BITS
"""So many numbers a partition has: 68 billion conversations."""
_AHEAD = 2
# Numbers of JSON are exact below 2^53. The last partition is never left.
_LAST = (1 << 53 - _BITS) - 1
# As for a step of a migration: whoever waits for a table's lock holds up the accepts.
_LOCK_MILLISECONDS = 400
_UNDER_LOCK_MILLISECONDS = 500
# One process at a time begins a month: the sequence must never be set back to numbers that it has given.
_LOCK = 0x636F6E766F_09


class Month(Struct, frozen=True, kw_only=True):
    """One partition: its table and its number."""

    table: MonthTable
    number: int

    @property
    def seqs(self) -> tuple[int, int]:
        """The first number of it, and the first one behind it."""
        return self.number * MONTH_SEQS, (self.number + 1) * MONTH_SEQS

    @property
    def name(self) -> str:
        """The name of the partition."""
        return f"{self.table}_{self.number}"


def first_seq_of_next(seq: int) -> int:
    """Return the first number behind the partition in which ``seq`` is."""
    return ((seq >> _BITS) + 1) * MONTH_SEQS


async def read_months(connection: Connection) -> Mapping[MonthTable, Sequence[int]]:
    """Read which partitions each table has, by number."""
    found: dict[MonthTable, list[int]] = {table: [] for table in MONTH_TABLES}
    for row in await connection.fetch(_MONTHS, MONTH_TABLES):
        found[row["parent"]].append(row["number"])
    return found


async def current_month(connection: Connection) -> int:
    """Read the number of the partition that today's rows come into."""
    number: int = await connection.fetchval(_CURRENT)
    return number


async def prepare_months(connection: Connection) -> int | None:
    """Make the partitions that come next, and begin the next month if it has come; return its number if it has begun.

    It does nothing while partition 0 is the only one: then a program may be at work that needs that (0023).
    """
    await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
    if not await connection.fetchval(TRY_LOCK, _LOCK):
        return None
    months = await read_months(connection)
    if any(max(numbers, default=0) == 0 for numbers in months.values()):
        return None
    row = await connection.fetchrow(_STANDS) or {}
    number: int = row["number"]
    following = number + 1
    # Only what is committed: a partition that is made below is not there yet for an accept.
    begins = row["is_over"] and following < _LAST and all(following in numbers for numbers in months.values())
    for table, numbers in months.items():
        for one in range(number, min(number + _AHEAD, _LAST) + 1):
            if one not in numbers:
                await connection.execute(_MAKE, table, one)
    if begins and await connection.fetchval(_BEGIN, following * MONTH_SEQS) is not None:
        return following
    return None


async def hold_table(connection: Connection, table: MonthTable) -> None:
    """Lock a table for ``drop_month``: until the end of this transaction nobody reads or writes it.

    An accept waits for at most a second: both the wait for the lock and each statement under it are bounded.
    """
    await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
    await connection.execute(f"SET LOCAL statement_timeout = {_UNDER_LOCK_MILLISECONDS}")
    await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")


async def drop_month(connection: Connection, month: Month, kept: Sequence[int], *, replaced: bool = True) -> int:
    """Drop a partition of a table that ``hold_table`` has locked; return how many rows of ``kept`` stay.

    They move to a new partition of the same numbers, into which what comes late is written, too: a run of a job that is
    retried. Without ``replaced`` there is none: nothing of these numbers can come any more.
    """
    name, old = month.name, f"{month.name}_over"
    await connection.execute(f"ALTER TABLE {month.table} DETACH PARTITION {name}")
    moved = "INSERT 0 0"
    if replaced:
        await connection.execute(f"ALTER TABLE {name} RENAME TO {old}")
        await connection.execute(_MAKE, month.table, month.number)
        if kept:
            moved = await connection.execute(_KEEP.format(table=month.table, old=old), kept)
    await connection.execute(f"DROP TABLE {old if replaced else name}")
    return int(moved.rpartition(" ")[2])


async def note_dropped(connection: Connection, month: Month, rows: int, kept: int) -> None:
    """Note that a month is gone: what it does not have any more has expired."""
    await connection.execute(_NOTE_DROPPED, month.table, month.number, rows, kept)


DROPPED_LOG = f"""
    c.seq >> {_BITS} = ANY(ARRAY(SELECT number FROM dropped_month WHERE table_name = 'conversation_log'))
"""
"""Whether the log of ``conversation AS c`` was in a month that is gone; it is stored nevertheless where it was kept."""
DROPPED_TABLES = f"""
    ARRAY(SELECT table_name FROM dropped_month AS gone WHERE gone.number = c.seq >> {_BITS}) AS dropped
"""
"""For a query of ``conversation AS c``: which tables have dropped its month."""
READ_DROPPED = "SELECT table_name, number FROM dropped_month"

_MONTHS = """
SELECT parent.relname::text AS parent, substring(child.relname FROM '[0-9]+$')::bigint AS number
FROM pg_inherits JOIN pg_class AS parent ON parent.oid = inhparent JOIN pg_class AS child ON child.oid = inhrelid
WHERE parent.relname = ANY($1::text[]) AND parent.relkind = 'p' AND parent.oid = to_regclass(parent.relname)
ORDER BY 1, 2
"""
_CURRENT = f"SELECT last_value >> {_BITS} FROM conversation_seq_seq"
# receipt_pkey: one row. A month has come when the first row of the partition is of an earlier one, or of a day to come:
# the clock was ahead then.
_STANDS = f"""
SELECT stands.number,
       coalesce(date_trunc('month', first.received_at AT TIME ZONE 'UTC')
                    < date_trunc('month', convo_now() AT TIME ZONE 'UTC')
                OR first.received_at > convo_now() + interval '1 day', false) AS is_over
FROM ({_CURRENT.replace("FROM", "AS number FROM")}) AS stands LEFT JOIN LATERAL (
    SELECT received_at FROM receipt WHERE seq >= stands.number << {_BITS} ORDER BY seq LIMIT 1
) AS first ON true
"""
_MAKE = "SELECT convo_make_month($1, $2)"
# Under our lock nobody else sets it, and nextval cannot pass the border meanwhile: it is billions away.
_BEGIN = "SELECT setval('conversation_seq_seq', $1, false) FROM conversation_seq_seq WHERE last_value < $1"
_KEEP = "INSERT INTO {table} SELECT * FROM {old} WHERE seq = ANY($1::bigint[])"
_NOTE_DROPPED = """
INSERT INTO dropped_month (table_name, number, rows, kept) VALUES ($1, $2, $3, $4)
ON CONFLICT (table_name, number) DO UPDATE SET rows = dropped_month.rows + $3, kept = $4
"""
