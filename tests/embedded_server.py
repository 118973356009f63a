"""The embedded PostgreSQL as a process of its own: ``python -m tests.embedded_server DIR [remove] [keep]``.

It prints its URL, and stops when its standard input ends: with the process that started it, however that one ends.
With ``remove`` it takes the folder with it; with ``keep`` the server is started again whenever it dies.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import structlog
import trio

from convo.store.embedded import embedded, keep


async def main(data_dir: Path, *, kept: bool) -> None:
    async with embedded(data_dir) as running, trio.open_nursery() as nursery:
        if kept:
            nursery.start_soon(keep, running)
        print(running.dsn, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # Standard output is for the URL alone: nobody reads it after that.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(partial(main, Path(sys.argv[1]), kept="keep" in sys.argv[2:]))
    if "remove" in sys.argv[2:]:
        shutil.rmtree(sys.argv[1])
