"""Where servers put the text of an answer, and what else stands in one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convo.analysis.llm_completion import Completion, completion_in

A = '{"questions": ["a?"]}'


def read(value: Any) -> Completion:
    found = completion_in(json.dumps(value).encode())
    assert found is not None
    return found


def choice(message: Any, **more: Any) -> Any:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}


def stream(*pieces: Any) -> bytes:
    lines = [f"data: {json.dumps(piece)}" for piece in pieces]
    return "\r\n\r\n".join([": keep-alive", *lines, "data: [DONE]", ""]).encode()


def delta(**fields: Any) -> Any:
    return {"choices": [{"delta": fields, "finish_reason": None}]}


CALL = {"type": "function", "function": {"name": "report", "arguments": A}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": A},
        {"content": [{"type": "text", "text": A}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": A}]},
        {"content": [{"type": "thinking", "text": "hm"}, {"type": "output_text", "text": A}]},
        {"content": [A[:9], A[9:]]},
        {"content": {"type": "text", "text": A}},
        {"content": json.loads(A)},
        {"content": None, "parsed": json.loads(A)},
        {"content": "", "reasoning_content": A},
        {"content": None, "reasoning": A},
        {"content": None, "tool_calls": [CALL]},
        {"content": None, "tool_calls": [{"function": {"arguments": json.loads(A)}}]},
        {"content": None, "function_call": {"arguments": A}},
        A,
    ],
)
def test_the_text_is_found_where_the_server_puts_it(message: Any) -> None:
    assert read(choice(message)).texts == (A,)


def test_thoughts_come_after_the_answer() -> None:
    assert read(choice({"reasoning_content": "hm", "content": A})).texts == (A, "hm")


def test_a_text_without_a_message_is_read_as_well() -> None:
    assert read({"choices": [{"text": A}]}).texts == (A,)
    assert read({"message": {"content": A}, "done_reason": "stop"}).texts == (A,)
    assert read([choice({"content": A})]).texts == (A,)


BODY = json.dumps(choice({"content": A}))


@pytest.mark.parametrize(
    "body",
    [
        BODY.encode(),
        b"\xef\xbb\xbf" + BODY.encode(),
        BODY.encode("utf-16"),
        b"\n\n   \n" + BODY.encode(),
        stream(delta(role="assistant"), delta(content=A[:5]), delta(content=A[5:]), {"choices": [], "usage": {}}),
        b"event: message\n" + stream(choice({"content": A})),
        "\n".join(json.dumps(piece) for piece in (delta(content=A[:5]), delta(content=A[5:]))).encode(),
        "\n".join(json.dumps({"message": {"content": text}}) for text in (A[:5], A[5:])).encode(),
        json.dumps([delta(content=A[:5]), delta(content=A[5:])]).encode(),
        stream(*(delta(tool_calls=[{"index": 0, "function": {"arguments": text}}]) for text in (A[:5], A[5:]))),
    ],
)
def test_the_body_is_read_in_any_form_and_encoding(body: bytes) -> None:
    found = completion_in(body)
    assert found is not None
    assert "".join(found.texts) == A


def test_the_reason_and_the_refusal_are_read() -> None:
    found = read(choice({"content": "", "refusal": "I cannot"}, finish_reason="CONTENT_FILTER"))
    assert (found.finish_reason, found.refusal, found.texts) == ("content_filter", "I cannot", ())
    streamed = completion_in(stream(delta(content="a"), {"choices": [{"delta": {}, "finish_reason": "length"}]}))
    assert streamed is not None
    assert streamed.finish_reason == "length"


@pytest.mark.parametrize("value", [{"choices": None}, {"choices": []}, {"id": "x"}, {}])
def test_an_answer_without_a_choice_says_so(value: Any) -> None:
    assert not read(value).choices


@pytest.mark.parametrize(
    "value",
    [
        {"error": {"code": 429, "message": "x"}},
        {"error": {"code": 429}, "choices": None},
        {"choices": [{"finish_reason": "error", "message": {"content": ""}, "error": {"code": 429}}]},
        [{"error": {"code": 429}}],
    ],
)
def test_an_error_in_a_good_answer_is_found(value: Any) -> None:
    fault = read(value).fault
    assert fault is not None
    assert fault.status == 429


def test_an_error_in_the_middle_of_a_stream_is_found() -> None:
    found = completion_in(stream(delta(content="a"), {"error": {"code": 502}}))
    assert found is not None
    assert found.fault is not None


def test_a_prompt_that_google_blocks_is_filtered() -> None:
    assert read({"promptFeedback": {"blockReason": "SAFETY"}}).finish_reason == "content_filter"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"7",
        b"null",
        b"[]",
        b'{"choices": "none"}',
        b'{"choices": ["x"]}',
        b"\xff",
        b"<html>",
        b"[" * 99_999,
    ],
)
def test_what_is_no_answer_is_none(body: bytes) -> None:
    assert completion_in(body) is None
