"""The numbered migrations: reads their files and their heads, which state the kind, the steps and the locks of each.

Open it to change what a head can state. ``store/migrate.py`` applies what is read here; how to write a migration stands
in the handbook ("Operating", Migrations).
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Literal, cast

from msgspec import Struct

MigrationKind = Literal["expand", "contract"]
RunMode = Literal["transaction", "batches", "outcomes", "concurrently"]

_KINDS = ("expand", "contract")
_MODES = ("transaction", "batches", "outcomes", "concurrently")
_LOCK_MODES = (
    *("ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE"),
    "ACCESS EXCLUSIVE",
)
# Released before migrations had heads. Where it is applied, there is no table yet that anybody could wait for.
_FIRST = 1
_LINE = re.compile(r"^-- (kind|needed|run|lock): *(.*?) *$", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*$", re.MULTILINE)
_LOCK = re.compile(r"([A-Z ]+) ON ([a-z_]+(?:, [a-z_]+)*)")
_INDEX = re.compile(r"^CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS ([a-z_][a-z0-9_]*)\b", re.MULTILINE)


class TableLock(Struct, frozen=True, kw_only=True):
    """A lock on tables that a step takes before its statements; ``mode`` as ``LOCK TABLE`` names it."""

    mode: str
    tables: tuple[str, ...]


class MigrationStep(Struct, frozen=True, kw_only=True):
    """Statements of a migration that are run in one way.

    ``transaction``: all of them in one. ``batches``: one statement, again and again until it changes no row, each time
    in a transaction of its own. ``outcomes``: as ``batches``, but the statement returns rows for the table ``outcome``
    with plain details, which convo packs and stores (``store/outcomes.py``). ``concurrently``: ``CREATE INDEX
    CONCURRENTLY``, outside a transaction.
    """

    run: RunMode
    locks: tuple[TableLock, ...]
    sql: str

    @property
    def is_waited_for(self) -> bool:
        """Whether others may wait for its locks, or for the rows that it changes: it must be short, then."""
        return any(lock.mode != "SHARE UPDATE EXCLUSIVE" for lock in self.locks)

    @property
    def index_names(self) -> tuple[str, ...]:
        """The indexes that a step of the mode ``concurrently`` makes."""
        return tuple(_INDEX.findall(self.sql))


class Migration(Struct, frozen=True, kw_only=True):
    """One numbered file. ``needed``: this program cannot serve before it; of an expand it is always so."""

    number: int
    kind: MigrationKind
    needed: bool
    steps: tuple[MigrationStep, ...]


@cache
def migrations() -> tuple[Migration, ...]:
    """Return every migration of this program, in order."""
    folder = resources.files("convo.store") / "schema"
    found = [(int(file.name[:4]), file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql")]
    return tuple(parse_migration(number, text) for number, text in sorted(found))


@cache
def number_of(name: str) -> int:
    """Return the number of the migration whose file is called so, without its number and ending."""
    folder = resources.files("convo.store") / "schema"
    return next(int(file.name[:4]) for file in folder.iterdir() if file.name[5:] == f"{name}.sql")


def parse_migration(number: int, text: str) -> Migration:
    """Read one file.

    Raises:
        ValueError: its head is not whole; the text names the line that is wrong.
    """
    lines = list(_LINE.finditer(text))
    if number == _FIRST and not lines:
        step = MigrationStep(run="transaction", locks=(), sql=text)
        return Migration(number=number, kind="expand", needed=True, steps=(step,))
    starts = [line for line in lines if line[1] == "run"]
    head = [line for line in lines if not starts or line.start() < starts[0].start()]
    kind = _value(number, head, "kind", _KINDS)
    if not starts:
        raise ValueError(f"migration {number:04} has no line `-- run: {' | '.join(_MODES)}`")
    needed = kind == "expand" or _value(number, head, "needed", ("yes", "no")) == "yes"
    ends = [*(line.start() for line in starts[1:]), len(text)]
    steps = [
        _step(number, [line for line in lines if start.start() <= line.start() < end], text[start.start() : end])
        for start, end in zip(starts, ends, strict=True)
    ]
    return Migration(number=number, kind=cast("MigrationKind", kind), needed=needed, steps=tuple(steps))


def _step(number: int, lines: list[re.Match[str]], sql: str) -> MigrationStep:
    run = cast("RunMode", _value(number, lines, "run", _MODES))
    if run == "concurrently":
        # Its statements are run one by one, and a comment may hold a semicolon.
        sql = _COMMENT.sub("", sql)
    stated = [line[2] for line in lines if line[1] == "lock"]
    if not stated:
        raise ValueError(f"migration {number:04} has a step without `-- lock: MODE ON table, table` or `-- lock: none`")
    locks = tuple(_lock(number, one) for one in stated if one != "none")
    step = MigrationStep(run=run, locks=locks, sql=sql)
    if run == "concurrently" and sql.count(";") != len(step.index_names):
        raise ValueError(
            f"migration {number:04} has a concurrent step with another statement than"
            " CREATE [UNIQUE] INDEX CONCURRENTLY IF NOT EXISTS name"
        )
    return step


def _lock(number: int, text: str) -> TableLock:
    found = _LOCK.fullmatch(text)
    if found is None or found[1] not in _LOCK_MODES:
        raise ValueError(f"migration {number:04} states no lock that PostgreSQL has: {text!r}")
    return TableLock(mode=found[1], tables=tuple(found[2].split(", ")))


def _value(number: int, lines: list[re.Match[str]], key: str, choices: tuple[str, ...]) -> str:
    found = [line[2] for line in lines if line[1] == key]
    if len(found) != 1 or found[0] not in choices:
        raise ValueError(f"migration {number:04} needs one line `-- {key}: {' | '.join(choices)}`, and has {found}")
    return found[0]
