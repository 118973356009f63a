"""The yardstick of ``accept.py``: a Quart-Trio handler that reads the body and does nothing, on stock hypercorn."""

from __future__ import annotations

import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

app = QuartTrio(__name__)


@app.post("/v1/conversations/end")
async def end() -> Response:
    """Read the body, and answer as many bytes as a receipt has."""
    await request.get_data(cache=False)
    return Response(b"x" * 240, status=202, content_type="application/json")


if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.accesslog = config.errorlog = None
    trio.run(serve, app, config)
