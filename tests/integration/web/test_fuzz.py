from __future__ import annotations

import itertools
import json
import re
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from convo.web.description import openapi
from convo.web.description.batch_views import MEDIA_OF_BATCHES
from tests.support.running import Running, ended, until_ended

END = "/v1/conversations/end"
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
_numbers = itertools.count(1)

# --- what the description allows, and what it does not

PATHS = openapi.document()["paths"]
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(openapi.document())))
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)}
SENT = {
    (label, mode)
    for label, operation in OPERATIONS.items()
    # Its answer has no end.
    if label != "GET /v1/live"
    for mode in GenerationMode
    # Without anything to send there is nothing to send wrongly.
    if mode is GenerationMode.POSITIVE or operation.body or operation.path_parameters or operation.query
}
load_all_checks()


@schemathesis.serializer(*MEDIA_OF_BATCHES)
def one_line(_: Any, value: Any) -> bytes:
    """Write a batch of one conversation."""
    return json.dumps(value).encode()


@schemathesis.deserializer(*MEDIA_OF_BATCHES)
def one_answer(_: Any, response: Any) -> Any:
    """Read the answer to it."""
    (line,) = response.content.splitlines()
    return json.loads(line)


NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
KEPT: list[Any] = CHECKS.get_by_names(NAMES)


def test_every_operation_is_tried() -> None:
    assert OPERATIONS.keys() == {f"{method.upper()} {path}" for path, methods in PATHS.items() for method in methods}
    assert len(KEPT) == len(NAMES)


# What is generated is the same in each run; ten of an operation take a third of a minute, thirty a whole one.
@pytest.mark.parametrize("examples", [10, pytest.param(30, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("label", "mode"),
    sorted(SENT, key=repr),
    ids=lambda value: value.value if isinstance(value, GenerationMode) else value,
)
def test_every_answer_is_one_that_is_described(convo: Running, label: str, mode: GenerationMode, examples: int) -> None:
    with requests.Session() as session:

        @settings(FIXED, max_examples=examples)
        @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
        def probe(case: Case[Any]) -> None:
            give_time(case)
            case.call_and_validate(base_url=convo.url, session=session, checks=KEPT)

        probe()


def give_time(case: Case[Any]) -> None:
    """Leave out a budget that is too short for any answer but 503: that one is not looked for here."""
    for name in [name for name in case.headers or () if name.lower() == "request-timeout"]:
        if re.fullmatch(r"[0-9.]+", str(case.headers[name])):
            del case.headers[name]


# --- logs of all shapes, and of none

# Lone surrogates among it: JSON can write them, and no text holds them.
SAID = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=st.characters(codec=None), max_size=10),
    st.sampled_from(["", " ", "\0", "why?", "I have a dog named Rex.", "Mình tên là Lan.", "?" * 300, "a" * 3000]),
)
ODD: SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), SAID, st.just([]), st.just({})
)
JUNK = st.recursive(
    ODD, lambda below: st.lists(below, max_size=4) | st.dictionaries(SAID, below, max_size=4), max_leaves=12
)
TIMES = st.one_of(
    st.datetimes(timezones=st.timezones() | st.none()).map(lambda at: at.isoformat()),
    st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2016-12-31T23:59:60Z", "now", "", "\0"]),
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image"])}, optional={"text": SAID, "x": JUNK}), max_size=3
)


VOICES = ("user", "assistant", "BOT", "PIKA", "END_USER", "HumanMessage", "gpt", "system", "tool", "narrator")


def items(name: str, words: str, said: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    who = {name: st.sampled_from(VOICES)}
    return st.fixed_dictionaries(
        who, optional={words: said, "timestamp": TIMES, "turn_id": st.integers() | SAID, "x": JUNK}
    )


ITEMS = st.one_of(
    items("character", "content", SAID),
    items("speaker", "text", SAID),
    items("role", "content", SAID | PARTS),
    items("from", "value", SAID),
    items("role", "parts", PARTS),
    items("sender", "message", SAID),
)
# Mostly good ones, so that most logs are read to their end.
LOGS = st.lists(ITEMS, max_size=12) | st.lists(ITEMS | JUNK, max_size=4) | JUNK
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "conversation_log": LOGS,
        "conversation_logs": LOGS,
        "start_time": TIMES,
        "end_time": TIMES,
        "bot_name": SAID | ODD,
        "bot_type": SAID,
        "agent_tag": SAID,
        "user_id": SAID.map(lambda text: f"user{text}"),
        "bot_id": SAID.map(lambda text: f"bot{text}"),
        "x": JUNK,
    },
)


def test_every_log_is_refused_or_gets_done(client: httpx.Client) -> None:
    accepted: dict[str, int] = {}

    @settings(FIXED, max_examples=200)
    @given(fields=FIELDS)
    def post(fields: dict[str, Any]) -> None:
        body = {**ended(f"fuzz-{next(_numbers)}", log=[]), **fields}
        answer = send(client, json.dumps(body).encode())
        if answer.status_code == 202:
            accepted[answer.headers["location"]] = answer.json()["turns"]

    post()
    assert len(accepted) > 50
    for link, turns in accepted.items():
        told = until_ended(client, link)
        assert (told["state"], told["turns"]) == ("done", turns), told["last_error"]
        assert len(client.get(f"{link}/log").json()["turns"]) == turns


def test_no_bytes_are_an_error_of_ours(client: httpx.Client) -> None:
    good = json.dumps(ended("fuzz-bytes")).encode()
    places = st.integers(0, len(good))

    @settings(FIXED, max_examples=300)
    @given(
        at=places, to=places, between=st.binary(max_size=8), encoding=st.sampled_from(["", "gzip", "deflate", "zstd"])
    )
    def post(at: int, to: int, between: bytes, encoding: str) -> None:
        send(client, good[:at] + between + good[to:], encoding)

    post()


def send(client: httpx.Client, body: bytes, encoding: str = "") -> httpx.Response:
    answer = client.post(END, content=body, headers={"Content-Type": "application/json", "Content-Encoding": encoding})
    assert answer.status_code in (202, 400, 409, 413, 415, 422), answer.text
    if answer.status_code != 202:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] in ("bad_request", "conflict", "too_large", "unsupported_media", "invalid")
    return answer
