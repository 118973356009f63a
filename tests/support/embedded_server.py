"""The embedded PostgreSQL as a process of its own: ``python -m tests.support.embedded_server DIR [WORD …]``.

It prints its URL, whose role is a superuser here and may log in to every database: tests make databases and roles. It
stops when its standard input ends, which is also when the process that started it ends.
With ``remove`` it removes the folder at the end; with ``keep`` the server is started again whenever it dies.
``connections=N`` lets it take more connections than the server of one convo needs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import structlog
import trio

from convo.embedded import access, access_sql, postmaster
from convo.embedded.server import keep_running, open_embedded

# The password costs a connection half of its time, and tests open tens of thousands; the socket is this user's alone.
# In the database of the superuser the start makes sure that nobody gets in without one.
_RULES = f"local postgres all scram-sha-256\nlocal all {access_sql.USER} trust\nlocal all all scram-sha-256\n"
_WORD = "connections="


async def main(data_dir: Path, words: Sequence[str]) -> None:
    make_role = access_sql.make_role
    with (
        mock.patch.dict(postmaster._SETTINGS, server_settings(words)),
        mock.patch.object(access, "_RULE", _RULES),
        mock.patch.object(
            access_sql, "make_role", lambda password: f"{make_role(password)}ALTER ROLE convo SUPERUSER;"
        ),
    ):
        await _serve(data_dir, kept="keep" in words)


def server_settings(words: Sequence[str]) -> dict[str, str]:
    """Return the settings of the server that the words change."""
    given = [word.removeprefix(_WORD) for word in words if word.startswith(_WORD)]
    return {"max_connections": given[-1]} if given else {}


async def _serve(data_dir: Path, *, kept: bool) -> None:
    async with open_embedded(data_dir) as running, trio.open_nursery() as nursery:
        if kept:
            nursery.start_soon(keep_running, running)
        print(running.dsn, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # Standard output is for the URL alone: the reader stops after it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, Path(sys.argv[1]), sys.argv[2:])
    if "remove" in sys.argv[2:]:
        shutil.rmtree(sys.argv[1])
