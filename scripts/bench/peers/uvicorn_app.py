"""uvicorn as it comes with ``uvicorn[standard]``, with a FastAPI handler that stores nothing; for ``hostile.py``."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request, Response

_LARGE = b"x" * 2_000_000

app = FastAPI()


@app.post("/v1/conversations/end", status_code=202)
async def end(request: Request) -> Response:
    """Read the body, and answer as many bytes as a receipt has."""
    await request.body()
    return Response(b"x" * 240, status_code=202, media_type="application/json")


@app.get("/large")
async def large() -> Response:
    """Answer 2 MB."""
    return Response(_LARGE)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host=sys.argv[2],
        port=int(sys.argv[1]),
        access_log=False,
        log_level="critical",
        timeout_keep_alive=int(sys.argv[3]),
        timeout_graceful_shutdown=int(sys.argv[4]),
    )
