from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from convo.conversation.tenant import DEFAULT
from convo.store import audit_pages
from convo.store.audit_log import AuditEntry, AuditTarget, Caller, append
from convo.store.audit_pages import AuditFilter, read_audit_log
from convo.store.postgres import Connection, Postgres
from tests.support.making import ask, open_store

NOW = datetime.now(UTC)


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


async def added(postgres: Postgres, *entries: AuditEntry) -> None:
    async def body(connection: Connection) -> None:
        await append(connection, *entries)

    await postgres.run("test.audit", body)


def read_of(number: int, *, user_id: str = "user-1", key_id: str | None = None) -> AuditEntry:
    target = AuditTarget(kind="conversation", id=f"talk-{number}", user_id=user_id)
    return AuditEntry(action="log_read", caller=Caller(key_id=key_id), target=target)


async def numbers(postgres: Postgres, wanted: AuditFilter, limit: int = 50) -> list[int]:
    """Follow the pages to their end; return the numbers of the rows, none twice."""
    found: list[int] = []
    before = wanted.before
    while True:
        page = await read_audit_log(
            postgres,
            DEFAULT,
            AuditFilter(
                action=wanted.action,
                key_id=wanted.key_id,
                conversation_id=wanted.conversation_id,
                user_id=wanted.user_id,
                since=wanted.since,
                before=before,
            ),
            limit,
        )
        found += [row["number"] for row in page.rows]
        assert len(page.rows) <= limit
        if page.next_before is None:
            return found
        before = page.next_before


@pytest.fixture
async def filled(postgres: Postgres) -> Postgres:
    """Rows 1 to 8."""
    await added(
        postgres,
        read_of(1, key_id="one"),
        read_of(2, key_id="two"),
        read_of(1, key_id="two"),
        read_of(3, user_id="user-2", key_id="one"),
        AuditEntry(action="retry", target=AuditTarget(kind="conversation", id="talk-1", user_id="user-1")),
        AuditEntry(action="restore"),
        AuditEntry(action="restore", detail={"bytes": 7}),
        read_of(2),
    )
    return postgres


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (AuditFilter(), [8, 7, 6, 5, 4, 3, 2, 1]),
        (AuditFilter(before=4), [3, 2, 1]),
        (AuditFilter(action="restore"), [7, 6]),
        (AuditFilter(action="restore", before=7), [6]),
        (AuditFilter(action="log_read"), [8, 4, 3, 2, 1]),
        (AuditFilter(action="start"), []),
        (AuditFilter(key_id="one"), [4, 1]),
        (AuditFilter(key_id="nobody"), []),
        (AuditFilter(conversation_id="talk-1"), [5, 3, 1]),
        (AuditFilter(conversation_id="talk-1", before=5), [3, 1]),
        (AuditFilter(conversation_id="talk-9"), []),
        (AuditFilter(user_id="user-1"), [8, 5, 3, 2, 1]),
        (AuditFilter(user_id="talk-1"), []),
        (AuditFilter(user_id="user-1", key_id="two"), [3, 2]),
        (AuditFilter(conversation_id="talk-1", action="retry"), [5]),
        (AuditFilter(conversation_id="talk-1", action="log_read", key_id="one"), [1]),
        (AuditFilter(since=NOW - timedelta(days=1)), [8, 7, 6, 5, 4, 3, 2, 1]),
        (AuditFilter(since=NOW + timedelta(days=1)), []),
    ],
)
async def test_a_page_holds_what_is_meant_newest_first(
    filled: Postgres, monkeypatch: pytest.MonkeyPatch, wanted: AuditFilter, found: list[int]
) -> None:
    for looked_at in (2, 500):
        monkeypatch.setattr(audit_pages, "_LOOKED_AT_MAX", looked_at)
        for limit in (1, 2, 50):
            assert await numbers(filled, wanted, limit) == found


async def test_rows_from_long_before_the_time_that_is_asked_for_are_not_looked_at(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_pages, "_LOOKED_AT_MAX", 10)
    await ask(
        postgres,
        "INSERT INTO audit_log (action, at) SELECT 'log_read', now() - make_interval(mins => 100 - n)"
        " FROM generate_series(1, 100) AS n",
    )
    # Between two rows, by the clock that wrote them: this file may have been read minutes ago.
    since = await ask(postgres, "SELECT at - interval '30 seconds' FROM audit_log WHERE number = 86")
    wanted = AuditFilter(since=since)
    first = await read_audit_log(postgres, DEFAULT, wanted, 10)
    assert [row["number"] for row in first.rows][:2] == [100, 99]
    # An hour back is looked through, for a clock that was set back: from row 85 to about row 25.
    assert await numbers(postgres, wanted) == list(range(100, 85, -1))
    late = await read_audit_log(postgres, DEFAULT, AuditFilter(since=since, before=20), 10)
    assert (late.rows, late.next_before) == ([], None)
    back = await read_audit_log(postgres, DEFAULT, AuditFilter(since=since, before=80), 10)
    assert back.rows == []
    assert back.next_before is not None
