"""The embedded PostgreSQL as a process of its own: ``python -m tests.embedded_server DIR [remove]``.

It prints its URL, and stops when its standard input ends: with the process that started it, however that one ends.
With ``remove`` it takes the folder with it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import structlog
import trio

from convo.store.embedded import embedded


async def main(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        print(running.dsn, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    # Standard output is for the URL alone: nobody reads it after that.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, Path(sys.argv[1]))
    if "remove" in sys.argv[2:]:
        shutil.rmtree(sys.argv[1])
