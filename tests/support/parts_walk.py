"""The walk-through of the handbook's page on parts, as it stands there: its file, its service, its conversation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from convo.standard_webhooks import new_secret
from tests.support.ports import free_port
from tests.support.running import ROOT, environment, running, until_ended

PAGE = (ROOT / "convo/handbook/parts.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Return the page's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


CONVERSATION, PARTS, POINTS, COST, POINTS_AFTER = map(json.loads, blocks("json"))
USAGE = {
    "prompt_tokens": COST["tokens_in"],
    "completion_tokens": COST["tokens_out"],
    "total_tokens": COST["tokens_in"] + COST["tokens_out"],
}


def answer_of(prompt: str) -> dict[str, Any]:
    """Return what the page's model answers: another grade where it is asked by the declaration that comes second."""
    found = {name: PARTS[name]["answer"] for name in ("rubric", "summary")}
    if "or knows when" in prompt:
        solved = {**found["rubric"]["solved"], "grade": POINTS_AFTER["rubric"]["counted"]}
        found["rubric"] = {**found["rubric"], "solved": solved}
    return {"questions": ["Where is my parcel?"], "emotion": "happy", **found}


@contextmanager
def _service(folder: Path, port: int, secret: str) -> Iterator[None]:
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


def walk(folder: Path, database: str, settings: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do what the page says, commands included; return the conversation as it is shown before and after.

    ``settings``: where the model is. ``database``: empty for an embedded one.
    """
    port, secret = free_port(), new_secret()
    file, data = folder / "config.toml", folder / "data"
    first = blocks("toml")[0].replace("127.0.0.1:9000", f"127.0.0.1:{port}")
    second, count = re.subn(r"(?m)^criteria = .*$", blocks("toml")[1].strip(), first)
    assert count == 1
    settings = {"parts.tier.secret": secret, **settings}
    path = f"/v1/conversations/{CONVERSATION['conversation_id']}?cost=1"
    with _service(folder, port, secret):
        file.write_text(first, "utf-8")
        with (
            running(data, database, settings, ["--config", str(file)]) as convo,
            httpx.Client(base_url=convo.url, timeout=30) as client,
        ):
            receipt = client.post("/v1/conversations/end", json=CONVERSATION)
            until_ended(client, receipt.headers["location"])
            before = client.get(path).json()
        file.write_text(second, "utf-8")
        with (
            running(data, database, settings, ["--config", str(file)]) as convo,
            httpx.Client(base_url=convo.url, timeout=30) as client,
        ):
            for line in blocks("sh")[1].splitlines():
                words = line.split()[1:]
                subprocess.run(
                    [sys.executable, "-m", "convo", *words, "--config", str(file), "--data-dir", str(data)],
                    env=environment(database, settings),
                    cwd=ROOT,
                    check=True,
                    timeout=120,
                )
            after = client.get(path).json()
    return before, after
