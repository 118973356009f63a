"""No text costs more than its length: ``analysis/local`` and ``conversation`` against texts made to cost much.

Operations are counted at n and at 8 n characters. A new public function in these packages needs a row here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib import import_module
from types import FunctionType
from typing import Any, get_args

import msgspec
import pytest
from msgspec import Raw

from convo.analysis import local
from convo.analysis.local import (
    asked,
    english,
    forms,
    interrogative,
    mood,
    slices,
    stated,
    tongues,
    utterances,
    vietnamese,
    words,
)
from convo.conversation import (
    audio,
    composing,
    decode,
    digest,
    found_log,
    identity,
    item,
    item_count,
    json_schema,
    log_prefix,
    model,
    nesting,
    owed,
    score,
    sent,
    tenant,
    times,
    transcript,
    voices,
)
from tests.support.making import ended
from tests.support.operations import Operations, WatchedBytes, WatchedText, count_normalizing
from tests.support.pathological import texts
from tests.support.regex_steps import Steps
from tests.support.saying import user_says
from tests.support.source_tree import modules

PACKAGES = ("convo.analysis.local", "convo.conversation")
LENGTH, TIMES = 160, 8
AT = datetime(2026, 3, 2, tzinfo=UTC)
# Eight times as much for eight times the text, and something for bounds that only the longer one reaches.
GROWTH, SLACK = 10, 1_500

Call = Callable[[str], object]


def said(text: str, language: words.Language = "english") -> words.UserTurn:
    return words.UserTurn(text=text, language=language)


def for_languages(function: Callable[[str, words.Language], object]) -> list[Call]:
    return [partial(_in_language, function, language) for language in get_args(words.Language)]


def _in_language(function: Callable[[str, words.Language], object], language: words.Language, text: str) -> object:
    return function(text, language)


def cuts() -> Iterator[Call]:
    for tongue in (english.ENGLISH, vietnamese.BARE):
        for trim in get_args(forms.Trim):
            if trim != "age":  # Its capture has three digits at most.
                yield partial(forms.cut, trim=trim, tongue=tongue)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def log_of(text: str) -> bytes:
    """Return a log of one text that is longer than the shortest recording, also where ``text`` is short."""
    return _json([{"role": "user", "content": text * 40}])


def bodies(text: str) -> Iterator[bytes]:
    """Yield bodies of about the length of a text, which stands in every place of them."""
    item = {"role": "user", "content": "a"}
    many = len(text) // 30
    short = text[:8]
    logs: tuple[Any, ...] = (
        [{"role": "user", "content": text}],
        [{"role": text, "content": text, "timestamp": text, "name": text}],
        [{text: text, "content": [{"type": text, "text": text}]}],
        [item] * many,
        [{"role": short, "content": short, "timestamp": short}] * many,
        [{"role": "user", "content": [{"type": "text", "text": short}] * many}],
        [{"role": "user", "content": "a", **{f"{short}{number}": None for number in range(many)}}],
        [{"role": "user", "audio": {"data": text}}, *[f"audio-{number}-" for number in range(many)]],
        [[short] * many, {"role": "user", "content": {}}],
    )
    for log in logs:
        yield _json({**ended(), "conversation_log": log})
        yield _json({**ended(), "conversation_log": None, "messages": log})
    nodes = {f"{number}": {"parent": f"{number - 1}", "children": [f"{number + 1}"]} for number in range(many)}
    yield _json({**ended(), "conversation_log": None, "mapping": nodes})
    yield _json({**ended(), "conversation_log": None, text: {f"{number}": [short] for number in range(many)}})
    yield text.encode(errors="replace")


def of_bodies(function: Callable[[bytes], object]) -> Call:
    def call(text: str) -> None:
        for body in bodies(text):
            try:
                function(body)
            except Exception:  # noqa: BLE001  (a refusal costs, too)
                continue

    return call


def of_items(function: Callable[[object], object]) -> Call:
    def call(text: str) -> None:
        for body in bodies(text):
            for value in json.loads(body).values() if body[:1] == b"{" else ():
                function(value)
                for below in value if isinstance(value, list) else ():
                    function(below)

    return call


def received(body: bytes) -> decode.Received:
    return decode.decode(body, items_max=20_000)


def fields(body: bytes) -> dict[str, Raw]:
    return msgspec.json.decode(body, type=dict[str, Raw])


def compared(body: bytes) -> None:
    found = received(body)
    for version in "1", "2":
        digest.same(f"{version}:", digest.digest(found), found.ended)


_TEXT = {"type": "string", "maxLength": 1 << 30}
_LIST = {"type": "array", "items": _TEXT, "maxItems": 1 << 30}
CALLS: dict[Callable[..., object], list[Call]] = {
    asked.questions: [lambda text: asked.questions(user_says(text))],
    asked.raised: for_languages(lambda text, language: asked.raised(said(text, language))),
    asked.asks: for_languages(asked.asks),
    forms.cut: list(cuts()),
    interrogative.in_english: [interrogative.in_english],
    interrogative.in_vietnamese: [partial(interrogative.in_vietnamese, bare=bare) for bare in (False, True)],
    mood.emotion: [lambda text: mood.emotion(user_says(text))],
    mood.affects: for_languages(lambda text, tongue: mood.affects(said(text, tongue), mood._parts(text))),
    stated.memories: [lambda text: stated.memories(user_says(text))],
    stated.stated: for_languages(lambda text, language: list(stated.stated(said(text, language)))),
    words.user_turns: [
        lambda text: words.user_turns(user_says(text)),
        lambda text: words.user_turns(user_says(*text[::4])),
    ],
    words.sentences: [lambda text: list(words.sentences(text))],
    **{
        function: [function]
        for function in (words.clean, words.clauses, words.words, words.unquoted, words.fold, words.lower, words.key)
    },
    words.language: [words.language],
    words.is_of_known_language: [words.is_of_known_language],
    tongues.is_known: [lambda text: tongues.is_known(words.user_turns(user_says(text)))],
    utterances.texts_of_user: [
        lambda text: list(utterances.texts_of_user(user_says(text).turns)),
        lambda text: list(utterances.texts_of_user(user_says(*text[::4]).turns)),
    ],
    composing.compose: [composing.compose],
    audio.omit_audio: [of_bodies(audio.omit_audio), lambda text: audio.omit_audio(log_of(text))],
    audio.bytes_without_base64: [lambda text: audio.bytes_without_base64(log_of(text))],
    decode.decode: [of_bodies(received), of_bodies(partial(decode.decode, kept_bytes_max=100, items_max=10))],
    item_count.refuse_more_items: [of_bodies(partial(item_count.refuse_more_items, items_max=10))],
    nesting.is_nested_deeper: [of_bodies(partial(nesting.is_nested_deeper, levels=2))],
    digest.digest: [of_bodies(lambda body: digest.digest(received(body)))],
    digest.same: [of_bodies(compared)],
    log_prefix.items_digest: [of_bodies(lambda body: log_prefix.items_digest(received(body).sent))],
    log_prefix.begins_with: [of_bodies(lambda body: log_prefix.begins_with(received(body).sent.log, 3, b"\1"))],
    found_log.find_log: [of_bodies(lambda body: found_log.find_log(fields(body)))],
    found_log.refuse_vcon: [of_bodies(lambda body: found_log.refuse_vcon(fields(body)))],
    item.read_item: [of_items(item.read_item)],
    item.read_classic: [of_items(item.read_classic)],
    item.read_any: [of_items(item.read_any)],
    item.is_turn_like: [of_items(item.is_turn_like)],
    item.hints_at_a_turn: [of_items(item.hints_at_a_turn)],
    model.bounded_key: [model.bounded_key],
    json_schema.fits: [lambda text: json_schema.fits(list(text), _LIST), lambda text: json_schema.fits(text, _TEXT)],
    json_schema.pruned: [lambda text: json_schema.pruned(list(text), _LIST)],
    score.count_exchanges: [lambda text: score.count_exchanges(["user" if c == text[0] else "bot" for c in text])],
    sent.read_log: [of_bodies(lambda body: sent.read_log(fields(body)["conversation_log"]))],
    sent.read_json: [of_bodies(sent.read_json)],
    sent.write_json: [of_bodies(lambda body: sent.write_json(sent.read_json(body)))],
    sent.items_of: [of_items(sent.items_of)],
    sent.is_too_deep: [of_items(sent.is_too_deep)],
    times.moment: [times.moment, lambda text: times.moment(Raw(text.encode()))],
    times.instant: [times.instant, lambda text: times.instant(f"2026-03-02T08:00:00.{text}")],
    transcript.check_log: [of_bodies(lambda body: transcript.check_log(received(body)))],
    transcript.span: [of_bodies(lambda body: transcript.span(received(body).ended))],
    transcript.turns: [of_bodies(lambda body: transcript.turns(received(body).sent.log, AT, AT + timedelta(hours=1)))],
    transcript.some_turns: [
        of_bodies(lambda body: transcript.some_turns(received(body).sent.log, AT, AT + timedelta(hours=1), begin=1))
    ],
    **{
        function: [function]
        for function in (voices.bare, voices.voice_of, voices.is_silent_type, voices.is_call, voices.is_silent_event)
    },
    voices.is_audio_part: [voices.is_audio_part],
    voices.is_silent_part: [lambda text: voices.is_silent_part(text, text)],
}
READ_NO_TEXT = {
    *(
        forms.form,
        forms.any_of,
        forms.alternatives,
        words.several,
        item_count.too_many_items,
        score.weights_version,
        score.share,
    ),
    # An id has 255 characters, a digest 67.
    *(identity.id_hash, identity.revision_hash, digest.compact, digest.expand, tenant.hash_of_own),
    *(tenant.tenant_of, tenant.turn_prefix, tenant.turn_bounds),
    # It passes turns on.
    slices.each,
    # Settings, and what is stored of them.
    *(owed.owed_of, owed.encode_parts, owed.decode_parts, owed.version_of, owed.result_version),
    *(json_schema.schema_faults, json_schema.strict),
    *(score.emotion_share, score.cap_share, score.within_bounds, score.level, nesting.too_deep),
}


def public_functions() -> set[Callable[..., object]]:
    return {
        value
        for module in modules()
        if module.startswith(PACKAGES)
        for name, value in vars(import_module(module)).items()
        if isinstance(value, FunctionType) and value.__module__ == module and not name.startswith("_")
    }


def test_every_public_function_has_a_row() -> None:
    assert public_functions() == CALLS.keys() | READ_NO_TEXT
    assert not CALLS.keys() & READ_NO_TEXT
    assert set(local.__all__) - {"BY", "between_turns"} <= {function.__name__ for function in CALLS}


# In a short text of no known language no emotion is judged: only from so many times ``LENGTH`` on is all of it done.
_FULL_WORK_FROM: dict[Callable[..., object], int] = {mood.emotion: 8}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: f"{function.__module__[6:]}.{function.__name__}")
def test_operations_grow_with_the_text_and_not_with_its_square(
    function: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = Operations()
    count_normalizing(monkeypatch, operations)
    length = LENGTH * _FULL_WORK_FROM.get(function, 1)
    short, long = texts(length), texts(length * TIMES)
    grown = {}
    for call in CALLS[function]:
        for kind in _kinds(call):
            few, many = (operations.of(partial(call, made[kind])) for made in (short, long))
            if many > GROWTH * few + SLACK:
                grown[kind] = few, many
    assert grown == {}


def _kinds(call: Call) -> list[str]:
    """Return all kinds of texts, or some for a call that puts each of them into twenty bodies."""
    kinds = list(texts(1))
    return kinds[::12] if getattr(call, "__qualname__", "").startswith("of_") else kinds


# --- what no call shows


def test_a_log_is_not_searched_for_one_mark_after_the_other() -> None:
    def searched(count: int) -> int:
        WatchedBytes.searched = 0
        base64 = "A" * audio.AUDIO_TEXT_MIN
        log = json.dumps([{"audio": base64}, *[f"audio-{number}-" for number in range(count)]]).encode()
        assert base64.encode() not in audio.omit_audio(WatchedBytes(log))
        return WatchedBytes.searched // len(log)

    assert searched(1_000) == searched(10) <= 1


def test_the_name_of_a_field_is_not_copied_for_each_field_below_it() -> None:
    WatchedText.copied = 0
    name = WatchedText("x" * 100_000)
    assert found_log.find_log({name: Raw(json.dumps({str(number): [1] for number in range(1_000)}).encode())}) is None
    assert WatchedText.copied <= 2 * len(name)


# --- patterns

SEARCHES = {"search", "finditer", "findall", "sub", "split"}
PATTERN_TEXT, PATTERN_SLACK = 48, 800


@cache
def uses() -> dict[str, set[str]]:
    """Return by which methods the patterns of each name are used: ``_TAG`` by ``match``."""
    found: dict[str, set[str]] = {}
    for module, tree in modules().items():
        if module.startswith(PACKAGES):
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                    name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                    found.setdefault(name, set()).add(node.attr)
    return found


def patterns() -> Iterator[tuple[str, str, re.Pattern[Any]]]:
    """Yield every compiled pattern with where it stands and the name by which it is used."""
    for module in modules():
        if module.startswith(PACKAGES):
            for name, value in vars(import_module(module)).items():
                if isinstance(value, re.Pattern):
                    yield f"{module}.{name}", name, value
                if isinstance(value, forms.Tongue):
                    for field in value.__struct_fields__:
                        if isinstance(part := getattr(value, field), re.Pattern):
                            yield f"{module}.{name}.{field}", field, part
                    for number, one in enumerate(value.forms):
                        yield f"{module}.{name}.{number}", "pattern", one.pattern


PATTERNS = {where: (name, pattern) for where, name, pattern in patterns()}


@pytest.mark.parametrize("where", PATTERNS)
def test_a_pattern_takes_steps_by_the_length_of_its_text(where: str) -> None:
    name, pattern = PATTERNS[where]
    if "audio" in where and "4097" in str(pattern.pattern):
        pytest.skip("it is tried once for each text of base64, where it is possessive: see the next test")
    methods = uses()[name] & {*SEARCHES, "match", "fullmatch"}
    assert methods, f"{where} is used nowhere"
    steps = Steps(pattern)
    grown = {}
    for before, unit in {*steps.pumps(), *(("", unit[:12]) for unit in texts(6).values())}:
        few, many = (_steps(steps, methods, before, unit, PATTERN_TEXT * times) for times in (1, TIMES))
        if many > GROWTH * few + PATTERN_SLACK:
            grown[before, unit] = few, many
    assert grown == {}


def _steps(steps: Steps, methods: set[str], before: str, unit: str, length: int) -> int:
    text = before + (unit * length)[:length] + "\x01"
    if methods & SEARCHES:
        return steps.everywhere(text)
    return steps.at_the_start(text, whole="fullmatch" in methods)


@pytest.mark.parametrize(
    "unit", ['"', '"A', "A", "A" * 64 + "!", '"' + "A" * 64 + "!", '"data:audio/', '"' + "A" * 4000 + "!", "\\"]
)
def test_long_texts_are_found_in_steps_by_the_length_of_the_log(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    real = audio._TEXT

    class Looked:
        """The pattern of a recording, which counts how much of a log it may look at."""

        def match(self, log: bytes, start: int) -> re.Match[bytes] | None:
            nonlocal looked
            found = real.match(log, start)
            run = re.compile(rb'"?[A-Za-z0-9+/=_\\:;,.-]*').match(log, start)
            looked += len(run[0]) if run else 1
            return found

    monkeypatch.setattr(audio, "_TEXT", Looked())
    for size in (200_000, 1_600_000):
        looked = 0
        audio.bytes_without_base64((unit * (size // len(unit) + 1))[:size].encode())
        assert looked <= 3 * size


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"(?:a|a)+b", "match"),
        (r"(?:a+)+b", "match"),
        (r"\s*x", "search"),
        (r".*.*x", "match"),
        (r"(?:a|ab|b)+x", "match"),
    ],
)
def test_a_pattern_that_is_not_linear_is_noticed(pattern: str, method: str) -> None:
    steps = Steps(re.compile(pattern))
    found = [
        [_steps(steps, {method}, before, unit, PATTERN_TEXT * times) for times in (1, TIMES)]
        for before, unit in steps.pumps()
    ]
    assert any(many > GROWTH * few + PATTERN_SLACK or few > 100_000 for few, many in found)
