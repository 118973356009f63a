"""A convo whose database's disk is full for a while: a small file system of its own, which a file fills."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import trio
from msgspec import Struct

from convo.embedded.server import running_dsn
from tests.torture.load import END, body
from tests.torture.world import GATEWAY_SECONDS, SETTINGS, Convo, ask

_SIZE = "256m"
_BACK_SECONDS = 30.0
# What is full, the number of the first conversation that is posted then, and whether the log is filled as well.
_TABLES_FULL = ("disk full under the data folder", 100, False)
_LOG_FULL = ("disk full under the database's log", 1000, True)
# As long as a file of the log: convo's role may not end one.
_NEXT_LOG_FILE = "SELECT pg_logical_emit_message(true, 'x', repeat('x', 16 * 1024 * 1024))"
# How many files of its log the server may need until it is full: those it keeps in reserve, and those it reuses.
_LOG_FILES_MAX = 40


class Outcome(Struct, frozen=True, kw_only=True):
    """The outcome: for each fault, after how many seconds with room a conversation was accepted, and all were done.

    ``odd`` are the conversations that were lost or are not done.
    """

    summary: str
    recovered: dict[str, tuple[float, float]] = {}
    odd: tuple[str, ...] = ()


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Mount a small file system in memory; yield "", or the reason where that is not allowed."""
    folder.mkdir(parents=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0755", "convo-torture", str(folder)]
    try:
        mounted = subprocess.run(line, capture_output=True, text=True, check=False)
        why = mounted.stderr.strip() if mounted.returncode else ""
    except OSError as error:
        why = str(error)
    try:
        yield why
    finally:
        if not why:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


async def fill_the_disk(folder: Path) -> Outcome:
    """Post while the disk is full, make room, and check that nothing accepted is lost and all is done.

    Twice: first no table can grow; then the log of the database cannot, at which the server ends itself.
    """
    with small_disk(folder) as why_not:
        if why_not:
            return Outcome(summary=f"skipped: {why_not}")
        convo = Convo(folder / "convo", SETTINGS)
        try:
            await convo.start()
            async with httpx.AsyncClient(base_url=convo.url, timeout=GATEWAY_SECONDS) as client:
                return await _fill(folder, convo, client)
        except trio.TooSlowError:
            output = (convo.folder / "output.txt").read_text("utf-8", "replace")
            ended = None if convo.process is None else convo.process.poll()
            return Outcome(summary="it never became ready", odd=(f"ended: {ended}; {output[-2000:]}",))
        finally:
            if convo.process is not None:
                convo.process.terminate()
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(partial(convo.process.wait, 40))


async def _fill(folder: Path, convo: Convo, client: httpx.AsyncClient) -> Outcome:
    receipts: dict[str, str] = {}
    codes = Counter[str]()
    recovered: dict[str, tuple[float, float]] = {}
    odd: list[str] = []
    await _ready(client)
    await _post(client, receipts, codes, 0, 20)
    for fault, first, log_too in (_TABLES_FULL, _LOG_FULL):
        with _full(folder / "ballast"):
            if log_too and not await _exhaust_the_log(convo.folder):
                odd.append("the database's log was never full")
            before = sum(codes.values()) - codes["202"]
            await _post(client, receipts, codes, first, first + 400, until_refused=True)
            if sum(codes.values()) - codes["202"] == before:
                odd.append(f"{fault}: nothing was refused")
        began = trio.current_time()
        await _ready(client)
        await _post(client, receipts, codes, first + 500, first + 510)
        accepted = trio.current_time() - began
        odd += [name for name, digest in receipts.items() if not await _done(client, name, digest)]
        recovered[fault] = accepted, trio.current_time() - began
    answers = ", ".join(f"{what} {n}" for what, n in sorted(codes.items()))
    return Outcome(summary=f"{len(receipts)} accepted; answers: {answers}", recovered=recovered, odd=tuple(odd))


async def _exhaust_the_log(data_dir: Path) -> bool:
    """Have the database begin new files of its log until one has no room, and it ends; false if it never does."""
    url = running_dsn(data_dir)
    assert url is not None
    for _ in range(_LOG_FILES_MAX):
        try:
            await trio.to_thread.run_sync(partial(ask, url, _NEXT_LOG_FILE, seconds=10.0))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if running_dsn(data_dir) is None or await _is_gone(url):
                return True
    return False


async def _is_gone(url: str) -> bool:
    try:
        await trio.to_thread.run_sync(partial(ask, url, "SELECT pg_logical_emit_message(true, 'x', 'x')", seconds=5.0))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return True
    return False


@contextmanager
def _full(ballast: Path) -> Iterator[None]:
    """Fill the file system to its last byte while the block runs."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * (1 << 16))
    try:
        yield
    finally:
        ballast.unlink()


async def _ready(client: httpx.AsyncClient) -> None:
    with trio.fail_after(_BACK_SECONDS):
        while True:
            with suppress(httpx.HTTPError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await trio.sleep(0.1)


async def _post(
    client: httpx.AsyncClient,
    receipts: dict[str, str],
    codes: Counter[str],
    first: int,
    last: int,
    *,
    until_refused: bool = False,
) -> None:
    """Post conversations of random text, which no compression makes small; note what is answered."""
    refused = 0
    for number in range(first, last):
        content: dict[str, Any] = body(f"disk-{number}", f"user-{number % 5}")
        content["conversation_log"][0]["content"] += _noise(number)
        answer = await client.post(END, json=content)
        code = "202" if answer.status_code == 202 else f"{answer.status_code} {answer.json()['code']}"
        codes[code] += 1
        if code == "202":
            receipts[f"disk-{number}"] = answer.json()["digest"]
        else:
            refused += 1
        if until_refused and refused >= 5:
            return


def _noise(number: int) -> str:
    return random.Random(number).randbytes(60_000).hex()


async def _done(client: httpx.AsyncClient, name: str, digest: str) -> bool:
    with trio.move_on_after(_BACK_SECONDS):
        while True:
            answer = await client.get(f"/v1/conversations/{name}", params={"wait": "5"})
            if answer.status_code == 404:
                return False
            if answer.status_code == 200 and answer.json()["state"] == "done":
                return bool(answer.json()["digest"] == digest)
            await trio.sleep(0.2)
    return False
