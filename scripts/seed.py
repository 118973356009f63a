#!/usr/bin/env python3
"""Post conversations to a running server and say what became of them; ``convo.client`` does the talking.

Exit codes: 0 all were taken; 1 some were refused or lost; 2 nothing was posted; 3 all were taken, but some are dead
letters or were not analysed within ``--wait``; 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import httpx
    import trio
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text

    from convo import config
    from convo.client import AsyncClient, Attempt, ClientError, NotConvo, NotFound, NotReached, ProblemError
    from convo.commands.parsing import Parser, row_count
    from convo.errors import ConfigError
    from scripts.seed_bodies import SAMPLES, BadSource, Body, encode, prepare, read_bodies
except ImportError as missing:
    venv = Path(__file__).resolve().parent.parent / ".venv"
    python = venv / "bin" / "python"
    if Path(sys.prefix).resolve() == venv or not python.exists():
        sys.exit(f"seed.py: {missing}. Run scripts/serve first: it makes .venv with all that is needed.")
    os.execv(python, [str(python), *sys.argv])  # noqa: S606  (the same program again, where its imports are)

T = TypeVar("T")
# A server may ask for so much patience: a restart takes less.
CALL_SECONDS = 120.0


class Tally:
    """What has happened so far; the progress bar and the final table read it."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()  # accepted, replayed, refused, lost
        self.reasons: Counter[tuple[str, str]] = Counter()  # (refused or lost, why)
        self.retries: Counter[str] = Counter()  # by the reason to try again
        self.states: Counter[str] = Counter()  # of what was taken: done, dead, pending
        self.latencies: list[float] = []  # seconds, each of the one attempt that was answered 202
        self.taken: list[str] = []  # ids that have had their 202

    def note(self, outcome: str, why: str = "") -> None:
        """Count one conversation's outcome, and the reason for one that is not wanted."""
        self.outcomes[outcome] += 1
        if why:
            self.reasons[outcome, why] += 1

    def attempted(self, attempt: Attempt) -> None:
        """Count one attempt of a call."""
        if attempt.why:
            self.retries[attempt.why] += 1
        elif attempt.status == 202:
            self.latencies.append(attempt.seconds)


class NoServer(Exception):
    """Nothing that speaks HTTP answers at the address."""


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="seed.py", description="Post conversations to a running convo server.")
    add = parser.add_argument
    add("--url", help="the server (default: CONVO_URL, else the one that scripts/serve started)")
    add("--from", dest="source", type=Path, default=SAMPLES, metavar="FILE", help="JSON Lines or Topical-Chat JSON")
    add("--count", type=row_count, metavar="N", help="how many to post (each of the file once)")
    add("--rate", type=_positive, default=0.0, metavar="R", help="posts a second (as fast as answers come)")
    add("--concurrency", type=row_count, default=16, metavar="N", help="requests under way at once (%(default)s)")
    add("--size-kb", type=_positive, default=0.0, metavar="KB", help="grow bodies to about this size")
    add("--user-prefix", default="", metavar="TEXT", help="put before every user_id and conversation_id")
    add("--fresh", action="store_true", help="new conversation ids (else the same each time: a second run replays)")
    add("--wait", type=float, default=60.0, metavar="S", help="seconds to await the analyses, 0: do not (%(default)g)")
    add("--key", help="the API key, sent as a bearer token (default: CONVO_KEY)")
    return parser.parse_args(arguments)


def find_server(options: argparse.Namespace) -> None:
    """Complete the address and the key, from where convo's own commands have them.

    Raises:
        ConfigError: as ``config.client_address``.
    """
    options.url, key = config.client_address(url=options.url or "")
    options.key = key if options.key is None else options.key


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0, e.g. 10")
    return number


@asynccontextmanager
async def connect(options: argparse.Namespace, tally: Tally) -> AsyncIterator[AsyncClient]:
    """Open the one client, and see that something answers.

    Raises:
        NoServer: the first connection failed; later ones are tried again.
        ClientError: the address cannot be used.
    """
    client = AsyncClient(
        options.url,
        key=options.key,
        call_seconds=CALL_SECONDS,
        connections=options.concurrency,
        attempted=tally.attempted,
    )
    async with client:
        try:
            async with httpx.AsyncClient(base_url=options.url) as first:
                await first.get("/livez")
        except httpx.TransportError as error:
            why = type(error).__name__
            raise NoServer(
                f"no server answers at {options.url} ({why}): start scripts/serve, or name one with --url"
            ) from error
        yield client


async def seed(
    client: AsyncClient, options: argparse.Namespace, bodies: Iterable[Body], tally: Tally, console: Console
) -> None:
    """Post all bodies, then await their analyses; what comes of it stands in ``tally``, also when cancelled."""
    with bar(console, "posting", options.count) as advance:
        await side_by_side(bodies, options.concurrency, options.rate, lambda body: post(client, body, tally), advance)
    if options.wait <= 0:
        return
    until = trio.current_time() + options.wait
    with bar(console, "analysing", len(tally.taken)) as advance:
        await side_by_side(
            tally.taken, options.concurrency, 0, lambda name: await_end(client, name, until, tally), advance
        )


async def post(client: AsyncClient, body: Body, tally: Tally) -> None:
    """Post one conversation, and note its outcome."""
    try:
        receipt = await client.post(encode(body))
    except NotConvo:
        tally.note("lost", "202 without a receipt")
    except NotReached as error:
        tally.note("lost", error.why)
    except ProblemError as error:
        tally.note("lost" if error.retryable else "refused", f"{error.status} {error.code}")
    else:
        tally.taken.append(receipt.conversation_id)
        tally.note("replayed" if receipt.replayed else "accepted")


async def await_end(client: AsyncClient, conversation_id: str, until: float, tally: Tally) -> None:
    """Wait until one conversation is done or dead, or trio's clock is at ``until``; it is asked at least once."""
    try:
        found = await client.wait(conversation_id, max(0.0, until - trio.current_time()))
        state = found.state if found.ended else "pending"
    except NotFound:  # it had its 202: the one thing that must never happen
        state = "lost"
        tally.note("lost", "404 after its 202")
    except ClientError:
        state = "pending"
    tally.states[state] += 1


async def side_by_side(
    items: Iterable[T], abreast: int, per_second: float, one: Callable[[T], Awaitable[None]], ended: Callable[[], None]
) -> None:
    """Run ``one(item)`` for every item, at most ``abreast`` at once, started at that pace (0: without a pace)."""
    send, receive = trio.open_memory_channel[T](0)

    async def work() -> None:
        async for item in receive:
            await one(item)
            ended()

    async with trio.open_nursery() as nursery:
        for _ in range(abreast):
            nursery.start_soon(work)
        async with send:
            started = trio.current_time()
            for number, item in enumerate(items):
                if per_second:
                    await trio.sleep_until(started + number / per_second)
                await send.send(item)


@contextmanager
def bar(console: Console, name: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar while on a terminal; yield the function that moves it on by one."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        row = progress.add_task("", total=total)
        yield lambda: progress.advance(row)


def report(tally: Tally, total: int, seconds: float) -> Table:
    """Draw the final table."""
    table = Table("what", "count", "of which", title=f"{total} conversations in {seconds:.1f} s", title_justify="left")
    for outcome in ("accepted", "replayed", "refused", "lost"):
        table.add_row(outcome, str(tally.outcomes[outcome]), _counts(tally, outcome))
    if missing := total - tally.outcomes.total() + tally.states["lost"]:
        table.add_row("not posted", str(missing))
    table.add_row("tried again", str(tally.retries.total()), _listed(tally.retries.most_common()))
    for share in (50, 99):
        value = f"{percentile(tally.latencies, share) * 1000:.1f} ms" if tally.latencies else "none"
        table.add_row(f"latency p{share}", value)
    for state in ("done", "dead", "pending"):
        table.add_row(f"analysed: {state}", str(tally.states[state]) if tally.states else "not awaited")
    return table


def _counts(tally: Tally, outcome: str) -> Text:
    return _listed((why, number) for (kind, why), number in tally.reasons.most_common() if kind == outcome)


def _listed(counts: Iterable[tuple[str, int]]) -> Text:
    # The words come from the server: markup and control characters in them have no effect.
    text = ", ".join(f"{why} × {number}" for why, number in counts)
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def percentile(values: list[float], share: float) -> float:
    """Find the smallest of the values that at least ``share`` percent of them do not exceed; 0 without values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share / 100) - 1)] if ranked else 0.0


def exit_code(tally: Tally, *, interrupted: bool) -> int:
    """Say in one number how it went; the module's docstring has the meanings."""
    if interrupted:
        return 130
    if tally.outcomes["refused"] or tally.outcomes["lost"]:
        return 1
    return 3 if tally.states["dead"] or tally.states["pending"] else 0


async def until_interrupted(work: Callable[[], Awaitable[None]]) -> bool:
    """Run ``work`` to its end or to the first Ctrl-C, and return whether it was Ctrl-C."""
    interrupted = False
    with trio.CancelScope() as scope, trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal interrupted
                async for _ in signals:
                    interrupted = True
                    scope.cancel()

            nursery.start_soon(listen)
            await work()
            nursery.cancel_scope.cancel()
    return interrupted


async def run(arguments: list[str], console: Console) -> int:
    """Do what the command line asks, and return the exit code."""
    options, tally = options_of(arguments), Tally()
    try:
        find_server(options)
        source = read_bodies(options.source)
        options.count = total = options.count or len(source)
        run_name = f"{secrets.token_hex(3)}-" if options.fresh else ""
        bodies = prepare(source, count=total, size_kb=options.size_kb, prefix=options.user_prefix, run=run_name)
        async with connect(options, tally) as client:
            started = trio.current_time()
            interrupted = await until_interrupted(lambda: seed(client, options, bodies, tally, console))
    except (BadSource, ClientError, ConfigError, NoServer) as error:
        console.print(f"seed.py: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    console.print(report(tally, total, trio.current_time() - started))
    if any(why.startswith("401") for _, why in tally.reasons):
        console.print("The server wants a key: set CONVO_KEY (`scripts/convo key new NAME` makes one).", markup=False)
    return exit_code(tally, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(trio.run(run, sys.argv[1:], Console()))
