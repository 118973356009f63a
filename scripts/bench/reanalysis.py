#!/usr/bin/env python3
"""Find a part again for a thousand conversations while others come in, kill the command twice, and check the outcome.

    .venv/bin/python scripts/bench/reanalysis.py                  # 1,000 conversations, 50 live ones a second: a minute
    .venv/bin/python scripts/bench/reanalysis.py --count 200 --per-second 20 --json FILE

The conversations are analysed by rules first. Then a fake model finds the emotion of each again, while live ones are
posted that it analyses, too. `convo reanalyse` is killed with SIGKILL at a third and at two thirds, and started again.
The live ones' time from 202 to done, by the database's clock, stands beside that of the same load before and after it.
Exit code 1: a result is missing, a score is not the sum of its shares, a relationship is not the sum of its scores, or
the model answered more calls twice than were under way at the kills.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.embedded.server import running_dsn
from convo.store.outcomes import unpack_details
from tests.support.faking import fake, seen
from tests.support.making import ended
from tests.support.running import ROOT, environment, query, running

WORKERS = 4
_KILLS = 2
_BATCH = 250
_POSTERS = 8
_SAID = ("Hello!", "Hi!", "Why do dogs bark?", "They talk.", "I like the moon. How far is it?", "Far.")
_QUICK = {
    "jobs.lease_seconds": "6",
    "jobs.heartbeat_seconds": "1.5",
    "observe.log_level": "error",
    "llm.attempts": "1",
    "events.types": "[]",
}


class Measured(Struct, frozen=True, kw_only=True):
    """What was found: times in seconds."""

    conversations: int
    killed_after: list[int]
    rerun_seconds: float
    live_p99_before: float
    live_p99_beside: float
    live_p99_after: float
    live_beside: int
    promoted: int
    points: int
    agreement: float | None
    answered_twice: int
    faults: list[str]

    @property
    def ratio(self) -> float:
        """How much longer the slowest live ones took beside the re-run than without it."""
        return self.live_p99_beside / max(self.live_p99_before, self.live_p99_after)


def measure(folder: Path, count: int, per_second: int, alone_seconds: float) -> Measured:
    """Do all of it in an empty folder."""
    with fake("model", "scattered", "0.02") as model:
        with running(folder, "", _QUICK) as convo:
            _post_all(convo.url, count)
            _until_done(folder, count)
        settings = {**_QUICK, "llm.base_url": model, "llm.model": "m"}
        with running(folder, "", settings) as convo:
            before = _live(convo.url, folder, "before", per_second, alone_seconds)
            with _posting(convo.url, "beside", per_second):
                began = time.monotonic()
                killed_after = _rerun(folder, settings, count)
                rerun_seconds = time.monotonic() - began
            _until_all_done(folder)
            beside = _times(folder, "beside")
            after = _live(convo.url, folder, "after", per_second, alone_seconds)
            _until_all_done(folder)
            compared = _convo(folder, settings, "compare", "emotion")
            promoted = _convo(folder, settings, "compare", "emotion", "--promote")["promoted"]
            again = _convo(folder, settings, "compare", "emotion", "--promote")["promoted"]
            audit = _convo(folder, settings, "audit")["differences"]
            faults = [*audit, *_faults(folder, count), *(["promoted twice"] if again["conversations"] else [])]
        twice = sum(number - 1 for number in Counter(seen(model)["paid"]).values())
    if promoted["conversations"] != count:
        faults.append(f"{promoted['conversations']} of {count} were promoted")
    if twice > _KILLS * WORKERS:
        faults.append(f"{twice} calls were answered twice, and {_KILLS * WORKERS} were under way at the kills at most")
    return Measured(
        conversations=count,
        killed_after=killed_after,
        rerun_seconds=rerun_seconds,
        live_p99_before=_p99(before),
        live_p99_beside=_p99(beside),
        live_p99_after=_p99(after),
        live_beside=len(beside),
        promoted=promoted["conversations"],
        points=promoted["points"],
        agreement=compared["agreement"],
        answered_twice=twice,
        faults=faults,
    )


def _body(name: str, number: int) -> dict[str, Any]:
    return ended(f"{name}-{number}", user_id=f"user-{number % 50}", said=_SAID[: 2 + number % 5])


def _post_all(url: str, count: int) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        for first in range(0, count, _BATCH):
            lines = b"".join(
                json.dumps(_body("old", number)).encode() + b"\n" for number in range(first, min(first + _BATCH, count))
            )
            answer = client.post(
                "/v1/conversations/batch", content=lines, headers={"Content-Type": "application/x-ndjson"}
            )
            answer.raise_for_status()


def _ask(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in query(running_dsn(folder) or "", statement)]


def _until_done(folder: Path, count: int) -> None:
    while _ask(folder, "SELECT count(*) FROM outcome")[0][0] < count:
        time.sleep(0.2)


def _until_all_done(folder: Path) -> None:
    while _ask(folder, "SELECT count(*) FROM job")[0][0]:
        time.sleep(0.1)


# --- live load


def _live(url: str, folder: Path, name: str, per_second: int, seconds: float) -> list[float]:
    with _posting(url, name, per_second):
        time.sleep(seconds)
    _until_all_done(folder)
    return _times(folder, name)


@contextmanager
def _posting(url: str, name: str, per_second: int) -> Iterator[None]:
    """Post so many conversations a second inside the block."""
    stop = threading.Event()
    posters = [
        threading.Thread(target=_post, args=(url, f"{name}-{number}", _POSTERS / per_second, stop))
        for number in range(_POSTERS)
    ]
    for poster in posters:
        poster.start()
    try:
        yield
    finally:
        stop.set()
        for poster in posters:
            poster.join()


def _post(url: str, name: str, pause: float, stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        next_at = time.monotonic()
        number = 0
        while not stop.wait(max(0.0, next_at - time.monotonic())):
            client.post("/v1/conversations/end", json=_body(name, number)).raise_for_status()
            number += 1
            next_at += pause


def _times(folder: Path, name: str) -> list[float]:
    """Read how long each live one took from its receipt to its score, by the database's clock."""
    statement = f"""
    SELECT extract(epoch FROM o.ended_at - c.received_at)::float8
    FROM conversation c JOIN outcome o USING (seq) WHERE c.conversation_id LIKE '{name}-%'
    """
    return [seconds for (seconds,) in _ask(folder, statement)]


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


# --- the re-run


def _command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "convo", *words, "--json", "--data-dir", str(folder)]


def _convo(folder: Path, settings: Mapping[str, str], *words: str) -> Any:
    ran = subprocess.run(
        _command(folder, *words), cwd=ROOT, env=environment("", settings), capture_output=True, text=True, check=False
    )
    if not ran.stdout:
        raise SystemExit(f"convo {' '.join(words)}: {ran.stderr}")
    return json.loads(ran.stdout)


def _rerun(folder: Path, settings: Mapping[str, str], count: int) -> list[int]:
    """Find the emotions again; the command is killed at each third. Return how many were found at each kill."""
    words = _command(folder, "reanalyse", "--part", "emotion", "--workers", str(WORKERS))
    killed_after = []
    for share in range(1, _KILLS + 2):
        with subprocess.Popen(words, cwd=ROOT, env=environment("", settings), stdout=subprocess.PIPE) as process:
            if share > _KILLS:
                process.communicate()
                break
            while (found := _found(folder)) < count * share // (_KILLS + 1):
                if process.poll() is not None:
                    raise SystemExit("convo reanalyse ended before it could be killed")
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            killed_after.append(found)
    return killed_after


def _found(folder: Path) -> int:
    found: int = _ask(folder, "SELECT count(*) FROM candidate WHERE state = 'done'")[0][0]
    return found


def _faults(folder: Path, count: int) -> list[str]:
    """Look for what is not as it should be, by sums of our own."""
    faults = []
    found = _ask(folder, "SELECT count(*) FILTER (WHERE state = 'promoted') FROM candidate")[0][0]
    if found != count:
        faults.append(f"{found} of {count} candidates are promoted")
    sums: Counter[str] = Counter()
    rows = _ask(folder, "SELECT conversation_id, user_id, score, details FROM conversation JOIN outcome USING (seq)")
    for conversation_id, user_id, score, packed in rows:
        details = unpack_details(packed)
        shares = to_builtins(details.breakdown)
        parts = sum(one["points"] for one in shares.pop("parts", {}).values())
        if score != max(0, parts + sum(one["points"] for one in shares.values() if one)):
            faults.append(f"{conversation_id}: its score {score} is not the sum of its shares")
        if conversation_id.startswith("old-") and details.parts[1].made_by.startswith("local"):
            faults.append(f"{conversation_id}: its emotion is still that of before")
        sums[user_id] += score
    for user_id, score in _ask(folder, "SELECT user_id, score FROM relationship"):
        if score != sums[user_id]:
            faults.append(f"{user_id}: {score} points, and {sums[user_id]} by its conversations")
    return faults[:20]


def main() -> int:
    """Measure and print; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="conversations that are analysed again")
    parser.add_argument("--per-second", type=int, default=50, help="live conversations a second")
    parser.add_argument("--alone-seconds", type=float, default=8.0, help="live ones without a re-run, before and after")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    console = Console(width=120)
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory(prefix="convo-reanalysis-") as folder:
        found = measure(Path(folder), asked.count, asked.per_second, asked.alone_seconds)
    table = Table("figure", "value")
    for name, value in {**to_builtins(found), "ratio": round(found.ratio, 2)}.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps({**to_builtins(found), "ratio": found.ratio}, indent=2))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
