from __future__ import annotations

import pytest

from convo.store.log_refs import LogRef, folder_of, month_of, object_in, object_key, parse_ref
from convo.store.months import MONTH_SEQS

REF = LogRef(name="0123456789abcdef", offset=7, length=100, unpacked_bytes=900, log_hash=bytes(range(16)))


def test_a_reference_is_read_as_it_was_written_in_about_seventy_bytes() -> None:
    assert parse_ref(str(REF)) == REF
    assert len(str(REF)) <= 75


def test_the_month_is_that_of_the_partition() -> None:
    assert [month_of(seq) for seq in (0, MONTH_SEQS - 1, MONTH_SEQS, 3 * MONTH_SEQS + 5)] == [0, 0, 1, 3]


@pytest.mark.parametrize("prefix", ["", "convo", "a/b"])
def test_a_key_says_its_month_and_its_name(prefix: str) -> None:
    key = object_key(folder_of(prefix, "f00d"), 12, REF.name)
    assert object_in(key) == (12, REF.name)
    assert key.startswith(f"{prefix}/f00d/" if prefix else "f00d/")


@pytest.mark.parametrize("key", ["convo/f00d/notes.txt", "convo/f00d/00001/short.logs", "0123456789abcdef.logs"])
def test_another_key_is_no_object_of_logs(key: str) -> None:
    assert object_in(key) is None
