"""The embedded PostgreSQL as a process of its own: ``python -m tests.support.embedded_server DIR [remove] [keep]``.

It prints its URL, whose role is a superuser here and may log in to every database: tests make databases and roles. It
stops when its standard input ends, which is also when the process that started it ends.
With ``remove`` it removes the folder at the end; with ``keep`` the server is started again whenever it dies.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import structlog
import trio

from convo.embedded import access, access_sql
from convo.embedded.server import keep_running, open_embedded

# The password costs a connection half of its time, and tests open tens of thousands; the socket is this user's alone.
# In the database of the superuser the start makes sure that nobody gets in without one.
_RULES = f"local postgres all scram-sha-256\nlocal all {access_sql.USER} trust\nlocal all all scram-sha-256\n"


async def main(data_dir: Path, *, kept: bool) -> None:
    make_role = access_sql.make_role
    with (
        mock.patch.object(access, "_RULE", _RULES),
        mock.patch.object(
            access_sql, "make_role", lambda password: f"{make_role(password)}ALTER ROLE convo SUPERUSER;"
        ),
    ):
        await _serve(data_dir, kept=kept)


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
    trio.run(partial(main, Path(sys.argv[1]), kept="keep" in sys.argv[2:]))
    if "remove" in sys.argv[2:]:
        shutil.rmtree(sys.argv[1])
