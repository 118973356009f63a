#!/usr/bin/env python3
"""Post bodies that are tiny on the wire and large or costly in memory, many at once, and show convo's memory.

    .venv/bin/python scripts/bench/packed.py                       # all kinds, 200 of each at once: about a minute
    .venv/bin/python scripts/bench/packed.py --kinds items --tree /tmp/before

Each kind has a server of its own, with workers, on an embedded PostgreSQL. Its memory is the kernel's peak of the
process's resident set (VmHWM), from the first body until the answers and the analyses are done, over what it was when
idle and warm. Returns 0 when every kind stayed within ``--within`` megabytes and no answer was lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio
import zstandard
from msgspec import Struct
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import machine, servers
from scripts.bench.servers import ROOT, Server

_END = "/v1/conversations/end"
_MIB = 1 << 20
_ID = "ID-OF-THE-CONVERSATION"
_IDS = {"conversation_id": _ID, "user_id": "u", "bot_id": "b"}
_ITEM = {"role": "user", "content": "a"}
# After the last answer: a worker that has begun with a body shows what it needs for it.
_REST_SECONDS = 4.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of one kind of body."""

    kind: str
    packed_bytes: int
    inflated_bytes: int
    statuses: Mapping[str, int]
    over_idle_mb: float


def _body(log: Any, **others: Any) -> bytes:
    return json.dumps({**_IDS, **others, "conversation_log": log}, separators=(",", ":"), ensure_ascii=False).encode()


def _with_text(text: bytes) -> bytes:
    """Return a body whose second item's text is replaced by this JSON."""
    return _body([_ITEM, {"role": "user", "content": [], "more": "MORE"}]).replace(b'"MORE"', text)


KINDS: Mapping[str, Callable[[], bytes]] = {
    "items": lambda: _body([_ITEM] * 57_000),
    "items that count": lambda: _body([{"role": "user", "content": "a" * 70}] * 19_900),
    "no objects": lambda: _body([]).replace(b"[]", b"[1%b]" % (b",1" * 900_000)),
    "empty lists": lambda: _with_text(b"[[]%b]" % (b",[]" * 650_000)),
    "empty objects": lambda: _with_text(b"[{}%b]" % (b",{}" * 650_000)),
    "floats": lambda: _with_text(b"[.1%b]".replace(b".", b"0.") % (b",0.1" * 490_000)),
    "keys": lambda: _with_text(json.dumps(dict.fromkeys(map(str, range(170_000)))).replace(" ", "").encode()),
    "one text": lambda: _body([_ITEM, {"role": "user", "content": "a" * 2_000_000}]),
    "a recording": lambda: _body([{**_ITEM, "audio": {"data": "A" * (15 * _MIB)}}]),
    "an unknown field": lambda: _body([_ITEM], other=[[]] * 650_000),
    "another log": lambda: json.dumps({**_IDS, "messages": [_ITEM] * 57_000}).encode(),
    "marks": lambda: _body([{"role": "user", "content": "a" + "\u0301\u0323" * 4_000}] * 8),
}


def main() -> int:
    """Post and print; return 0 when all stayed within the bound."""
    asked = _arguments()
    console = Console(width=max(Console().width, 120))
    outcomes = []
    for kind in asked.kinds:
        print(kind, file=sys.stderr)
        outcomes.append(_outcome(kind, asked))
    console.print(_table(outcomes, asked))
    lost = any(one.statuses.get("lost") for one in outcomes)
    return 1 if lost or any(one.over_idle_mb > asked.within for one in outcomes) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = partial(str.split, sep=",")
    parser.add_argument("--kinds", type=listed, default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, default=200, help="bodies at once")
    parser.add_argument("--within", type=float, default=100.0, help="megabytes over idle")
    parser.add_argument("--set", dest="settings", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the tree of the convo that is measured")
    return parser.parse_args()


def _setting(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _outcome(kind: str, asked: argparse.Namespace) -> Outcome:
    body = KINDS[kind]()
    packed = packed_bodies(kind, asked.count)
    with (
        tempfile.TemporaryDirectory(prefix="convo-packed-") as folder,
        servers.convo(Path(folder), "", {"server.data_dir": folder, **dict(asked.settings)}, tree=asked.tree) as server,
    ):
        _warm(server)
        before = machine.rss_bytes(server.pid)
        machine.forget_peak(server.pid)
        statuses = trio.run(posted, server.url, packed)
        trio.run(trio.sleep, _REST_SECONDS)
        most = machine.peak_rss_bytes(server.pid)
    return Outcome(
        kind=kind,
        packed_bytes=len(packed[0]),
        inflated_bytes=len(body),
        statuses=statuses,
        over_idle_mb=(most - before) / 1e6,
    )


def _warm(server: Server) -> None:
    for number in range(20):
        body = {
            **_IDS,
            "conversation_id": f"warm-{number}",
            "conversation_log": [_ITEM, {"role": "bot", "content": "b"}],
        }
        httpx.post(server.url + _END, json=body, timeout=10).raise_for_status()


def packed_bodies(kind: str, count: int) -> list[bytes]:
    """Return so many bodies of a kind, packed; each has an id of its own, or all but one would be replays."""
    body = KINDS[kind]()
    return [zstandard.compress(body.replace(_ID.encode(), str(number).encode())) for number in range(count)]


async def posted(url: str, packed: Sequence[bytes]) -> dict[str, int]:
    """Post all bodies at once, each on a connection of its own; count the statuses."""
    statuses: Counter[str] = Counter()
    headers = {"Content-Type": "application/json", "Content-Encoding": "zstd"}
    limits = httpx.Limits(max_connections=len(packed))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def post(body: bytes) -> None:
            try:
                answer = await client.post(_END, content=body, headers=headers)
            except httpx.TransportError:
                statuses["lost"] += 1
            else:
                statuses[str(answer.status_code)] += 1

        async with trio.open_nursery() as nursery:
            for body in packed:
                nursery.start_soon(post, body)
    return dict(statuses)


def _table(outcomes: list[Outcome], asked: argparse.Namespace) -> Table:
    table = Table("body", "packed", "inflated", "answers", "memory over idle", title=f"{asked.count} bodies at once")
    for one in outcomes:
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(one.statuses.items()))
        sizes = f"{one.packed_bytes:,} B", f"{one.inflated_bytes:,} B"
        table.add_row(one.kind, *sizes, answers, f"{one.over_idle_mb:.0f} MB")
    return table


if __name__ == "__main__":
    sys.exit(main())
