"""The walk-through of the handbook's page on parts, as it stands there: its file, its service, its conversation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from convo.standard_webhooks import new_secret
from tests.support.ports import free_port
from tests.support.running import ROOT, running, until_ended

PAGE = (ROOT / "convo/handbook/parts.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


CONVERSATION, PARTS, POINTS = map(json.loads, blocks("json"))


class Model(BaseHTTPRequestHandler):
    """Answers what the page shows, whatever is asked; notes what was."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        answer = {"questions": ["Where is my parcel?"], "emotion": "happy"}
        answer |= {name: PARTS[name]["answer"] for name in ("rubric", "summary")}
        content = {"choices": [{"message": {"content": json.dumps(answer)}, "finish_reason": "stop"}]}
        self._answer(json.dumps(content).encode())

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


@contextmanager
def service(folder: Path, port: int, secret: str) -> Iterator[None]:
    (folder / "tier.py").write_text(blocks("python")[0], "utf-8")
    process = subprocess.Popen(
        [sys.executable, "tier.py", str(port)], cwd=folder, env={"SECRET": secret}, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                httpx.get(f"http://127.0.0.1:{port}")
            except httpx.TransportError:
                continue
            break
        yield
    finally:
        process.terminate()
        process.wait(10)


def asked_about(asked: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    return [one for one in asked if word in one["messages"][-1]["content"]]


@pytest.mark.parametrize("workers", ["1", "8"])
def test_the_walk_through_is_answered_as_the_page_shows(database: str, tmp_path: Path, workers: str) -> None:
    port, secret = free_port(), new_secret()
    file = tmp_path / "config.toml"
    file.write_text(blocks("toml")[0].replace("127.0.0.1:9000", f"127.0.0.1:{port}"), "utf-8")
    with model() as (url, asked), service(tmp_path, port, secret):
        settings = {"llm.base_url": url, "parts.tier.secret": secret, "jobs.workers": workers}
        arguments = ("--config", str(file))
        with (
            running(tmp_path / "data", database, settings, arguments) as convo,
            httpx.Client(base_url=convo.url, timeout=30) as client,
        ):
            receipt = client.post("/v1/conversations/end", json=CONVERSATION)
            view = until_ended(client, receipt.headers["location"])
    (call,) = asked_about(asked, "Where is my parcel?")
    assert list(call["response_format"]["json_schema"]["schema"]["properties"]) == [
        "questions",
        "emotion",
        "rubric",
        "summary",
    ]
    shown = {name: {key: view["parts"][name][key] for key in part} for name, part in PARTS.items()}
    assert shown == PARTS
    assert view["score"]["breakdown"]["parts"] == POINTS
    assert view["score"]["final"]
    assert {part["version"][:3] for name, part in view["parts"].items() if name in PARTS} == {"p1:"}
    assert view["parts"]["rubric"]["by"].startswith("gpt-5-mini/p1:")


def test_the_page_names_the_variables_of_its_secrets() -> None:
    commands = "\n".join(blocks("sh"))
    assert "CONVO_PARTS__TIER__SECRET" in commands
    assert "CONVO_LLM__API_KEY" in commands
