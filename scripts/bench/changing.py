#!/usr/bin/env python3
"""Analyse conversations with a model server that changes its ways all the time; show what that cost them.

    .venv/bin/python scripts/bench/changing.py             # 500 conversations, another trait every 20 s, for 5 minutes
    .venv/bin/python scripts/bench/changing.py --short     # 300 of them, another trait every 6 s, for 90 s

A real convo on its embedded PostgreSQL, and a server on loopback. Its traits are those of real servers: it refuses a
parameter, the key, or everything; it answers in prose, with an error inside a 200, with null; it hangs, is busy, or
down; and in between it is well. At the end it stays well, and all is waited for.

Exit code 0: no dead letter, each part stored once, every score counted once, and no attempt spent on the server's
faults.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import trio
from msgspec import Struct
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support import fakes  # noqa: E402
from tests.support.case_servers import think  # noqa: E402
from tests.support.fakes import Exchange, FakeServer, Fault  # noqa: E402
from tests.support.running import Running, running  # noqa: E402

_DRAIN_SECONDS = 180.0
_USERS = 20
_SETTINGS = {
    "llm.model": "changing",
    "llm.api_key": "k",
    "llm.attempt_seconds": "2",
    "llm.backoff_seconds": "0.2",
    "llm.backoff_max_seconds": "1",
    "llm.breaker_open_seconds": "3",
    "jobs.backoff_seconds": "0.5",
    "jobs.backoff_max_seconds": "5",
    "observe.log_level": "warning",
    "observe.log_format": "json",
}
console = Console()


class Counted(Struct, frozen=True, kw_only=True):
    """What became of all conversations."""

    states: Counter[str]
    attempts: int
    parts: dict[str, int]
    settled: int
    related: int


def main() -> int:
    """Run it; return 0 when it cost the conversations nothing but time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="the same in 90 s")
    asked = parser.parse_args()
    return trio.run(_run, *((300, 6.0, 90.0) if asked.short else (500, 20.0, 300.0)))


async def _run(conversations: int, every: float, seconds: float) -> int:
    async with fakes.open_server(think) as server, trio.open_nursery() as nursery:
        nursery.start_soon(_change, server, every, seconds)
        with tempfile.TemporaryDirectory(prefix="convo-changing-") as folder:
            found = await trio.to_thread.run_sync(_work, Path(folder), server.url, conversations, seconds)
        nursery.cancel_scope.cancel()
    return _verdict(conversations, found)


# --- the server


def _refusing(*fields: str) -> Fault:
    """Refuse a request that has one of these fields, as servers do that do not know it."""

    async def trait(exchange: Exchange) -> None:
        asked = exchange.call.json() if exchange.call.method == "POST" else {}
        unknown = next((field for field in fields if field in asked), None)
        if unknown is None:
            await fakes.healthy(exchange)
            return
        error = {"message": f"unsupported parameter: {unknown}", "type": "invalid_request_error", "param": unknown}
        await exchange.answer_json(400, {"error": error})

    return trait


def _saying(status: int, body: object) -> Fault:
    async def trait(exchange: Exchange) -> None:
        await exchange.answer_json(status, body)

    return trait


_BAD: dict[str, Fault] = {
    "refuses temperature": _refusing("temperature"),
    "answers in prose": fakes.completing("I would rather talk about something else."),
    "answers 503": fakes.failing("503"),
    "refuses any response format": _refusing("response_format"),
    "answers with an error inside a 200": _saying(200, {"error": {"code": 502, "message": "upstream"}}),
    "refuses everything (400)": _saying(400, {"error": {"message": "this server is being moved"}}),
    "refuses the key by 400": _saying(400, {"error": {"code": 400, "message": "API key not valid."}}),
    "answers with null": _saying(200, {"id": None, "choices": None}),
    "refuses everything (422)": _saying(422, {"detail": [{"loc": ["body"], "msg": "extra fields not permitted"}]}),
    "answers a page": fakes.garbage,
    "hangs": fakes.stuck,
    "is busy": fakes.rate_limited("1"),
}


async def _change(server: FakeServer, every: float, seconds: float) -> None:
    until = trio.current_time() + seconds
    for number, (name, trait) in enumerate(_traits()):
        left = until - trio.current_time()
        if left <= 0:
            break
        server.always = trait
        console.print(f"[dim]{datetime.now(UTC):%H:%M:%S} {number * every:.0f} s: it {name} …")
        await trio.sleep(min(every, left))
    server.always = fakes.healthy
    console.print("[dim]it is well from now on …")


def _traits() -> Iterator[tuple[str, Fault]]:
    while True:
        for number, trait in enumerate(_BAD.items()):
            if number % 4 == 0:
                yield "is well", fakes.healthy
            yield trait


# --- convo


def _work(folder: Path, model: str, conversations: int, seconds: float) -> Counted:
    with (
        running(folder, "", {**_SETTINGS, "llm.base_url": f"{model}/v1"}) as convo,
        httpx.Client(base_url=convo.url, timeout=30.0) as client,
    ):
        names = [f"changing-{number}" for number in range(conversations)]
        began = time.monotonic()
        for number, name in enumerate(names):
            _post(client, name, f"user-{number % _USERS}")
            time.sleep(max(0.0, began + (number + 1) * seconds / conversations - time.monotonic()))
        found = _counted(client, names)
        until = time.monotonic() + _DRAIN_SECONDS
        while found.states["done"] + found.states["dead"] < conversations and time.monotonic() < until:
            console.print(f"[dim]{conversations - found.states['done']} conversations to be analysed …")
            time.sleep(5.0)
            found = _counted(client, names)
        _show_told(convo, client)
        _show_spent(client, names)
    return found


def _post(client: httpx.Client, name: str, user: str) -> None:
    said = [("USER", "I like tea. Is the shop open?"), ("BOT", "It is.")]
    log = [{"character": who, "content": what} for who, what in said]
    body = {"conversation_id": name, "user_id": user, "bot_id": "pika", "conversation_log": log}
    client.post("/v1/conversations/end", json=body).raise_for_status()


def _counted(client: httpx.Client, names: list[str]) -> Counted:
    shown = [client.get(f"/v1/conversations/{name}").json() for name in names]
    metrics = client.get("/metrics").text
    parts = re.findall(r'^convo_part_seconds_count\{outcome="done",part="(\w+)"\} (\d+)', metrics, re.MULTILINE)
    users = [client.get(f"/v1/users/user-{number}/relationship") for number in range(_USERS)]
    settled = re.search(r'^convo_jobs_ended_total\{ending="settle"\} (\d+)', metrics, re.MULTILINE)
    return Counted(
        states=Counter(one["state"] for one in shown),
        attempts=sum(one["attempts"] for one in shown),
        parts={name: int(count) for name, count in parts},
        settled=int(settled[1]) if settled else 0,
        related=sum(user.json()["conversations"] for user in users if user.status_code == 200),
    )


def _show_told(convo: Running, client: httpx.Client) -> None:
    events = Counter(re.findall(r'"event": ?"(\w+)"', convo.output))
    console.print(f"[dim]log lines from warning upwards: {dict(events.most_common())}")
    alerts = client.get("/v1/alerts").json()
    console.print(f"[dim]alerts: {dict(Counter(one['type'] for one in alerts['active'] + alerts['recent']))}")


def _show_spent(client: httpx.Client, names: list[str]) -> None:
    """Show on what attempts were spent that were not given back, in the runs of those that have more than one."""
    for name in names:
        found = client.get(f"/v1/conversations/{name}/explain").json()
        if found["state"] == "done" and found["attempts"] > 1:
            failed = [run for run in found["runs"] if run["ending"] == "fail"]
            told = "; ".join(f"{run['ended_at'][11:21]} {run['reason']}" for run in failed)
            console.print(f"[dim]{name}: {found['attempts'] - 1} too many of {len(failed)}: {told}")


def _verdict(conversations: int, found: Counted) -> int:
    rows = [
        ("done", found.states["done"], conversations),
        ("dead letters", found.states["dead"], 0),
        *((f"times that {name} were found", count, conversations) for name, count in sorted(found.parts.items())),
        ("parts of an analysis", len(found.parts), 3),
        ("settled", found.settled, conversations),
        ("conversations in relationships", found.related, conversations),
        ("attempts beyond the one of each", found.attempts - found.states["done"], 0),
    ]
    table = Table("what", "found", "wanted")
    for what, count, wanted in rows:
        table.add_row(what, f"{count:,}" if count == wanted else f"[red]{count:,}", f"{wanted:,}")
    console.print(table)
    return int(any(count != wanted for _, count, wanted in rows))


if __name__ == "__main__":
    sys.exit(main())
