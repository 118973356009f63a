from __future__ import annotations

import json

import pytest

from convo.analysis.memory_answers import (
    ErrorInAnswer,
    NotAsExpected,
    ServiceAnswer,
    ServiceFact,
    memories_of,
    read_extraction,
    read_mem0,
    read_mem0_list,
)

FACT = ServiceFact(text="Likes tea", id="a", operation="ADD")


def told(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "one",
    [
        {"id": "a", "memory": "Likes tea", "event": "ADD"},
        {"id": "a", "data": {"memory": "Likes tea"}, "event": "ADD"},
        {"id": "a", "memory": None, "data": {"memory": "Likes tea", "more": 1}, "event": "ADD", "status": "SUCCEEDED"},
        {"id": "a", "memory": "Likes tea", "event": "ADD", "status": "PENDING"},
    ],
)
def test_a_fact_is_read_in_each_of_its_forms_and_in_each_wrapping(one: object) -> None:
    for answer in ([one], {"results": [one]}, {"results": [one], "relations": {}}, {"status": "OK", "results": [one]}):
        assert read_mem0(told(answer)) == ServiceAnswer(facts=(FACT,))
    assert read_mem0(b"\xef\xbb\xbf" + told([one])) == ServiceAnswer(facts=(FACT,))


def test_nothing_found_is_an_answer() -> None:
    assert read_mem0(b"[]") == read_mem0(b'{"results": []}') == ServiceAnswer()


def test_facts_that_are_told_before_the_end_are_not_all() -> None:
    one = {"id": "a", "memory": "Likes tea", "event": "ADD"}
    answer = read_mem0(told({"status": "RUNNING", "event_id": "e", "results": [one]}))
    assert answer == ServiceAnswer(pending=True, events=("e",))


def test_an_event_that_has_ended_may_tell_no_facts() -> None:
    assert read_mem0(b'{"id": "e", "status": "SUCCEEDED"}') == ServiceAnswer(told=False)


def test_one_of_several_that_failed_leaves_the_others() -> None:
    one = {"id": "a", "memory": "Likes tea", "event": "ADD"}
    assert read_mem0(told([one, {"status": "FAILED"}])) == ServiceAnswer(facts=(FACT,))
    assert read_mem0(told([{"status": "FAILED"}])).failed


@pytest.mark.parametrize(
    "bad",
    [
        *("", "{}", "7", "null", '"PENDING"', '{"results": 7}', '{"results": ["x"]}', '[{"memory": 7}]'),
        *('{"status": 7}', '{"status": "who knows"}', '{"message": "ok"}', '{"error": "no"}', "\\xff", "[" * 100_000),
    ],
)
def test_what_has_none_of_the_forms_is_refused(bad: str) -> None:
    with pytest.raises(NotAsExpected):
        read_mem0(bad.encode())


def test_a_list_is_read_bare_and_wrapped_with_the_conversation_of_each() -> None:
    one = {"id": "a", "memory": "Likes tea", "metadata": {"conversation_id": "talk-1"}}
    fact = ServiceFact(text="Likes tea", id="a", conversation_id="talk-1")
    assert read_mem0_list(told([one])) == ([fact], False)
    assert read_mem0_list(told({"results": [one], "next": "…?page=2"})) == ([fact], True)
    assert read_mem0_list(told({"memories": [one], "next": None})) == ([fact], False)
    with pytest.raises(NotAsExpected):
        read_mem0_list(b"{}")


def test_an_extraction_that_is_pending_says_so() -> None:
    assert read_extraction(b'{"facts": [{"id": 1, "operation": "pending"}]}').pending
    assert not read_extraction(b'{"facts": [{"id": 1, "fact_value": "x", "operation": "PENDING"}]}').pending


def test_what_is_only_pending_is_no_fact() -> None:
    assert memories_of([ServiceFact(operation="PENDING", id="a")]).facts == ()


@pytest.mark.parametrize("body", [{"error": "busy"}, {"detail": "no"}, {"errors": [{"code": 1}], "message": "x"}])
def test_an_error_that_comes_with_a_good_status_is_one(body: object) -> None:
    for read in (read_mem0, read_extraction, read_mem0_list):
        with pytest.raises(ErrorInAnswer):
            read(told(body))


def test_an_empty_error_beside_the_facts_is_none() -> None:
    assert (
        read_mem0(b'{"error": null, "results": []}') == read_mem0(b'{"error": "old", "results": []}') == ServiceAnswer()
    )
