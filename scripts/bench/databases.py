"""Databases of our own on a given PostgreSQL, made for a run and dropped after it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

GIVEN = "postgresql://127.0.0.1:5432/test"
# What others on the same server, and our own questions, may need besides.
_SPARE = 15
T = TypeVar("T")


def _ask(url: str, question: Callable[[Any], Awaitable[T]]) -> T:
    async def ask() -> T:
        connection = await asyncpg.connect(url)
        try:
            return await question(connection)
        finally:
            await connection.close()

    return asyncio.run(ask())


def value(url: str, query: str) -> Any:
    """Return the first column of the first row."""
    return _ask(url, lambda connection: connection.fetchval(query))


def execute(url: str, statement: str) -> None:
    """Run one statement, outside a transaction."""
    _ask(url, lambda connection: connection.execute(statement))


def described(url: str) -> str:
    """Tell the server's version, and what it promises at a commit."""
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "max_connections")
    version, *promises = (str(value(url, f"SHOW {name}")) for name in names)
    return ", ".join([version, *(f"{name} {promise}" for name, promise in zip(names[1:], promises, strict=True))])


def connections_free(url: str) -> int:
    """Count the connections that this server would still take, less what others may need."""
    query = """
    SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
           - (SELECT count(*)::integer FROM pg_stat_activity WHERE backend_type = 'client backend')
    """
    return int(value(url, query)) - _SPARE


@contextmanager
def database(server_url: str, name: str) -> Iterator[str]:
    """Make an empty database; yield its URL; drop it with whoever is still connected."""
    called = f"bench_{os.getpid()}_{name}"
    execute(server_url, f'CREATE DATABASE "{called}"')
    try:
        yield _with_path(server_url, called)
    finally:
        execute(server_url, f'DROP DATABASE IF EXISTS "{called}" WITH (FORCE)')


def _with_path(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
