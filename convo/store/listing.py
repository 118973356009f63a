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
    looked_at = max(LOOKED_AT_MAX, limit)
    # By the user where there is one, else by the state, else by the bot. Nearly all are done, so that state comes last.
    by_user, by_bot = wanted.user_id is not None, wanted.bot_id is not None
    if by_user or (by_bot and wanted.state in (None, "done")):
        found, used = _range("user_id" if by_user else "bot_id", "$1", wanted.before), values[:1]
        first, looked = "c", f"SELECT * FROM conversation AS c {found}"
    elif wanted.state == "done":
        first, looked, used = "done", _done(wanted.before, looked_at), []
    elif wanted.state is not None:
        open_jobs = "SELECT seq, state, waits_for, attempts, last_error, NULL::integer AS score FROM job"
        first, looked, used = "job", f"{open_jobs} {_by_state(wanted)}", []
    else:
        found, used = f"WHERE seq <= {_last(wanted.before)} ORDER BY seq DESC", []
        first, looked = "c", f"SELECT * FROM conversation AS c {found}"
    # OFFSET 0: each is looked up when its turn comes, and no more of them than the page needs.
    others = "".join(
        f"CROSS JOIN LATERAL (SELECT * FROM {table} AS {name} WHERE {name}.seq = {first}.seq OFFSET 0) AS {name}\n"
        for name, table in (("c", "conversation"), ("job", "every_job"))
        if name != first
    )
    page = f"""
SELECT {SUMMARY} FROM ({looked} LIMIT {looked_at}) AS {first}
{others}WHERE {" AND ".join([NO_CANARY, *filters])} ORDER BY {first}.seq DESC LIMIT {limit}
"""
    last = f"SELECT seq FROM ({looked} OFFSET {looked_at - 1} LIMIT 1) AS last"
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
    if wanted.state == "ready":
        # No index has these alone: accept would write it. Most of the table is ready, or leased and few.
        return f"WHERE seq <= {_last(wanted.before)} ORDER BY seq DESC"
    return _range("state", f"'{wanted.state}'", wanted.before, also="state <> 'ready'")


def _done(before: int | None, rows: int) -> str:
    """Return the search for done jobs: the outcomes, and what stays in ``job`` beside an older program."""
    left = _range("state", "'done'", before, also="state <> 'ready'")
    outcomes = f"WHERE seq <= {_last(before)} ORDER BY seq DESC"
    return f"""
    SELECT seq FROM ((SELECT seq FROM job {left} LIMIT {rows}) UNION ALL
                     (SELECT seq FROM outcome {outcomes} LIMIT {rows})) AS every_done
    ORDER BY seq DESC"""


def _last(before: int | None) -> int:
    return _NEWEST if before is None else before - 1
