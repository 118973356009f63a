"""A program that accepts 1,000 conversations; a test runs two of them on one database, in opposite orders.

    python -m tests.support.posting URL forward|backward

It prints ``ready``, waits for a line, posts all of them at once, and prints the outcome of each as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import structlog
import trio

from convo.errors import ConvoError
from convo.settings import IntakeSettings, Settings
from tests.support.making import accept, open_process

IDS = [f"talk-{number:04}" for number in range(1000)]


async def main(url: str, order: str) -> None:
    stored: dict[str, Any] = {}
    errors: list[str] = []
    settings = Settings(intake=IntakeSettings(batch_rows=64))
    async with open_process(url, settings, f"here/{order}") as process:

        async def post(name: str) -> None:
            try:
                found = await process.committer.accept(accept(name))
            except ConvoError as error:
                errors.append(repr(error))
            else:
                stored[name] = (found.received_at.isoformat(), found.replayed)

        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        async with trio.open_nursery() as nursery:
            for name in IDS if order == "forward" else reversed(IDS):
                nursery.start_soon(post, name)
    print(json.dumps({"stored": stored, "errors": errors}))


if __name__ == "__main__":
    # Standard output is for the outcome alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, sys.argv[1], sys.argv[2])
