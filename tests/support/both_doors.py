"""A convo behind both doors: our own connection, and the framework alone under stock hypercorn on a second port.

python -m tests.support.both_doors STOCK_PORT serve ...
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_stock

from convo import service
from convo.commands import cli
from convo.http import server
from tests.support.ports import free_port
from tests.support.running import loaded_settings


def both_doors(stock_port: int) -> Callable[..., Awaitable[None]]:
    """Return what serves in the place of ``service.serve_http``."""

    async def both(
        listening: Sequence[socket.socket],
        settings: Any,
        app: Any,
        called: Any,
        stopping: Callable[[], Awaitable[None]],
    ) -> None:
        config = Config()
        config.bind = [f"127.0.0.1:{stock_port}"]
        config.accesslog = config.errorlog = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_stock(app, config, shutdown_trigger=stopping))
            await server.serve_http(listening, settings, app, called, stopping)

    return both


@asynccontextmanager
async def at_both(
    database: str, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, str] | None = None
) -> AsyncIterator[dict[str, str]]:
    """Serve at both doors; yield their URLs."""
    port, stock_port = free_port(), free_port()
    monkeypatch.setattr(service, "serve_http", both_doors(stock_port))
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        given = {"observe.log_level": "error", "jobs.workers": "0", **(settings or {})}
        nursery.start_soon(service.serve, loaded_settings(folder, database, given, port=port), lambda _: ready.set())
        await ready.wait()
        try:
            yield {"ours": f"http://127.0.0.1:{port}", "stock": f"http://127.0.0.1:{stock_port}"}
        finally:
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    setattr(service, "serve_http", both_doors(int(sys.argv[1])))  # noqa: B010  (mypy refuses to assign an import)
    sys.exit(cli.main(sys.argv[2:]))
