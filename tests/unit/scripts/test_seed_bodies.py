from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import seed_bodies
from scripts.seed_bodies import BadSource, prepare, read_bodies


def a_body(name: str, *words: str) -> dict[str, Any]:
    log = [{"character": "USER" if number % 2 else "PIKA", "content": word} for number, word in enumerate(words)]
    return {"conversation_id": name, "user_id": "mia", "bot_id": "pika", "conversation_logs": log}


def test_json_lines_are_read_in_order_and_what_is_expected_of_them_is_not_posted(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    lines = [json.dumps(a_body(name, "a\u2028b") | {"expected": {}}, ensure_ascii=False) for name in ("one", "two")]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")

    assert read_bodies(path) == [a_body("one", "a\u2028b"), a_body("two", "a\u2028b")]


def test_json_lines_of_one_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(a_body("one", "hello")), encoding="utf-8")

    assert read_bodies(path) == [a_body("one", "hello")]


def test_a_topical_chat_file_becomes_bodies_with_agent_one_as_the_bot(tmp_path: Path) -> None:
    path = tmp_path / "valid.json"
    content = [
        {"message": "Do you sail?", "agent": "agent_1", "sentiment": "Neutral", "knowledge_source": ["FS1"]},
        {"message": "Only in storms.", "agent": "agent_2", "sentiment": "Happy", "knowledge_source": []},
    ]
    path.write_text(json.dumps({"t_1": {"article_url": "", "config": "A", "content": content}}), encoding="utf-8")

    (body,) = read_bodies(path)

    assert body["conversation_id"] == "tc-t_1"
    assert body["user_id"] == "tc-user-000"
    assert body["conversation_log"] == [
        {"character": "BOT", "content": "Do you sail?"},
        {"character": "USER", "content": "Only in storms."},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"conversation_id": "a"}\n{oops', "line 2: not JSON"),
        ('{"conversation_id": "a"}\n[]', "conversation 2: not an object"),
        ('{"conversation_id": 7}', "conversation 1: not an object with a conversation_id"),
        ('{"t_1": {"content": [{"message": "no agent"}]}}', "'t_1': neither"),
        ('{"t_1": 3}', "'t_1': neither"),
        ("\n\n", "no conversations"),
        ("{}", "no conversations"),
    ],
)
def test_a_file_that_cannot_be_posted_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(BadSource, match=words):
        read_bodies(path)


def test_a_file_that_is_not_there_or_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff\xfe")

    for name in ("latin", "absent"):
        with pytest.raises(BadSource, match=name):
            read_bodies(tmp_path / name)


def test_each_is_prepared_once_and_as_it_is_unless_asked_otherwise() -> None:
    source = [a_body("one", "hello"), a_body("two", "bye")]

    assert list(prepare(source)) == source


def test_a_short_source_is_gone_round_again_under_new_ids() -> None:
    source = [a_body("one", "hello"), a_body("two", "bye")]

    bodies = list(prepare(source, count=5))

    assert [body["conversation_id"] for body in bodies] == ["one", "two", "one-2", "two-2", "one-3"]
    assert bodies[4]["conversation_logs"] == source[0]["conversation_logs"]


def test_prefixes_rename_users_and_conversations_and_a_run_only_conversations() -> None:
    (body,) = prepare([a_body("one", "hello")], prefix="load-", run="4f-")

    assert (body["conversation_id"], body["user_id"]) == ("load-4f-one", "load-mia")


def test_a_grown_body_has_the_size_its_own_turns_first_and_no_text_twice() -> None:
    source = [a_body(f"c{number}", *(f"turn {number}.{n} " + "x" * 50 for n in range(10))) for number in range(20)]

    (body, *_) = prepare(source, size_kb=5)
    said = [item["content"] for item in body["conversation_log"]]

    assert 5000 <= len(seed_bodies.encode(body)) < 5200
    assert said[:10] == [item["content"] for item in source[0]["conversation_logs"]]
    assert len(set(said)) == len(said) > 10
    assert "conversation_logs" not in body


def test_bodies_of_another_size_have_other_ids_and_others_different_text() -> None:
    source = [a_body("one", "hello"), a_body("two", "bye")]

    small, grown = list(prepare(source)), list(prepare(source, size_kb=1.5))

    assert [body["conversation_id"] for body in grown] == ["one-1.5kb", "two-1.5kb"]
    assert grown[0]["conversation_log"][0] != grown[1]["conversation_log"][0]
    assert small == source


def test_a_body_is_never_cut_and_a_source_without_turns_does_not_grow() -> None:
    long = a_body("long", *("word" * 100 for _ in range(9)))

    assert len(seed_bodies.grow([long], 0, 10)["conversation_log"]) == 9
    assert seed_bodies.grow([a_body("empty")], 0, 10_000)["conversation_log"] == []


@pytest.mark.parametrize(
    ("item", "plain"),
    [
        ({"character": "BOT_RESPONSE_CONVERSATION", "content": "a"}, ("BOT", "a")),
        ({"character": "USER", "content": ""}, ("USER", "")),
        ({"speaker": "pika", "turn_id": 1, "text": "b", "timestamp": "2026-03-02T08:00:00Z"}, ("BOT", "b")),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
            ("BOT", "c d"),
        ),
        ({"role": "user", "content": "e"}, ("USER", "e")),
        ({"from": "gpt", "value": "f"}, ("BOT", "f")),
        ({"from": "human", "value": "g"}, ("USER", "g")),
    ],
)
def test_an_item_of_any_shape_becomes_a_plain_one(item: dict[str, Any], plain: tuple[str, str]) -> None:
    assert seed_bodies.plain_item(item) == {"character": plain[0], "content": plain[1]}


def test_a_lone_surrogate_is_posted_as_json_spells_it() -> None:
    assert seed_bodies.encode({"text": "\ud800 à"}) == b'{"text":"\\ud800 \\u00e0"}'
    assert seed_bodies.encode({"text": "à"}) == '{"text":"à"}'.encode()
