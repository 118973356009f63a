#!/usr/bin/env python3
"""Compare one call of a language model for a conversation's parts with two calls, on real conversations.

    python3 -m venv .bench/tokens && .bench/tokens/bin/pip install bpe-openai       # once: a tokenizer with its data
    .venv/bin/python scripts/bench/one_call.py FILE…       # bodies of POST /v1/conversations/end, one on a line
    .venv/bin/python scripts/bench/one_call.py FILE… --before d445a7e --conversations 200

A fake model that answers the same each time is asked by convo's own client: once for both parts, and once for each.
Shown are the calls, the tokens of all that was sent and answered (o200k_base), and those of the two calls as the
program of ``--before`` made them. Conversations are taken from the files, and then the first halves of them, until
there are enough. Exit code 0: the results are the same, and the tokens at least 45 % fewer than those of before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import h11
import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.analysis.llm import Model
from convo.conversation import decode, transcript
from convo.conversation.model import Conversation, Finding
from convo.conversation.owed import DeclaredPart
from convo.settings import LlmSettings

ROOT = Path(__file__).resolve().parents[2]
FEWER = 0.45
_PYTHON = ROOT / ".bench/tokens/bin/python"
_PARTS = (DeclaredPart(name="questions", who="llm"), DeclaredPart(name="emotion", who="llm"))
_EMOTIONS = ("interesting", "boring", "neutral", "angry", "happy", "sad")
_COUNT = """
import json, sys, bpe_openai
encoding = bpe_openai.get_encoding("o200k_base")
print(json.dumps([len(encoding.encode(json.loads(line))) for line in sys.stdin]))
"""
_AT = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> int:
    """Measure and print."""
    asked = _arguments()
    talks = conversations(asked.files, asked.conversations)
    texts: dict[str, list[str]] = {}
    results = []
    for name, several in (("one call", True), ("two calls", False)):
        sent: list[str] = []
        results.append(trio.run(partial(_found, talks, sent, several=several)))
        texts[name] = sent
    texts["two calls before"] = _before(asked.before, talks)
    tokens = {name: _tokens(asked.python, sent) for name, sent in texts.items()}
    table = Table("", "calls", "tokens", "a conversation", title=f"{len(talks)} conversations")
    for name, sent in texts.items():
        table.add_row(name, str(len(sent) // 2), f"{tokens[name]:,}", f"{tokens[name] / len(talks):,.0f}")
    fewer = 1 - tokens["one call"] / tokens["two calls before"]
    console = Console()
    console.print(table)
    console.print(f"the same results: {results[0] == results[1]}; {fewer:.1%} fewer tokens than before")
    return 0 if results[0] == results[1] and fewer >= FEWER else 1


def conversations(files: Sequence[Path], count: int) -> list[Conversation]:
    """Read conversations, and add the first halves of them until there are enough."""
    whole = [_talk(line) for file in files for line in file.read_text("utf-8").splitlines()]
    halves = [_half(one) for one in whole]
    found = [*whole, *halves][:count]
    if len(found) < count:
        sys.exit(f"the files hold {len(whole)} conversations: too few for {count}")
    return found


def _talk(line: str) -> Conversation:
    received = decode.decode(line.encode(), items_max=20_000)
    return Conversation(
        conversation_id=received.ended.conversation_id,
        user_id=received.ended.user_id,
        bot_id=received.ended.bot_id,
        digest=f"2:{received.ended.conversation_id}",
        turns=transcript.turns(received.sent.log, _AT, _AT),
    )


def _half(one: Conversation) -> Conversation:
    turns = one.turns[: max(2, len(one.turns) // 2)]
    return Conversation(
        conversation_id=f"{one.conversation_id}-half",
        user_id=one.user_id,
        bot_id=one.bot_id,
        digest=f"{one.digest}-half",
        turns=turns,
    )


# --- a fake model


def answer_to(text: str) -> str:
    """Answer by the record alone, the same each time: the user's lines that end in a question mark, and a feeling."""
    record = re.search(r"<conversation-([0-9a-f]{16})>\n(.*)\n</conversation-\1>", text, re.DOTALL)
    lines = [json.loads(line) for line in record[2].splitlines()] if record else []
    said = [one["text"] if "text" in one else one.get("user", "") for one in lines if one.get("speaker") != "bot"]
    answer: dict[str, Any] = {}
    if '"questions": ' in text:
        answer["questions"] = [one for one in said if one.rstrip().endswith("?")]
    if '"emotion": ' in text:
        hashed = hashlib.sha256("\n".join(said).encode()).digest()
        answer["emotion"] = _EMOTIONS[hashed[0] % len(_EMOTIONS)]
    return json.dumps(answer, ensure_ascii=False)


@asynccontextmanager
async def _fake_model(sent: list[str]) -> AsyncIterator[str]:
    async def serve(stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                await stream.send_all(_answered(connection, json.loads(body), sent))
                body = b""
                connection.start_next_cycle()
            elif not isinstance(event, h11.Request):
                return

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def _answered(connection: h11.Connection, asked: Any, sent: list[str]) -> bytes:
    text = "\n".join(said["content"] for said in asked["messages"])
    # A schema is sent with each call, too.
    content = answer_to(text)
    sent += [text + json.dumps(asked["response_format"], ensure_ascii=False), content]
    body = json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()
    head = h11.Response(status_code=200, headers=[("content-length", str(len(body)))])
    events = (head, h11.Data(data=body), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)


async def _found(talks: Sequence[Conversation], sent: list[str], *, several: bool) -> list[dict[str, Finding]]:
    found: list[dict[str, Finding]] = []
    async with _fake_model(sent) as url, Model(LlmSettings(base_url=url, model="fake", attempts=1)) as model:
        for talk in talks:
            one: dict[str, Finding] = {}
            for parts in [_PARTS] if several else [[part] for part in _PARTS]:
                await model.find(parts, talk, lambda name, _by, finding, one=one: one.update({name: finding}))  # type: ignore[misc]
            found.append(one)
    return found


# --- the two calls of before, and the count


def _before(revision: str, talks: Sequence[Conversation]) -> list[str]:
    """Return what the program of a revision sent for these conversations, and what it was answered."""
    command = ["git", "-C", str(ROOT), "show", f"{revision}:convo/analysis/prompt.py"]
    source = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    prompt = types.ModuleType("prompt_before")
    sys.modules["prompt_before"] = prompt
    exec(compile(source, "prompt_before", "exec"), prompt.__dict__)  # noqa: S102  (our own, of an earlier commit)
    sent = []
    for talk in filter(prompt.user_spoke, talks):
        record = prompt.record(talk, LlmSettings().text_chars_max)
        for ask in (prompt.QUESTIONS, prompt.EMOTION):
            form = {"type": "json_schema", "json_schema": {"name": ask.part, "strict": True, "schema": ask.schema}}
            text = f"{ask.system}\n{record}"
            sent += [text + json.dumps(form, ensure_ascii=False), answer_to(text)]
    return sent


def _tokens(python: Path, texts: Sequence[str]) -> int:
    lines = "\n".join(json.dumps(text) for text in texts)
    command = [str(python), "-c", _COUNT]
    done = subprocess.run(command, check=True, input=lines, capture_output=True, text=True)
    return sum(json.loads(done.stdout))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--before", default="d445a7e", help="a revision that asked for each part by a call of its own")
    parser.add_argument("--python", type=Path, default=_PYTHON, help="one with the package bpe-openai")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
