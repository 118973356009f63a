"""The remote services of ``../shared/cases``: HTTP servers that answer as a case's ``fake_model`` or ``fake_memory``.

``async with open_case_server(case) as server`` serves one of them; ``server.mend()`` makes it healthy from then on.
When a case answers badly stands in its ``when``, a sentence; ``rule_of`` reads it. A sentence that is not understood
counts as "always", and ``CaseServer.misread`` holds it.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from msgspec import Struct

from tests.support.fakes import Call, Exchange, FakeServer, Remembering, completion, healthy, open_server

Case = Mapping[str, Any]
_FOUND = '{"emotion":"happy"}'
_FORM = re.compile(r'\{\s*"questions"\s*:\s*\[[^\]]*\]\s*\}')
_EVENT = re.compile(r"/events?/")
_COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10}


class Seen(Struct, frozen=True, kw_only=True):
    """What a rule decides on: a call, how many of its kind came before it, and seconds since the first call."""

    call: Call
    before: int
    seconds: float


Rule = Callable[[Seen], bool]


class CaseServer:
    """A server that answers as its case says, and remembers what it was asked and when."""

    def __init__(self, case: Case, server: FakeServer, answer: object) -> None:
        kind = "fake_model" if "fake_model" in case else "fake_memory"
        self.url = server.url
        self.server = server
        self._fake: Case = case[kind]
        self._answer = answer
        self._rule, self.misread = rule_of(self._fake.get("when", ""))
        self._counted = 0
        self._first: float | None = None
        self._mended = False

    @property
    def posts(self) -> list[Call]:
        """All POSTs so far."""
        return [call for call in self.server.calls if call.method == "POST"]

    def mend(self) -> None:
        """Answer well from now on."""
        self._mended = True

    async def meet(self, exchange: Exchange) -> None:
        """Answer one call: badly where the rule says so."""
        call = exchange.call
        if call.method != "POST" or self._mended:
            await healthy(exchange)
            return
        if self._first is None:
            self._first = trio.current_time()
        seen = Seen(call=call, before=self._counted, seconds=trio.current_time() - self._first)
        if not self._rule(seen):
            await healthy(exchange)
            return
        self._counted += 1
        headers = {name.lower(): value for name, value in self._fake.get("headers", {}).items()}
        body = body_of(self._answer, call)
        await exchange.answer(int(self._fake.get("status", 200)), encoded(body, headers), headers)


def rule_of(when: str) -> tuple[Rule, str]:
    """Read when a case answers badly; return the rule, and the sentence where it was not understood."""
    text = " ".join(when.split())
    for pattern, make in _RULES:
        if found := re.search(pattern, text):
            return make(found), ""
    return _always, text


def _always(_: Seen) -> bool:
    return True


def _posted_to(found: re.Match[str]) -> Rule:
    return lambda seen: seen.call.path.partition("?")[0] == found[1].rstrip(",;")


def _asking(found: re.Match[str]) -> Rule:
    return lambda seen: found[1] in asked_for(seen.call)


def _having(found: re.Match[str]) -> Rule:
    field, usual = found[1], found[2]

    def rule(seen: Seen) -> bool:
        asked = _json(seen.call)
        if field in ("system", "developer"):
            return any(said.get("role") == field for said in asked.get("messages", []))
        return field in asked and (usual is None or float(asked[field]) != float(usual))

    return rule


def _first_of(found: re.Match[str]) -> Rule:
    count = _COUNTS.get(found[1]) or (int(found[1]) if found[1].isdigit() else 1)
    return lambda seen: seen.before < count and found[2] in (None, format_of(seen.call))


def _lasting(found: re.Match[str]) -> Rule:
    return lambda seen: seen.seconds < float(found[1])


# In order: the first that fits.
_RULES: tuple[tuple[str, Callable[[re.Match[str]], Rule]], ...] = (
    (r"every POST /v1/chat/completions", lambda _: _always),
    (r"every POST (/\S+)", _posted_to),
    (r"^the (questions|emotion) call", _asking),
    (r"^while the request has (?:an? )?`?(\w+)`?(?: (?:other than|but) ([\d.]+))?", _having),
    (r"^(?:for )?the first (\w+)(?: (json_schema|json_object))?", _first_of),
    (r"^for ([\d.]+) s\b", _lasting),
    (r"^(?:every|each|all|always)\b|^$", lambda _: _always),
)


def format_of(call: Call) -> str:
    """Return the response format that a call asks for; empty for none."""
    return str((_json(call).get("response_format") or {}).get("type", ""))


def asked_for(call: Call) -> set[str]:
    """Return what a call to a model asks for: "questions", "emotion", both, or nothing that is known."""
    said = _said(call)
    return {name for name in ("questions", "emotion") if f'"{name}": ' in said}


def body_of(answer: object, call: Call) -> bytes:
    """Write a case's answer to one call: where an emotion is asked for, in the same form, with one in it."""
    if isinstance(answer, str):
        text = answer
    else:
        asked = asked_for(call)
        alone = "questions" not in asked
        text = json.dumps(_with_emotion(answer, alone) if "emotion" in asked else answer, ensure_ascii=False)
    return text.encode()


def _with_emotion(value: Any, alone: bool) -> Any:  # noqa: FBT001  (passed on)
    if isinstance(value, str):
        return _FORM.sub(lambda found: _FOUND if alone else f"{found[0].rstrip('} ')},{_FOUND[1:]}", value)
    if isinstance(value, list):
        return [_with_emotion(below, alone) for below in value]
    if isinstance(value, dict):
        return {key: _with_emotion(below, alone) for key, below in value.items()}
    return value


def encoded(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Compress a body as its headers say."""
    match headers.get("content-encoding", ""):
        case "gzip":
            return gzip.compress(body)
        case "deflate":
            return zlib.compress(body)
        case _:
            return body


# --- what a healthy one answers


def think(call: Call) -> object:
    """Answer as a model does: the user's lines with a question mark, an emotion, or a word to whatever else is asked.

    It finds the record wherever it stands: in one message or in several, under any role.
    """
    if call.method == "GET":
        return {"object": "list", "data": [{"id": "x", "object": "model"}]}
    said, asked = _said(call), asked_for(call)
    if not asked:
        return completion('{"ok":true}')
    lines = [_line(line) for line in said.splitlines() if line.startswith("{")]
    texts = [line["user"] for line in lines if isinstance(line.get("user"), str)]
    found: dict[str, Any] = {"questions": [text for text in texts if text.rstrip().endswith("?")], "emotion": "happy"}
    return completion(json.dumps({name: value for name, value in found.items() if name in asked}))


class Mem0:
    """Answers as a hosted mem0 does: it takes memories, and is asked later what became of an event."""

    def __init__(self) -> None:
        self._remembering = Remembering()

    def __call__(self, call: Call) -> object:
        """Answer one call."""
        if call.method == "GET" and _EVENT.search(call.path):
            fact = {"id": "m1", "event": "ADD", "data": {"memory": "Likes Fridays"}}
            return {"id": "e-1", "event_id": "e-1", "status": "SUCCEEDED", "results": [fact]}
        return self._remembering(call)


def _said(call: Call) -> str:
    texts: list[str] = []
    for message in _json(call).get("messages", []):
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        texts += [part if isinstance(part, str) else str((part or {}).get("text", "")) for part in parts]
    return "\n".join(texts)


def _line(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _json(call: Call) -> dict[str, Any]:
    return _line(call.body.decode("utf-8", "replace"))


@asynccontextmanager
async def open_case_server(case: Case, answer: object = None) -> AsyncIterator[CaseServer]:
    """Serve what a case needs; ``answer`` takes the place of the answer that stands in it."""
    kind = "fake_model" if "fake_model" in case else "fake_memory"
    usual = think if kind == "fake_model" else Mem0()
    async with open_server(usual) as server:
        served = CaseServer(case, server, case[kind].get("body", "") if answer is None else answer)
        server.always = served.meet
        yield served
