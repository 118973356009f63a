"""The statement of a list of conversations: newest first, by user, bot and state.

Open it to change a filter. One filter finds rows by its index, newest first; the others are checked on what it finds.
So a page looks at a bounded number of rows, whatever is asked for. Where few of them match, the page is short and the
next one goes on behind them.

Users are also found by the beginning of their id: their index is sorted by it. First up to ``USERS_MAX`` + 1 of them
are looked for, one look-up each. So few are each read newest first; of more, the beginning is checked like any filter.
A conversation is not found by the beginning of its id: no index is sorted by that, and accepts would have to write it.

Other tenants than the default one have indexes of their own, which hold nothing where there is none. The default one
walks the common indexes, and indexes of its own where there are several tenants (``store/tenant_indexes.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import Reach
from convo.store.job_sql import PARKED

LOOKED_AT_MAX = 250
"""So many rows are looked at for one page, or as many as a page has: some 8 buffers each."""

USERS_MAX = 10
"""So many users whose ids begin alike are each read by their own range of the index."""

NO_CANARY = f"c.user_id <> '{CANARY_USER}'"
SUMMARY = """
c.seq, c.conversation_id, c.user_id, c.bot_id, c.started_at, c.ended_at, c.received_at, c.turns,
job.state, job.attempts, job.last_error, job.score
"""
# The state is part of the text of the query: only then does the planner use a partial index.
_STATES = {state: f"job.state = '{state}'" for state in ("ready", "leased", "done", "dead")} | {"parked": PARKED}
_NEWEST = (1 << 63) - 1


class ListFilter(Struct, frozen=True, kw_only=True):
    """Which conversations are listed; None is no filter. ``before`` is the ``seq`` that all of them are below.

    ``users`` are all whose ids begin with ``user_prefix``, as far as they are known to be few.
    """

    user_id: str | None = None
    user_prefix: str | None = None
    users: Sequence[str] | None = None
    bot_id: str | None = None
    state: str | None = None
    before: int | None = None


class ListStatements(Struct, frozen=True, kw_only=True):
    """``page`` returns the rows; ``last`` the ``seq`` of the last row that a page looks at, if it looks at so many."""

    page: str
    page_values: Sequence[Any]
    last: str
    last_values: Sequence[Any]


def list_statements(reach: Reach, wanted: ListFilter, limit: int, *, default_has_indexes: bool) -> ListStatements:
    """Make the statements of one page of up to ``limit`` rows.

    ``default_has_indexes``: those of ``tenant_indexes`` are made.
    """
    looked_at = max(LOOKED_AT_MAX, limit)
    search = _search(reach, wanted, looked_at, own=reach.tenant.number > 0 or default_has_indexes)
    values: list[Any] = [reach.tenant.number, *search.value]
    # That its tenant is the caller's is checked again on each: done jobs have none in their own row.
    # Of a conversation with several revisions the newest is listed.
    used, filters = tuple(values), ["c.tenant = $1::smallint", "c.revised_by IS NULL"]
    for column, value in (("user_id", wanted.user_id), ("bot_id", wanted.bot_id)):
        if value is not None:
            values.append(value)
            filters.append(f"c.{column} = ${len(values)}")
    if wanted.user_prefix is not None:
        values.append(wanted.user_prefix)
        filters.append(f"starts_with(c.user_id, ${len(values)})")
    if reach.bots is not None:
        values.append(list(reach.bots))
        filters.append(f"c.bot_id = ANY(${len(values)}::text[])")
    filters += [] if wanted.state is None else [_STATES[wanted.state]]
    first, looked = search.first, search.looked
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


def users_statement(reach: Reach, prefix: str, *, default_has_indexes: bool) -> tuple[str, Sequence[Any]]:
    """Make the statement that finds the first ``USERS_MAX`` + 1 users whose ids begin with ``prefix``."""
    own = reach.tenant.number > 0 or default_has_indexes
    group = _group(reach) if own else _TENANT
    columns, before = ("tenant, user_id", "$1::smallint, ") if own else ("user_id", "")

    def first(range_: str) -> str:
        return f"SELECT user_id FROM conversation WHERE {group} AND {range_} ORDER BY {columns} LIMIT 1"

    below = f"({columns}) < ({before}$3)"
    after = first(f"({columns}) > ({before}users.user_id) AND {below}")
    text = f"""
WITH RECURSIVE users (user_id) AS (
    ({first(f"({columns}) >= ({before}$2) AND {below}")})
    UNION ALL
    SELECT ({after}) FROM users WHERE users.user_id IS NOT NULL
)
SELECT user_id FROM users WHERE user_id IS NOT NULL LIMIT {USERS_MAX + 1}
"""
    return text, (reach.tenant.number, prefix, _end_of(prefix))


def _end_of(prefix: str) -> str:
    """Return the first text, in the order of code points, behind all that begin with ``prefix``."""
    begin = prefix.rstrip(_LAST_CHARACTER)
    if not begin:
        # Behind every id: none has so many characters.
        return _LAST_CHARACTER * 1000
    following = ord(begin[-1]) + 1
    return begin[:-1] + chr(_BEHIND_SURROGATES if following == _SURROGATES else following)


_LAST_CHARACTER = "\U0010ffff"
# No text holds one of these.
_SURROGATES, _BEHIND_SURROGATES = 0xD800, 0xE000


class _Search(Struct, frozen=True, kw_only=True):
    """How rows are found, newest first, and what they are called; ``$1`` is the tenant, ``$2`` the ``value`` if any."""

    first: str = "c"
    looked: str
    value: tuple[Any, ...] = ()


def _search(  # noqa: PLR0911  (one for each index)
    reach: Reach, wanted: ListFilter, looked_at: int, *, own: bool
) -> _Search:
    # By the user where there is one, else by the bots that are reached, by the state, or by the bot. Nearly all are
    # done, so that state comes last.
    all_of, before = "SELECT * FROM conversation AS c", wanted.before
    group = _group(reach) if own else ""
    if wanted.user_id is not None:
        return _Search(looked=f"{all_of} {_of_user('$2', before, group)}", value=(wanted.user_id,))
    if wanted.users is not None:
        one = f"{all_of} {_of_user('person.id', before, group)} LIMIT {looked_at}"
        each = f"unnest($2::text[]) AS person (id) CROSS JOIN LATERAL ({one}) AS one"
        return _Search(looked=f"SELECT one.* FROM {each} ORDER BY seq DESC", value=(list(wanted.users),))
    if wanted.bot_id is not None and (reach.bots is not None or wanted.state in (None, "done")):
        return _Search(looked=f"{all_of} {_of_bot('$2', before, group)}", value=(wanted.bot_id,))
    if reach.bots is not None:
        one = f"{all_of} {_of_bot('bot.id', before, group)} LIMIT {looked_at}"
        each = f"unnest($2::text[]) AS bot (id) CROSS JOIN LATERAL ({one}) AS one"
        return _Search(looked=f"SELECT * FROM {each} ORDER BY seq DESC", value=(list(reach.bots),))
    if wanted.state == "done" and not own:
        return _Search(first="done", looked=_done(before, looked_at))
    if wanted.state not in (None, "done"):
        open_jobs = "SELECT seq, state, waits_for, attempts, last_error, NULL::integer AS score FROM job"
        return _Search(first="job", looked=f"{open_jobs} {_by_state(wanted, group)}")
    if own:
        return _Search(looked=f"{all_of} {_range('tenant', '$1', before, group)}")
    return _Search(looked=f"{all_of} WHERE {_TENANT} AND seq <= {_last(before)} ORDER BY seq DESC")


_TENANT = "tenant = $1::smallint"


def _group(reach: Reach) -> str:
    """Return the condition of the indexes that lead by the tenant: only with it does the planner use them.

    Which tenant it is stands in their range alone: beside ``tenant = $1`` their order counts for nothing.
    """
    return "tenant > 0" if reach.tenant.number else "tenant < 1"


def _range(columns: str, values: str, before: int | None, also: str) -> str:
    """Return the search in the index on these columns and ``seq``.

    By two ends and its own order: with ``column = value`` the planner may walk the primary key instead, over a million
    rows of others where those that are looked for are old.
    """
    return (
        f"WHERE {also} AND ({columns}, seq) >= ({values}, 0) AND ({columns}, seq) <= ({values}, {_last(before)})"
        f" ORDER BY {columns.replace(',', ' DESC,')} DESC, seq DESC"
    )


def _of_user(user: str, before: int | None, group: str) -> str:
    if group:
        return _range("tenant, user_id", f"$1, {user}", before, group)
    return _range("user_id", user, before, _TENANT)


def _of_bot(bot: str, before: int | None, group: str) -> str:
    if group:
        return _range("tenant, bot_id", f"$1, {bot}", before, group)
    return _range("bot_id", bot, before, _TENANT)


def _by_state(wanted: ListFilter, group: str) -> str:
    parked = wanted.state == "parked"
    state, also = ("'ready'", "waits_for <> '' AND ") if parked else (f"'{wanted.state}'", "")
    if group:
        return _range("tenant, state", f"$1, {state}", wanted.before, also + group)
    if wanted.state == "ready":
        # No index has these alone: accept would write it. Most of the table is ready, or leased and few.
        return f"WHERE {_TENANT} AND seq <= {_last(wanted.before)} ORDER BY seq DESC"
    return _range("state", state, wanted.before, (also or "state <> 'ready' AND ") + _TENANT)


def _done(before: int | None, rows: int) -> str:
    """Return the search for done jobs: the outcomes, and what stays in ``job`` beside an older program."""
    left = _range("state", "'done'", before, f"state <> 'ready' AND {_TENANT}")
    outcomes = f"WHERE seq <= {_last(before)} ORDER BY seq DESC"
    return f"""
    SELECT seq FROM ((SELECT seq FROM job {left} LIMIT {rows}) UNION ALL
                     (SELECT seq FROM outcome {outcomes} LIMIT {rows})) AS every_done
    ORDER BY seq DESC"""


def _last(before: int | None) -> int:
    return _NEWEST if before is None else before - 1
