from __future__ import annotations

import json

import msgspec
import pytest

from convo.client import Expired, Receipt, lines
from tests.support.client_answers import problem, receipt


def test_a_body_is_one_line_however_it_was_written() -> None:
    body = json.dumps({"conversation_id": "a\nb", "log": [1, 2]}, indent=2).encode()
    ((line,),) = lines.groups([body])
    assert b"\n" not in line
    assert json.loads(line) == json.loads(body)


def test_a_group_ends_at_the_most_lines_and_at_the_most_bytes() -> None:
    assert [len(group) for group in lines.groups([b"{}"] * 2500)] == [1000, 1000, 500]
    third = b"x" * (lines.BYTES_MAX // 3 + 1)
    assert [len(group) for group in lines.groups([third] * 7)] == [2, 2, 2, 1]
    assert [len(group) for group in lines.groups([b"x" * (lines.BYTES_MAX + 1), b"y"])] == [1, 1]
    assert list(lines.groups([])) == []


def test_an_answer_is_read_line_by_line() -> None:
    content = json.dumps(receipt("a", replayed=True)) + "\n" + json.dumps(problem(410, "expired")) + "\n"
    one, other = lines.read(content.encode())
    assert isinstance(one, Receipt)
    assert one.replayed
    assert isinstance(other, Expired)
    with pytest.raises(msgspec.DecodeError):
        lines.read(b'{"status": 503}\n')
