from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from convo.errors import (
    BadRow,
    ConvoError,
    DatabaseUnavailable,
    DiskFull,
    TransactionLost,
)
from convo.store.postgres import Connection, Postgres
from tests.support.making import ask, open_store, told


@pytest.fixture
async def postgres(empty_database: str) -> AsyncIterator[Postgres]:
    async with open_store(empty_database) as opened:
        yield opened


def raising(sqlstate: str) -> Callable[[Connection], Any]:
    async def body(connection: Connection) -> None:
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}'; END $$")

    return body


async def ending(connection: Connection) -> None:
    await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
    await connection.fetchval("SELECT 1")


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("22021", BadRow),
        ("23514", BadRow),
        ("54000", BadRow),
        ("40001", TransactionLost),
        ("40P01", TransactionLost),
        ("08006", TransactionLost),
        ("57P01", TransactionLost),
        ("53100", DiskFull),
        ("53300", DatabaseUnavailable),
        ("57014", DatabaseUnavailable),
        ("42P01", DatabaseUnavailable),
        ("XX000", DatabaseUnavailable),
    ],
)
async def test_an_error_is_known_by_its_sqlstate(postgres: Postgres, sqlstate: str, expected: type[ConvoError]) -> None:
    with pytest.raises(ConvoError) as caught:
        await postgres.run("db.unit", raising(sqlstate))
    assert type(caught.value) is expected
    assert sqlstate in caught.value.detail
    assert await ask(postgres, "SELECT 1") == 1


async def test_a_full_disk_is_told(postgres: Postgres) -> None:
    with told() as events, pytest.raises(DiskFull):
        await postgres.run("db.unit", raising("53100"))
    assert events == ["disk_full"]


async def test_a_value_that_cannot_be_sent_is_a_bad_row(postgres: Postgres) -> None:
    async def body(connection: Connection) -> None:
        await connection.fetchval("SELECT $1::integer", 2**40)

    with pytest.raises(BadRow):
        await postgres.run("db.unit", body)


async def test_a_nul_in_a_text_is_a_bad_row(postgres: Postgres) -> None:
    async def body(connection: Connection) -> None:
        await connection.fetchval("SELECT $1::text", "a\0b")

    with pytest.raises(BadRow):
        await postgres.run("db.unit", body)


async def test_a_lone_surrogate_in_a_text_is_a_bad_row(postgres: Postgres) -> None:
    async def body(connection: Connection) -> None:
        await connection.fetchval("SELECT $1::text", "a\ud800b")

    with pytest.raises(BadRow):
        await postgres.run("db.unit", body)


async def test_a_connection_that_is_ended_in_the_middle_is_a_lost_transaction(postgres: Postgres) -> None:
    with pytest.raises(TransactionLost):
        await postgres.run("db.unit", ending)
    assert await ask(postgres, "SELECT 1") == 1
