"""The yardstick of ``accept.py``: a Quart-Trio handler that reads the body and does nothing, on stock hypercorn.

.venv/bin/python scripts/bench/empty_app.py HOST PORT [KEEP_ALIVE_SECONDS GRACEFUL_SECONDS]
"""

from __future__ import annotations

import signal
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

_LARGE = b"x" * 2_000_000
app = QuartTrio(__name__)


@app.post("/v1/conversations/end")
async def end() -> Response:
    """Read the body, and answer as many bytes as a receipt has."""
    await request.get_data(cache=False)
    return Response(b"x" * 240, status=202, content_type="application/json")


@app.get("/large")
async def large() -> Response:
    """Answer 2 MB."""
    return Response(_LARGE)


async def main(*arguments: str) -> None:
    """Serve until SIGTERM, as hypercorn's own command does."""
    host, port, *seconds = arguments
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.accesslog = config.errorlog = None
    if seconds:
        config.keep_alive_timeout, config.graceful_timeout = map(float, seconds)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def stopping() -> None:
            async for _ in signals:
                return

        await serve(app, config, shutdown_trigger=stopping)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
