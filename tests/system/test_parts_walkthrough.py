"""The walk-through of the handbook's page on parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.parts_walk import COST, PARTS, POINTS, POINTS_AFTER, USAGE, answer_of, blocks, walk


class Model(BaseHTTPRequestHandler):
    """Answers what the page shows, whatever is asked; notes what was."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        answer = answer_of(json.dumps(body["messages"]))
        message = {"content": json.dumps(answer)}
        self._answer(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE}).encode())

    def do_GET(self) -> None:
        self._answer(b'{"data": []}')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def model() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Noting", (Model,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked_about(asked: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    return [one for one in asked if word in one["messages"][-1]["content"]]


def test_the_walk_through_is_answered_as_the_page_shows(database: str, tmp_path: Path) -> None:
    with model() as (url, asked):
        before, after = walk(tmp_path, database, {"llm.base_url": url})
    first, again = asked_about(asked, "Where is my parcel?")
    assert list(first["response_format"]["json_schema"]["schema"]["properties"]) == [
        "questions",
        "emotion",
        "rubric",
        "summary",
    ]
    shown = {name: {key: before["parts"][name][key] for key in part} for name, part in PARTS.items()}
    assert shown == PARTS
    assert before["score"]["breakdown"]["parts"] == POINTS
    assert before["score"]["final"]
    assert {key: before["cost"][key] for key in COST} == COST
    assert {part["version"][:3] for name, part in before["parts"].items() if name in PARTS} == {"p1:"}
    assert before["parts"]["rubric"]["by"].startswith("gpt-5-mini/p1:")
    # Only what was declared anew is asked again.
    assert "summary" not in again["response_format"]["json_schema"]["schema"]["properties"]
    assert after["parts"]["rubric"]["version"] != before["parts"]["rubric"]["version"]
    assert after["parts"]["summary"] == before["parts"]["summary"]
    assert after["score"]["breakdown"]["parts"] == POINTS_AFTER
    moved = POINTS_AFTER["rubric"]["points"] - POINTS["rubric"]["points"]
    assert after["score"]["value"] - before["score"]["value"] == moved


def test_the_page_names_the_variables_of_its_secrets() -> None:
    commands = "\n".join(blocks("sh"))
    assert "CONVO_PARTS__TIER__SECRET" in commands
    assert "CONVO_LLM__API_KEY" in commands
