from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from convo.client import answers
from convo.web.description import samples
from convo.web.description.cost_views import ConversationCostView, PartCostView

SAMPLES: list[tuple[Any, Any]] = [
    (answers.Receipt, samples.RECEIPT),
    (answers.Conversation, samples.CONVERSATION),
    (answers.ConversationPage, samples.LIST),
    (answers.TurnPage, samples.LOG),
    (answers.Relationship, samples.RELATIONSHIP),
    (answers.BotPage, samples.RELATIONSHIP),
    (answers.MemoryPage, samples.MEMORIES),
]


# What a client has besides, and what it reads by a call of its own.
OWN, ELSEWHERE = {"replayed"}, {"bots", "next_cursor"}


@pytest.mark.parametrize(("kind", "sample"), SAMPLES, ids=lambda one: getattr(one, "__name__", ""))
def test_what_the_server_answers_is_what_the_client_reads(kind: Any, sample: Any) -> None:
    read, answered = set(kind.__struct_fields__), set(sample.__struct_fields__)
    assert read - OWN <= answered
    if "next_cursor" not in read:
        assert answered - ELSEWHERE <= read
    found = msgspec.json.decode(msgspec.json.encode(sample), type=kind)
    for name in read & answered - {"links", "score", "parts", "unread", "cost"}:
        mine, theirs = getattr(found, name), getattr(sample, name)
        if not isinstance(mine, tuple) and theirs is not msgspec.UNSET:
            assert mine == theirs, name


def test_what_a_conversation_has_cost_is_read_where_it_was_asked_for() -> None:
    part = PartCostView(
        part="emotion",
        by="m/1",
        calls=1,
        unknown_calls=0,
        unpriced_calls=1,
        tokens_in=700,
        tokens_out=20,
        tokens_cached=None,
        price=0.5,
    )
    cost = ConversationCostView(
        price=0.5, tokens_in=700, tokens_out=20, tokens_cached=None, complete=False, parts=(part,)
    )
    sent = msgspec.json.encode(msgspec.structs.replace(samples.CONVERSATION, cost=cost))
    found = msgspec.json.decode(sent, type=answers.Conversation).cost
    assert msgspec.to_builtins(found) == msgspec.to_builtins(cost)
    assert msgspec.json.decode(msgspec.json.encode(samples.CONVERSATION), type=answers.Conversation).cost is None


@pytest.mark.parametrize(("kind", "sample"), SAMPLES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_field_of_a_newer_server_is_skipped(kind: Any, sample: object) -> None:
    sent = msgspec.json.decode(msgspec.json.encode(sample)) | {"new_in_2031": [1]}
    msgspec.json.decode(msgspec.json.encode(sent), type=kind)


def test_importing_it_imports_nothing_of_the_server() -> None:
    # What httpx imports by itself is its own affair: it is imported first.
    program = (
        "import sys; import anyio.from_thread, httpx, msgspec; before = set(sys.modules); import convo.client;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert added == {
        "convo",
        "convo.client",
        *(f"convo.client.{name}" for name in ("answers", "async_client", "faults", "lines", "retrying", "sync_client")),
    }
