from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from convo.commands import import_files
from convo.commands.import_files import body_of, read_lines, size_of
from convo.errors import Refused

ROWS = [b'{"conversation_id":"a"}', b'{"conversation_id":"b"}', b'{"conversation_id":"c"}']


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_have_their_numbers_and_blank_ones_are_skipped(suffix: str, tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + ROWS[0] + b"\r\n\n  \n" + ROWS[1] + b"\n" + ROWS[2]
    packed = {
        "": text,
        ".gz": gzip.compress(text),
        ".zst": zstandard.compress(text[:20]) + zstandard.compress(text[20:]),
    }
    file = tmp_path / f"rows.jsonl{suffix}"
    file.write_bytes(packed[suffix])

    found = list(read_lines(str(file)))
    assert [(line.number, line.body) for line in found] == [(1, ROWS[0]), (4, ROWS[1]), (5, ROWS[2])]
    assert [line.number for line in read_lines(str(file), 4)] == [5]
    assert found[-1].read_bytes == size_of(str(file))


def test_the_standard_input_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\n".join(ROWS))))
    assert [line.body for line in read_lines("-")] == ROWS
    assert size_of("-") == 0


def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_files, "LINE_BYTES_MAX", 100)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS[0] + b"\n" + b"x" * 1000 + b"\n" + ROWS[1] + b"\n")
    found = list(read_lines(str(file)))
    assert [(line.number, len(line.body)) for line in found] == [(1, len(ROWS[0])), (2, 102), (3, len(ROWS[1]))]


@pytest.mark.parametrize("name", ["absent.jsonl", "broken.gz", "broken.zst"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    if name != "absent.jsonl":
        (tmp_path / name).write_bytes(b"no such thing, and long enough to be looked at")
    with pytest.raises(Refused, match=name):
        list(read_lines(str(tmp_path / name)))


def test_what_is_a_body_already_stays_as_it_is_byte_for_byte() -> None:
    for line in (b'{"conversation_id": "a",  "start_time":1, "created_at":"2026-01-01"}', b"{", b"[1]", b"\xff"):
        assert body_of(line) == line


def test_a_row_of_the_service_before_is_put_into_the_form() -> None:
    log = [{"character": "USER", "content": "Chào 1.0"}]
    row = {"id": 7, "conversation_id": "a", "conversation_logs": json.dumps(log), "created_at": "2025-10-01T12:00:00Z"}
    body = json.loads(body_of(json.dumps(row).encode()))
    assert body["conversation_logs"] == log
    assert body["end_time"] == "2025-10-01T12:00:00Z"
    # What stands in the text is sent as it stands there.
    assert b'"x":1.00}' in body_of(b'{"conversation_log":"[{\\"x\\":1.00}]"}')
    assert json.loads(body_of(b'{"conversation_log":"no JSON","created_at":5}'))["conversation_log"] == "no JSON"
