from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from scripts import case_reading, cases
from scripts.case_expectations import EXPECTED, Expected, Outcome, Posted, faults, said_in, silent_loss
from tests.support.case_servers import Seen, asked_for, body_of, encoded, rule_of, think
from tests.support.fakes import Call

LOG = [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "Yes, until eight."}]
TURNS = [{"speaker": "user", "text": "Is it open?"}, {"speaker": "bot", "text": "Yes, until eight."}]
DONE = {"state": "done", "attempts": 1, "parts": {"questions": {"state": "done", "questions": ["Is it open?"]}}}
GOOD = Posted(
    status=202, said=("Is it open?", "Yes, until eight."), log=LOG, receipt={}, turns=TURNS, conversation=DONE
)


def call(path: str = "/v1/chat/completions", **fields: Any) -> Call:
    return Call(method="POST", path=path, headers={}, body=json.dumps(fields).encode())


def ask(part: str, role: str = "system") -> Call:
    record = '<conversation>\n{"user":"Is it open?"}\n{"bot":"Why?"}\n</conversation>'
    shape = '{"emotion": "..."}' if part == "emotion" else '{"questions": ["..."]}'
    return call(messages=[{"role": role, "content": f"Answer {shape}"}, {"role": "user", "content": record}])


def badly(when: str, asked: Call, before: int = 0, seconds: float = 0.0) -> bool:
    rule, misread = rule_of(when)
    assert not misread
    return rule(Seen(call=asked, before=before, seconds=seconds))


# --- how a fake answers


@pytest.mark.parametrize(
    ("when", "asked", "bad"),
    [
        ("every POST /v1/chat/completions (the emotion call: the same form)", ask("questions"), True),
        ("every POST /v1/memories", call("/v1/memories"), True),
        ("every POST /v1/memories", call("/v1/memories/"), False),
        ("the questions call", ask("questions"), True),
        ("the questions call", ask("emotion"), False),
        ("while the request has response_format; otherwise 200", call(response_format={"type": "json_object"}), True),
        ("while the request has response_format; otherwise 200", call(), False),
        ("while the request has a temperature other than 1; otherwise 200", call(temperature=0), True),
        ("while the request has a temperature other than 1; otherwise 200", call(temperature=1.0), False),
        ("while the request has a temperature other than 1; otherwise 200", call(), False),
        ("while the request has a system message", ask("emotion"), True),
        ("while the request has a system message", ask("emotion", role="developer"), False),
        ("the first two json_schema calls only", call(response_format={"type": "json_schema"}), True),
        ("the first two json_schema calls only", call(response_format={"type": "json_object"}), False),
    ],
)
def test_a_fake_answers_badly_when_its_case_says(when: str, asked: Call, *, bad: bool) -> None:
    assert badly(when, asked) is bad


def test_a_fault_may_end_after_some_calls_or_some_time() -> None:
    schema = call(response_format={"type": "json_schema"})

    assert not badly("the first two json_schema calls only", schema, before=2)
    assert badly("for 8 s from the first call on; then 200", schema, seconds=7.9)
    assert not badly("for 8 s from the first call on; then 200", schema, seconds=8.1)


def test_a_sentence_that_is_not_understood_is_named_and_counts_as_always() -> None:
    rule, misread = rule_of("whenever the moon is full")

    assert misread == "whenever the moon is full"
    assert rule(Seen(call=call(), before=0, seconds=0.0))


def test_the_emotion_call_is_answered_in_the_form_of_the_case() -> None:
    answer = {"choices": [{"message": {"content": 'so {this}</think>{"questions":["Is it open?"]}'}}]}

    questions, emotion = (json.loads(body_of(answer, ask(part))) for part in ("questions", "emotion"))

    assert questions == answer
    assert emotion["choices"][0]["message"]["content"] == 'so {this}</think>{"emotion":"happy"}'


def test_one_call_for_both_is_answered_with_both_in_the_form_of_the_case() -> None:
    answer = {"choices": [{"message": {"content": '```{"questions":["Is it open?"]}```'}}]}
    both = call(messages=[{"role": "user", "content": '{"questions": ["..."], "emotion": "..."}'}])
    found = json.loads(body_of(answer, both))["choices"][0]["message"]["content"]
    assert found == '```{"questions":["Is it open?"],"emotion":"happy"}```'
    assert asked_for(both) == {"questions", "emotion"}


def test_a_body_is_compressed_as_the_headers_say() -> None:
    assert gzip.decompress(encoded(b"words", {"content-encoding": "gzip"})) == b"words"
    assert encoded(b"words", {}) == b"words"


def test_a_healthy_fake_finds_the_question_of_the_user_wherever_the_record_stands() -> None:
    asked = ask("questions")
    in_one = call(messages=[{"role": "user", "content": "\n".join(m["content"] for m in asked.json()["messages"])}])

    for one in (asked, in_one):
        assert asked_for(one) == {"questions"}
        assert 'Is it open?"]' in json.dumps(think(one)).replace("\\", "")
        assert "Why?" not in json.dumps(think(one))


# --- what is read of a case


def test_a_second_answer_is_a_trial_of_its_own_and_samples_are_trials(tmp_path: Path) -> None:
    case = {"name": "odd", "request": {"conversation_id": "one"}, "also": [{"choices": 1}, {"choices": 2}]}
    (tmp_path / "odd.json").write_text(json.dumps(case))
    (tmp_path / "vcon_samples.json").write_text(json.dumps([{"case": "plain", "want": "202", "vcon": {"dialog": []}}]))

    trials = case_reading.read(tmp_path)

    assert [trial.name for trial in trials] == ["odd", "odd also 1", "odd also 2", "vcon_samples plain"]
    assert [trial.answer for trial in trials] == [None, {"choices": 1}, {"choices": 2}, None]
    assert trials[3].expected.status == (415, 422)
    assert trials[0].expected == Expected()


def test_a_note_puts_bytes_before_the_json() -> None:
    assert case_reading.body_of({"a": 1}, {"request_note": "bytes EF BB BF before the JSON"}) == b'\xef\xbb\xbf{"a": 1}'
    assert case_reading.body_of({"a": 1}, {}) == b'{"a": 1}'


def test_settings_are_taken_by_name_with_the_port_of_the_fake() -> None:
    case = {"settings": {"CONVO_LLM__BASE_URL": "http://127.0.0.1:PORT/v1", "CONVO_LLM__API_KEY": "k"}}

    assert case_reading.settings_of(case, "4711") == {"llm.base_url": "http://127.0.0.1:4711/v1", "llm.api_key": "k"}


@pytest.mark.skipif(not cases.FOLDER.is_dir(), reason="../shared/cases is not here")
def test_every_case_that_is_here_has_its_expectation() -> None:
    trials = case_reading.read(cases.FOLDER)

    assert {trial.name.partition(" ")[0] for trial in trials} <= EXPECTED.keys()
    assert all(trial.requests or "steps" in trial.case for trial in trials)
    fakes = [trial.case[kind] for trial in trials for kind in ("fake_model", "fake_memory") if kind in trial.case]
    assert [rule_of(fake["when"])[1] for fake in fakes] == [""] * len(fakes)


# --- the verdict


def test_words_are_what_is_spoken_and_not_what_the_system_says() -> None:
    items = [{"role": "system", "content": "You are kind."}, {"role": "user", "parts": [{"text": "Is it open?"}]}]

    assert list(said_in(items)) == ["Is it open?"]


def test_words_that_can_be_read_nowhere_are_lost() -> None:
    assert silent_loss(GOOD) == ""
    assert silent_loss(structs.replace(GOOD, turns=TURNS[:1])) == "202, and 1 of 2 texts are not to be read"
    assert silent_loss(structs.replace(GOOD, status=422, turns=[])) == ""


def test_a_log_as_sent_keeps_the_words_where_the_receipt_lists_what_is_unread() -> None:
    kept = structs.replace(GOOD, sent=LOG, turns=[])

    assert silent_loss(structs.replace(kept, receipt={"unread": [{"path": "$.conversation_log[0]"}]})) == ""
    assert silent_loss(kept) == "202, turns 0, and the receipt lists nothing as unread"
    assert silent_loss(structs.replace(kept, sent=LOG[:1])) == "202, and the log as sent is not what was sent"


PARKED = {"state": "ready", "attempts": 0, "waits_for": "llm", "parked_since": "2026-11-29T09:00:00Z"}
DEAD = {"state": "dead", "attempts": 5, "last_error": "llm: answered 400"}


@pytest.mark.parametrize(
    ("expected", "posted", "fault"),
    [
        (Expected(turns=(2,), speakers=("user bot",), state="done", questions=(1,)), GOOD, None),
        (Expected(turns=(3,)), GOOD, "2 turns, not 3"),
        (Expected(speakers=("bot user",)), GOOD, "spoken by user bot, not by bot user"),
        (Expected(questions=(2,)), GOOD, "1 questions, not 2"),
        (Expected(asked="is it open"), GOOD, None),
        (Expected(attempts_max=0), GOOD, "1 attempts, at most 0 wanted"),
        (Expected(status=(422,)), GOOD, "202, not 422"),
        (Expected(), structs.replace(GOOD, conversation=DEAD), "a dead letter: llm: answered 400"),
        (Expected(state="parked", attempts_max=0), structs.replace(GOOD, conversation=PARKED), None),
        (Expected(state="done"), structs.replace(GOOD, conversation=PARKED), "parked after 30 s, not done"),
        (Expected(state="parked"), GOOD, "done after 30 s, not parked"),
        (Expected(status=(422,), says=("vcon",)), Posted(status=422, detail="This is a vCon"), None),
        (Expected(status=(422,), says=("vcon",)), Posted(status=422, detail="no"), "422 names none of vcon"),
    ],
)
def test_a_verdict_names_what_came_otherwise(expected: Expected, posted: Posted, fault: str | None) -> None:
    assert faults(expected, Outcome(posted=(posted,))) == ([fault] if fault else [])


def test_a_reason_must_be_told_until_the_conversation_is_done() -> None:
    expected = Expected(told="text_chars_max")
    parked = structs.replace(GOOD, conversation=PARKED)

    assert faults(expected, Outcome(posted=(GOOD,))) == []
    assert faults(expected, Outcome(posted=(parked,), told="shorten llm.text_chars_max")) == []
    assert faults(expected, Outcome(posted=(parked,))) == ["nothing tells of text_chars_max"]


def test_memories_that_are_done_with_nothing_found_are_a_fault_where_there_was_something() -> None:
    parts = {"memories": {"state": "done", "memories": []}}
    posted = structs.replace(GOOD, conversation={**DONE, "parts": parts})

    assert faults(Expected(facts_min=1), Outcome(posted=(posted,))) == ["memories are done with no fact"]
    assert faults(Expected(posts_max=1), Outcome(posted=(posted,), posts=2)) == [
        "2 POSTs to the fake, at most 1 wanted"
    ]
