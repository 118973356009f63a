#!/usr/bin/env python3
"""Analyse conversations through a LiteLLM proxy in front of a fake model; show what `convo check` says of it.

    python3 -m venv .bench/litellm && .bench/litellm/bin/pip install 'litellm[proxy]'      # once; some 500 MB
    .venv/bin/python scripts/bench/litellm_proxy.py                                         # 100 conversations
    .venv/bin/python scripts/bench/litellm_proxy.py --program /elsewhere/bin/litellm --conversations 20

The proxy runs as its own program, on loopback, without a database. First `convo check` with the right settings, and
with a wrong key, a wrong model and a wrong address; then a real convo on its embedded PostgreSQL analyses the
conversations; then the walk-through of the handbook's page on parts is done, through the proxy.

Exit code 0: the checks say what is so, all conversations are done with both of the model's parts, none is a dead
letter, no attempt is spent beyond the one of each, and the walk-through shows what the page does. Also 0, with the
reason, where LiteLLM is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import trio
from msgspec import Struct
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench import servers  # noqa: E402
from tests.support import fakes, parts_walk  # noqa: E402
from tests.support.fakes import Call  # noqa: E402
from tests.support.running import environment, running  # noqa: E402

_PROGRAM = ROOT / ".bench/litellm/bin/litellm"
_INSTALL = "python3 -m venv .bench/litellm && .bench/litellm/bin/pip install 'litellm[proxy]'"
_KEY = "sk-of-the-proxy"
_MODEL = "through-litellm"
_START_SECONDS = 300.0  # its first start on two busy cores took 104 s
_DONE_SECONDS = 300.0
_WALK_CALLS = 2  # one for the conversation, one for the re-run
console = Console()


class NoAnswer(Exception):
    """The proxy did not start; the text is the end of what it said."""


class Proxied(Struct, frozen=True, kw_only=True):
    """What became of the conversations, and in how many seconds."""

    states: Counter[str]
    attempts: int
    with_questions: int
    happy: int
    seconds: float


def main() -> int:
    """Run it; return 0 where all is as it should be, or where there is no LiteLLM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--program", type=Path, default=_PROGRAM, help="the litellm to run")
    parser.add_argument("--conversations", type=int, default=100)
    asked = parser.parse_args()
    program = asked.program if asked.program.exists() else shutil.which("litellm")
    if program is None:
        print(f"skipped: LiteLLM is not installed at {asked.program}; install it with\n  {_INSTALL}")
        return 0
    try:
        return trio.run(_run, str(program), asked.conversations)
    except* NoAnswer as group:
        print(*group.exceptions, sep="\n", file=sys.stderr)
    return 1


async def _run(program: str, conversations: int) -> int:
    async with fakes.open_server(_complete) as model:
        with tempfile.TemporaryDirectory(prefix="convo-litellm-") as folder:
            work = partial(_work, program, Path(folder), model.url, conversations)
            checked, found, walked = await trio.to_thread.run_sync(work)
        good = _verdict(conversations, len(model.work) - _WALK_CALLS, found)
        return int(not (good and checked and walked))


def _complete(call: Call) -> object:
    """Answer as OpenAI does, with all fields: LiteLLM reads them."""
    answer = fakes.think(call)
    if call.method == "GET" or not isinstance(answer, dict):
        return answer
    (choice,) = answer["choices"]
    prompt = json.dumps(call.json()["messages"])
    if "Where is my parcel?" in prompt:
        choice = {**choice, "message": {"role": "assistant", "content": json.dumps(parts_walk.answer_of(prompt))}}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()), "model": "fake"}
    return {**about, "choices": [{"index": 0, **choice}], "usage": parts_walk.USAGE}


# --- the proxy


@contextmanager
def _proxy(program: str, folder: Path, model: str) -> Iterator[str]:
    """Run LiteLLM until the block ends; yield its URL."""
    port = servers.free_port()
    served = {"model": "openai/fake", "api_base": f"{model}/v1", "api_key": "sk-of-the-model"}
    settings = {
        "model_list": [{"model_name": _MODEL, "litellm_params": served}],
        "general_settings": {"master_key": _KEY},
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML, too
    arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    # It would load its list of prices from the internet.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    with (folder / "litellm.txt").open("wb") as said:
        process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**kept, **quiet}
        )
    try:
        began = time.monotonic()
        _await(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "litellm.txt")
        console.print(f"[dim]LiteLLM answers after {time.monotonic() - began:.1f} s")
        yield f"http://127.0.0.1:{port}"
    finally:
        servers.stop(process)


def _await(url: str, process: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise NoAnswer(f"LiteLLM does not answer:\n{said.read_text('utf-8', 'replace')[-2000:]}")


# --- convo


def _work(program: str, folder: Path, model: str, conversations: int) -> tuple[bool, Proxied, bool]:
    with _proxy(program, folder, model) as url:
        right = {"llm.base_url": url, "llm.model": _MODEL, "llm.api_key": _KEY}
        checked = [
            _check(folder, right, "it answers, and takes"),
            _check(folder, {**right, "llm.base_url": f"{url}/v1"}, "it answers, and takes"),
            _check(folder, {**right, "llm.api_key": "sk-wrong"}, "CONVO_LLM__API_KEY"),
            # Without a key LiteLLM has a bug of its own (500, "Internal Server Error"): that says nothing of keys.
            _check(folder, {**right, "llm.api_key": ""}, "answered 500"),
            _check(folder, {**right, "llm.model": "no-such-model"}, "llm.model"),
            _check(folder, {**right, "llm.base_url": f"{url}/nothing"}, "llm.base_url"),
        ]
        with (
            running(folder / "convo", "", {**right, "observe.log_level": "warning"}) as convo,
            httpx.Client(base_url=convo.url, timeout=30.0) as client,
        ):
            found = _analysed(client, conversations)
        (folder / "walk").mkdir()
        return all(checked), found, _walked(folder / "walk", right)


def _walked(folder: Path, right: Mapping[str, str]) -> bool:
    """Do the handbook's walk-through; print what it found, and return whether that is what the page shows."""
    before, after = parts_walk.walk(folder, "", right)
    shown = {name: {key: before["parts"][name][key] for key in part} for name, part in parts_walk.PARTS.items()}
    cost = {key: before["cost"][key] for key in parts_walk.COST}
    found = [
        ("answers", shown, parts_walk.PARTS),
        ("cost", cost, parts_walk.COST),
        ("points", before["score"]["breakdown"]["parts"], parts_walk.POINTS),
        ("points after the promotion", after["score"]["breakdown"]["parts"], parts_walk.POINTS_AFTER),
    ]
    for what, value, wanted in found:
        good = "ok   " if value == wanted else "[red]wrong[/]"
        console.print(f"{good} walk-through, {what}: {json.dumps(value)}", highlight=False)
    versions = [f"{name} {part['version']} by {part['by']}" for name, part in after["parts"].items()]
    console.print(f"[dim]{'; '.join(versions)}", highlight=False)
    return all(value == wanted for _, value, wanted in found)


def _check(folder: Path, settings: Mapping[str, str], wanted: str) -> bool:
    """Run `convo check`; print what it says of the model, and return whether that holds ``wanted``."""
    done = subprocess.run(
        [sys.executable, "-m", "convo", "check", "--json", "--data-dir", str(folder / "nobody")],
        env=environment(settings=settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    (found,) = [one for one in json.loads(done.stdout)["dependencies"] if one["name"] == "llm"]
    good = wanted in found["detail"] and found["good"] == wanted.startswith("it answers")
    shown = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
    console.print(
        f"{'ok   ' if good else '[red]wrong[/]'} check with {shown}\n      {found['detail']}", highlight=False
    )
    return good


def _analysed(client: httpx.Client, conversations: int) -> Proxied:
    names = [f"litellm-{number}" for number in range(conversations)]
    began = time.monotonic()
    for number, name in enumerate(names):
        said = [("USER", f"I like tea number {number}. Is the shop open?"), ("BOT", "It is.")]
        log = [{"character": who, "content": what} for who, what in said]
        body = {"conversation_id": name, "user_id": f"user-{number % 10}", "bot_id": "pika", "conversation_log": log}
        client.post("/v1/conversations/end", json=body).raise_for_status()
    ended: dict[str, dict[str, object]] = {}
    while len(ended) < conversations and time.monotonic() < began + _DONE_SECONDS:
        shown = [client.get(f"/v1/conversations/{name}").json() for name in names if name not in ended]
        ended |= {one["conversation_id"]: one for one in shown if one["state"] in ("done", "dead")}
        time.sleep(0.2)
    seconds = time.monotonic() - began
    found = [client.get(f"/v1/conversations/{name}").json() for name in names]
    return Proxied(
        states=Counter(one["state"] for one in found),
        attempts=sum(one["attempts"] for one in found),
        with_questions=sum("Is the shop open?" in json.dumps(one["parts"]) for one in found),
        happy=sum('"happy"' in json.dumps(one["parts"]) for one in found),
        seconds=seconds,
    )


def _verdict(conversations: int, calls: int, found: Proxied) -> bool:
    rows = [
        ("done", found.states["done"], conversations),
        ("dead letters", found.states["dead"], 0),
        ("with the model's question", found.with_questions, conversations),
        ("with the model's emotion", found.happy, conversations),
        ("attempts beyond the one of each", found.attempts - found.states["done"], 0),
    ]
    table = Table("what", "found", "wanted")
    for what, count, wanted in rows:
        table.add_row(what, f"{count:,}" if count == wanted else f"[red]{count:,}", f"{wanted:,}")
    console.print(table)
    console.print(f"{found.seconds:.1f} s from the first post to the last result; the model was called {calls:,} times")
    return all(count == wanted for _, count, wanted in rows)


if __name__ == "__main__":
    sys.exit(main())
