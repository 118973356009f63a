"""The statement of a list of conversations: newest first, by user, bot and state.

Open it to change a filter. One filter finds rows by its index, newest first; the others are checked on what it finds.
So a page looks at a bounded number of rows, whatever is asked for. Where few of them match, the page is short and the
next one goes on behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from convo.conversation.model import CANARY_USER
from convo.store.job_sql import PARKED

LOOKED_AT_MAX = 250
"""So many rows are looked at for one page, or as many as a page has: some 8 buffers each."""

NO_CANARY = f"c.user_id <> '{CANARY_USER}'"
SUMMARY = """
c.seq, c.conversation_id, c.user_id, c.bot_id, c.started_at, c.ended_at, c.received_at, c.turns,
job.state, job.attempts, job.last_error, job.score
"""
# The state is part of the text of the query: only then does the planner use a partial index.
_STATES = {state: f"job.state = '{state}'" for state in ("ready", "leased", "done", "dead")} | {"parked": PARKED}
_NEWEST = (1 << 63) - 1


class ListFilter(Struct, frozen=True, kw_only=True):
    """Which conversations are listed; None is no filter. ``before`` is the ``seq`` that all of them are below."""

    user_id: str | None = None
    bot_id: str | None = None
    state: str | None = None
    before: int | None = None


class ListStatements(Struct, frozen=True, kw_only=True):
    """``page`` returns the rows; ``last`` the ``seq`` of the last row that a page looks at, if it looks at so many."""

    page: str
    page_values: Sequence[str]
    last: str
    last_values: Sequence[str]


def list_statements(wanted: ListFilter, limit: int) -> ListStatements:
    """Make the statements of one page of up to ``limit`` rows."""
    values = [value for value in (wanted.user_id, wanted.bot_id) if value is not None]
    filters = [] if wanted.user_id is None else ["c.user_id = $1"]
    filters += [] if wanted.bot_id is None else [f"c.bot_id = ${len(values)}"]
    filters += [] if wanted.state is None else [_STATES[wanted.state]]
    # By the user where there is one, else by the state, else by the bot. Nearly all are done, so that state comes last.
    if wanted.user_id is not None:
        table, found, used = "conversation c", _range("user_id", "$1", wanted.before), values[:1]
    elif wanted.state is not None and not (wanted.bot_id is not None and wanted.state == "done"):
        table, found, used = "job", _by_state(wanted), []
    elif wanted.bot_id is not None:
        table, found, used = "conversation c", _range("bot_id", "$1", wanted.before), values[:1]
    else:
        table, found, used = "conversation c", f"WHERE seq <= {_last(wanted.before)} ORDER BY seq DESC", []
    first, other, second = ("job", "conversation", "c") if table == "job" else ("c", "job", "job")
    looked_at = max(LOOKED_AT_MAX, limit)
    # OFFSET 0: each is looked up when its turn comes, and no more of them than the page needs.
    page = f"""
SELECT {SUMMARY} FROM (SELECT * FROM {table} {found} LIMIT {looked_at}) AS {first}
CROSS JOIN LATERAL (SELECT * FROM {other} AS {second} WHERE {second}.seq = {first}.seq OFFSET 0) AS {second}
WHERE {" AND ".join([NO_CANARY, *filters])} ORDER BY {first}.seq DESC LIMIT {limit}
"""
    last = f"SELECT seq FROM {table} {found} OFFSET {looked_at - 1} LIMIT 1"
    return ListStatements(page=page, page_values=values, last=last, last_values=used)


def _range(column: str, value: str, before: int | None, also: str = "true") -> str:
    """Return the search in the index on this column and ``seq``.

    By two ends and its own order: with ``column = value`` the planner may walk the primary key instead, over a million
    rows of others where those that are looked for are old.
    """
    return (
        f"WHERE {also} AND ({column}, seq) >= ({value}, 0) AND ({column}, seq) <= ({value}, {_last(before)})"
        f" ORDER BY {column} DESC, seq DESC"
    )


def _by_state(wanted: ListFilter) -> str:
    if wanted.state == "parked":
        return _range("state", "'ready'", wanted.before, also="waits_for <> ''")
    return _range("state", f"'{wanted.state}'", wanted.before)


def _last(before: int | None) -> int:
    return _NEWEST if before is None else before - 1
