from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from convo.errors import Refused
from convo.store import erasure_file
from convo.store.erasure_file import ErasureFileDamaged, ErasureFileNewer, Listed

INSTALLATION = "0123456789abcdef"
TALK = Listed(kind="conversation", hmac=b"c" * 16, number=1_800_000_000_000_000, other=b"h" * 16)
OLD_TALK = Listed(kind="conversation", hmac=b"o" * 16, number=5)
USER = Listed(kind="user", hmac=b"u" * 16, number=7)
MEMORY = Listed(kind="memory", hmac=b"u" * 16, number=42, other=b"k" * 16)
ALL = [TALK, OLD_TALK, USER, MEMORY]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = erasure_file.path_of(tmp_path, INSTALLATION)
    erasure_file.write_file(path, INSTALLATION, [TALK])
    return path


def listed(file: Path) -> set[Listed]:
    return set(erasure_file.read_file(file).listed.values())


def test_what_is_written_and_added_is_read_back(file: Path) -> None:
    erasure_file.append_listed(file, [OLD_TALK, USER])
    erasure_file.append_listed(file, [MEMORY])
    found = erasure_file.read_file(file)
    assert set(found.listed.values()) == set(ALL)
    assert found.installation == INSTALLATION


def test_only_its_owner_can_read_it(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    erasure_file.append_listed(file, [USER])
    erasure_file.write_file(file, INSTALLATION, ALL)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_it_holds_hmacs_and_numbers_alone(file: Path) -> None:
    erasure_file.append_listed(file, ALL)
    words = file.read_text().split()
    assert all(word in ("convo-erasures", "conversation", "user", "memory", "-") or int(word, 16) for word in words)


def test_the_newest_of_a_thing_counts(file: Path) -> None:
    later = Listed(kind="user", hmac=USER.hmac, number=USER.number + 1)
    erasure_file.append_listed(file, [later, USER])
    assert later in listed(file)
    assert USER not in listed(file)


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_last_line_is_left_out_and_cut_off(file: Path, cut: int) -> None:
    erasure_file.append_listed(file, [USER])
    os.truncate(file, file.stat().st_size - cut)
    assert listed(file) == {TALK}
    erasure_file.append_listed(file, [MEMORY])
    assert listed(file) == {TALK, MEMORY}


def test_a_changed_line_is_noticed_and_the_others_are_known(file: Path) -> None:
    erasure_file.append_listed(file, [USER, MEMORY])
    text = file.read_text().splitlines(keepends=True)
    file.write_text(text[0] + text[1] + text[2].replace(" 7 ", " 8 ") + text[3])
    with pytest.raises(ErasureFileDamaged, match="line 3 of") as found:
        erasure_file.read_file(file)
    assert found.value.good is not None
    assert set(found.value.good.listed.values()) == {TALK, MEMORY}


@pytest.mark.parametrize("text", ["", "convo-erasures\n", "\x00\x00\n"])
def test_a_file_without_its_head_is_damaged(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ErasureFileDamaged, match="line 1 of"):
        erasure_file.read_file(file)


def test_a_file_of_a_later_form_is_refused(file: Path) -> None:
    file.write_text(f"convo-erasures 2 {INSTALLATION}\nsomething else\n")
    with pytest.raises(ErasureFileNewer, match="form 2, and this program knows form 1"):
        erasure_file.read_file(file)


def test_each_installation_has_a_file_of_its_own(file: Path) -> None:
    other = "f" * 16
    erasure_file.write_file(erasure_file.path_of(file.parent, other), other, [USER])
    (file.parent / "erasures-notes.txt").write_text("by hand")
    found = {one.installation: set(one.listed.values()) for one in erasure_file.read_all(file.parent)}
    assert found == {INSTALLATION: {TALK}, other: {USER}}


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"erasures-x cannot be read: No such file"):
        erasure_file.read_file(tmp_path / "erasures-x")


def test_a_write_that_fails_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convo.store.erasure_file.os.fsync", full)
    writes: tuple[Callable[[], None], ...] = (
        lambda: erasure_file.write_file(file, INSTALLATION, ALL),
        lambda: erasure_file.append_listed(file, [USER]),
    )
    for write in writes:
        with pytest.raises(OSError, match="No space"):
            write()
        assert listed(file) == {TALK}
