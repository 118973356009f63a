#!/usr/bin/env python3
"""Post random bodies in all known log shapes to a real convo, and check what its answers promise.

    scripts/fuzz.py --count 100000                    # a convo of its own, on an embedded PostgreSQL
    scripts/fuzz.py --count 5000 --seed 7 --url URL   # one that runs already; it keeps what is posted

Checked of each: no 5xx but 503 with Retry-After (then it is sent again), no connection that is dropped, no 202 whose
words are gone, and 202 where nothing in the body may be refused. Checked of one in ``--sample``: the log as sent is
what was sent, the same body is a replay with the same digest, and a body with one text changed is a conflict. Each kind
of finding is counted, its first bodies are written to files. Exit code 1: there was a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.fuzz_bodies import Body, kept, make  # noqa: E402
from scripts.fuzz_client import Answer, Connection, Dropped  # noqa: E402
from scripts.fuzz_oddities import LOG, OTHER_NAMES  # noqa: E402
from tests.support.running import running  # noqa: E402

END = "/v1/conversations/end"
_SETTINGS = {"jobs.workers": "0", "observe.log_level": "error", "observe.log_format": "json"}
_RETRIES = 20
_SAVED_MAX = 5
_PROGRESS_SECONDS = 15.0
_ROWS_MAX = 60
_KIND_CHARACTERS = 70
# What differs between two details of one kind.
_VALUES = re.compile(r"[0-9]+|`[^`]*`|'[^']*'")


class Report:
    """What has come of it so far; the bodies of findings go to files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.findings: Counter[str] = Counter()

    def find(self, kind: str, body: Body, detail: str) -> None:
        """Note a finding; save its body where it is one of the first of its kind."""
        self.findings[kind] += 1
        if self.findings[kind] > _SAVED_MAX:
            return
        name = "".join(letter if letter.isalnum() else "-" for letter in kind)[:60]
        path = self.folder / f"{name}-{self.findings[kind]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_bytes(body.content)
        about = {
            "kind": kind,
            "detail": detail,
            "shape": body.shape,
            "odd": body.odd,
            "may be refused for": body.may_refuse,
            "headers": body.headers,
            "words": body.words,
        }
        path.with_suffix(".txt").write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")


# --- the checks


def accepted_wrongly(body: Body, receipt: dict[str, Any]) -> str:
    """Return what is wrong with a receipt; empty for nothing."""
    if not isinstance(receipt.get("turns"), int) or "links" not in receipt or "digest" not in receipt:
        return "202 without a receipt"
    turns, unread = int(receipt["turns"]), receipt.get("unread") or []
    if body.spoken and turns == 0:
        return f"202, turns 0, though somebody speaks ({body.name if body.name != LOG else body.shape})"
    if body.words and turns == 0 and not unread:
        return _silent(body, receipt.get("ignored") or [])
    if turns < body.spoken:
        return f"202 with fewer turns than were spoken ({body.shape})"
    return ""


def _silent(body: Body, ignored: list[str]) -> str:
    if body.name == LOG:
        return "202, turns 0, and nothing is listed as unread"
    if body.name in OTHER_NAMES:
        return f"202, turns 0, and the log under {body.name} is not kept"
    return "" if body.name in ignored else f"202, turns 0, and {body.name} is not listed as ignored"


def stored_wrongly(body: Body, answer: Answer) -> str:
    """Return what is wrong with a log as it is read back with ``as=sent``; empty for nothing."""
    if answer.body == body.log:
        return ""
    if not kept(body.log, answer.body):
        return "the log as sent is not what was sent"
    return "" if body.audio else "the log as sent has other bytes than were sent"


def is_array(answer: Answer) -> bool:
    """Return whether an answer is a log as sent: a server that does not know ``as`` answers with an object."""
    return answer.status == 200 and answer.body[:1] == b"["


# --- posting


class Fuzz:
    """One run against one server."""

    def __init__(self, url: str, report: Report, asked: argparse.Namespace) -> None:
        self._url = url
        self._report = report
        self._asked = asked
        self._run = f"{time.time_ns() // 1_000_000:x}"
        self._numbers = itertools.count()
        self.posted = 0

    async def run(self) -> None:
        """Post all bodies over a few connections, or as many as there is time for."""
        with trio.move_on_after(self._asked.seconds) as over:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell)
                async with trio.open_nursery() as posting:
                    for _ in range(self._asked.connections):
                        posting.start_soon(self._post_all)
                nursery.cancel_scope.cancel()
        if over.cancelled_caught:
            print(f"stopped after {self._asked.seconds:g} s", file=sys.stderr)

    async def _tell(self) -> None:
        while True:
            await trio.sleep(_PROGRESS_SECONDS)
            found = sum(self._report.findings.values())
            print(f"{self.posted} posted, {found} findings", file=sys.stderr)

    async def _post_all(self) -> None:
        connection = Connection(self._url)
        for number in self._numbers:
            if number >= self._asked.count:
                break
            body = make(self._asked.seed, self._run, number)
            try:
                await self._one(connection, body, sampled=number % self._asked.sample == 0)
            except Dropped as dropped:
                self._report.find("a connection was dropped", body, str(dropped))
            self.posted += 1
        await connection.close()

    async def _one(self, connection: Connection, body: Body, *, sampled: bool) -> None:
        answer = await self._post(connection, body, body.content)
        if answer is None:
            return
        self._report.answers[str(answer)] += 1
        if answer.status == 202:
            if wrong := accepted_wrongly(body, answer.json()):
                self._report.find(wrong, body, answer.body.decode())
            if sampled:
                await self._look_closer(connection, body, answer)
        elif not 400 <= answer.status < 500:
            self._report.find(f"answered {answer}", body, answer.body.decode("utf-8", "replace"))
        elif not answer.json().get("detail"):
            self._report.find(f"answered {answer} without a reason", body, answer.body.decode("utf-8", "replace"))
        elif not body.may_refuse:
            self._report.find(f"refused with {answer}: {_why(body, answer)}", body, answer.body.decode())

    async def _look_closer(self, connection: Connection, body: Body, first: Answer) -> None:
        receipt, checks = first.json(), self._report.checks
        sent = await connection.ask("GET", f"{receipt['links']['log']}?as=sent")
        if not is_array(sent):
            checks["as=sent is not available" if sent.status in (200, 422) else f"as=sent answers {sent}"] += 1
        elif body.name == LOG:
            checks["read back as sent"] += 1
            if wrong := stored_wrongly(body, sent):
                self._report.find(wrong, body, sent.body.decode("utf-8", "replace"))
        again = await self._post(connection, body, body.content)
        if again is not None:
            checks["replayed"] += 1
            same = again.status == 202 and again.json().get("digest") == receipt["digest"]
            if not same or again.headers.get("idempotent-replayed") != "true":
                self._report.find("the same body again is no replay", body, f"{again} {again.body.decode()}")
        if body.changed and body.name == LOG:
            changed = await self._post(connection, body, body.changed)
            if changed is not None:
                checks[f"one text changed: {changed}"] += 1
                if changed.status == 202:
                    self._report.find(
                        "a changed text is taken for a replay", body, body.changed.decode("utf-8", "replace")
                    )

    async def _post(self, connection: Connection, body: Body, content: bytes) -> Answer | None:
        headers = [("content-type", "application/json"), *body.headers]
        for _ in range(_RETRIES):
            answer = await connection.ask("POST", END, content, headers)
            if answer.status != 503 or "retry-after" not in answer.headers:
                return answer
            self._report.checks[f"sent again after {answer}"] += 1
            await trio.sleep(float(answer.headers["retry-after"]))
        self._report.find(f"no other answer than 503 in {_RETRIES} tries", body, "")
        return None


def _why(body: Body, answer: Answer) -> str:
    """Say why a body was refused without need: the one thing that is odd about it, else the words of the answer."""
    if not body.odd:
        return f"shape {body.shape}"
    if len(body.odd) == 1:
        return body.odd[0]
    told = answer.json()
    return _VALUES.sub("…", f"{told.get('path', '')} {told.get('detail', '')}".strip())[:_KIND_CHARACTERS]


# --- the program


def main() -> int:
    """Post, print what came of it; return 0 where nothing was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="bodies (default: 10000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same bodies (default: 1)")
    parser.add_argument("--connections", type=int, default=8, help="connections at a time (default: 8)")
    parser.add_argument("--sample", type=int, default=10, help="one body in so many is looked at closer (default: 10)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the longest time of a run (default: 3600)")
    parser.add_argument("--url", default="", help="a server that runs already; without, one is started")
    parser.add_argument("--database-url", default="", help="the PostgreSQL of the server that is started")
    parser.add_argument("--out", type=Path, help="folder for the bodies of findings")
    asked = parser.parse_args()
    report = Report(asked.out or Path(tempfile.gettempdir()) / f"convo-fuzz-{asked.seed}")
    began = time.monotonic()
    with _server(asked.url, asked.database_url) as (url, alive):
        fuzz = Fuzz(url, report, asked)
        trio.run(fuzz.run)
        if not alive():
            report.findings["the server ended"] += 1
    seconds = time.monotonic() - began
    _show(report, fuzz.posted, seconds)
    return int(bool(report.findings))


@contextlib.contextmanager
def _server(url: str, database_url: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    if url:
        yield url, lambda: True
        return
    memory = Path("/dev/shm")  # noqa: S108  (a folder of its own is made there)
    with (
        tempfile.TemporaryDirectory(prefix="convo-fuzz-", dir=memory if memory.is_dir() else None) as folder,
        running(Path(folder) / "convo", database_url, _SETTINGS) as convo,
    ):
        yield convo.url, lambda: convo.process.poll() is None


def _show(report: Report, posted: int, seconds: float) -> None:
    console = Console()
    console.print(f"{posted} bodies in {seconds:.0f} s, {posted / seconds:.0f} a second")
    for title, counts in (("answers", report.answers), ("checks", report.checks), ("findings", report.findings)):
        table = Table(title=title, title_justify="left")
        table.add_column("", overflow="fold")
        table.add_column("count", justify="right")
        for name, count in counts.most_common(_ROWS_MAX):
            table.add_row(name.replace("[", r"\["), f"{count:,}")
        if len(counts) > _ROWS_MAX:
            table.add_row(f"and {len(counts) - _ROWS_MAX} kinds more", "")
        if counts:
            console.print(table)
    console.print(f"bodies of the findings: {report.folder}" if report.findings else "no finding")


if __name__ == "__main__":
    sys.exit(main())
