"""A collector of traces for ``traces.py``: takes what is posted; ``mute`` never answers it, ``failing`` answers 503.

collector.py HOST PORT [mute|failing]
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MUTE, FAILING = sys.argv[3:] == ["mute"], sys.argv[3:] == ["failing"]


class Collecting(BaseHTTPRequestHandler):
    """Answers GET, by which one sees that it is there, and posts unless it is mute."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer that it is there."""
        self._answer()

    def do_POST(self) -> None:
        """Take spans, or do not."""
        self.rfile.read(int(self.headers["content-length"]))
        if MUTE:
            threading.Event().wait()
        self._answer(503 if FAILING else 200)

    def _answer(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: it would take the processor from what is measured."""


if __name__ == "__main__":
    server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Collecting)
    server.daemon_threads = True
    server.serve_forever()
