"""The servers that hostile clients attack: convo with short deadlines, and an empty application on stock servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
from msgspec import Struct, structs

from convo.settings import ConnectionSettings
from scripts.bench import databases, load, servers
from scripts.bench.servers import Server

# Short deadlines, so that a row takes seconds. Those that this convo does not have are left out.
CONNECTION = {
    "head_seconds": 1.5,
    "body_seconds": 2.5,
    "write_seconds": 1.5,
    "linger_seconds": 1.0,
    "keep_alive_seconds": 3.0,
}
OTHERS = {
    "database.acquire_seconds": "0.5",
    "database.statement_seconds": "1.0",
    "web.request_seconds": "4.0",
    "ladder.gateway_seconds": "6.0",
    "ladder.gateway_keep_alive_seconds": "2.0",
    "shutdown.intake_seconds": "4.0",
    "shutdown.workers_seconds": "1.0",
    "shutdown.settle_seconds": "1.0",
    "jobs.workers": "0",
    "auth.open_to_network": "true",
}
_KEEP_ALIVE_SECONDS, _GRACEFUL_SECONDS = 3, 4
# What the three promise between SIGTERM and the end, and a second for the rest.
GRACE_SECONDS = 7.0
STOP_PATIENCE_SECONDS = 15.0
# Good clients, and how many requests a second they make together.
GOOD_CLIENTS, GOOD_RATE = 4, 40.0
_LARGE_ID = "large-conversation"


class Target(Struct, frozen=True, kw_only=True):
    """A kind of server: how one is started at an address, and the path of a large answer."""

    start: Callable[[Path, str, str], contextlib.AbstractContextManager[Server]]
    large: str


def _short_settings() -> dict[str, str]:
    known = {field.name for field in structs.fields(ConnectionSettings)}
    short = {f"connection.{name}": str(seconds) for name, seconds in CONNECTION.items() if name in known}
    return OTHERS | short


@contextlib.contextmanager
def _convo(folder: Path, host: str, postgres: str) -> Iterator[Server]:
    with (
        databases.database(postgres, "hostile") as url,
        servers.convo(folder, url, _short_settings(), host=host) as server,
    ):
        body = f'{{"conversation_id": "{_LARGE_ID}", {load.real_tails(1_500_000)[0]}'
        headers = {"Content-Type": "application/json"}
        httpx.post(f"{server.url}/v1/conversations/end", content=body, headers=headers, timeout=30).raise_for_status()
        yield server


def _hypercorn(folder: Path, host: str, _: str) -> contextlib.AbstractContextManager[Server]:
    return servers.own("empty_app.py", folder, str(_KEEP_ALIVE_SECONDS), str(_GRACEFUL_SECONDS), host=host)


def _uvicorn(folder: Path, host: str, _: str) -> contextlib.AbstractContextManager[Server]:
    seconds = (str(_KEEP_ALIVE_SECONDS), str(_GRACEFUL_SECONDS))
    return servers.peer("uvicorn_app", folder, host, *seconds, host=host)


TARGETS: Mapping[str, Target] = {
    "convo": Target(start=_convo, large=f"/v1/conversations/{_LARGE_ID}/log"),
    "hypercorn": Target(start=_hypercorn, large="/large"),
    "uvicorn": Target(start=_uvicorn, large="/large"),
}


def good_plan(server: Server, host: str, seconds: float) -> load.Plan:
    """Return what good clients do for so many seconds."""
    return load.Plan(
        url=f"{server.url}/v1/conversations/end",
        tails=load.real_tails(4_000),
        connections=GOOD_CLIENTS,
        seconds=seconds,
        name=f"good-{server.pid}-{seconds:g}",
        rate=GOOD_RATE,
        # From an address of their own: what is held against the hostile ones' is not held against theirs.
        source="127.0.0.2" if host.startswith("127.") else host,
    )
