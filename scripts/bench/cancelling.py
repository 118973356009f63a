#!/usr/bin/env python3
"""Cancel calls to a model that never answers, and measure how long the model still sees their connections.

Real sockets on loopback; the server counts its open connections. Each round makes as many calls as go side by side.

    .venv/bin/python scripts/bench/cancelling.py [--rounds 50]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.analysis.llm import Model
from convo.settings import LlmSettings
from tests.support import fakes

WANTED_SECONDS = 0.1


def main() -> int:
    """Measure and print; return 0 when the slowest was within 100 ms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    found = trio.run(_measure, rounds)
    print(
        f"{rounds} rounds of 8 calls: all sockets closed after"
        f" {statistics.median(found) * 1000:.1f} ms (median), {max(found) * 1000:.1f} ms (slowest)"
    )
    return 0 if max(found) <= WANTED_SECONDS else 1


async def _measure(rounds: int) -> list[float]:
    found: list[float] = []
    async with fakes.open_model() as server:
        server.always = fakes.stuck
        settings = LlmSettings(base_url=server.url, model="m")
        async with Model(settings) as model:
            while len(found) < rounds:
                calls = settings.concurrency * (len(found) + 1)
                found += [await _cancelled(server, model, calls, settings.concurrency)]
        calls = len(server.calls)
        await trio.sleep(3.0)  # longer than the first backoff: nothing may have been tried again
        if len(server.calls) != calls:
            raise SystemExit("a retry started after the cancellation")
    return found


async def _cancelled(server: fakes.FakeServer, model: Model, calls: int, side_by_side: int) -> float:
    async with trio.open_nursery() as nursery:
        for _ in range(side_by_side):
            nursery.start_soon(model.questions, fakes.conversation_of("Why?"))
        await server.until(lambda seen: len(seen.calls) == calls)
        cancelled = trio.current_time()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await server.until(lambda seen: seen.open_connections == 0)
    return trio.current_time() - cancelled


if __name__ == "__main__":
    sys.exit(main())
