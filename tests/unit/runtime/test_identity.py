from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from convo.errors import Refused
from convo.runtime.identity import claim, short_name

_HOLD = """
import sys, time
from pathlib import Path
from convo.runtime.identity import claim
with claim(Path(sys.argv[1])) as me:
    print(me.folder, flush=True)
    time.sleep(60)
"""


def test_a_folder_keeps_its_id_and_each_start_is_another_incarnation(tmp_path: Path) -> None:
    with claim(tmp_path / "new" / "folder") as first:
        pass
    with claim(tmp_path / "new" / "folder") as second:
        assert second.folder == first.folder
        assert second.incarnation != first.incarnation
        assert second.name == f"{first.folder}.{second.incarnation}"


def test_a_short_name_still_tells_folders_and_starts_apart(tmp_path: Path) -> None:
    with claim(tmp_path) as first:
        folder, incarnation = first.folder, first.incarnation
        assert short_name(first.name) == f"{folder[:8]}.{incarnation[:8]}"
    assert short_name("") == ""


def test_two_folders_have_two_ids(tmp_path: Path) -> None:
    with claim(tmp_path / "one") as one, claim(tmp_path / "two") as two:
        assert one.folder != two.folder


def test_the_host_is_no_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(tmp_path) as here:
        pass
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with claim(tmp_path) as there:
        assert there.folder == here.folder
        assert there.label == f"elsewhere/{here.folder}"
        assert "elsewhere" not in there.name


def test_a_name_fits_into_a_session_s(tmp_path: Path) -> None:
    with claim(tmp_path) as me:
        assert len(f"convo {me.name}") < 64


def test_the_file_of_an_earlier_program_is_read(tmp_path: Path) -> None:
    (tmp_path / "instance").write_text("0123456789abcdef 4711\n")
    with claim(tmp_path) as me:
        assert me.folder == "0123456789abcdef"


def test_a_new_folder_id_stays(tmp_path: Path) -> None:
    with claim(tmp_path) as me:
        before = me.name
        me.take_new_folder_id()
        assert me.folder != before.partition(".")[0]
        assert me.name.partition(".")[2] == before.partition(".")[2]
    with claim(tmp_path) as after:
        assert after.folder == me.folder


def test_a_second_process_is_refused_and_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(Refused, match=rf"pid {os.getpid()}:"), claim(tmp_path):
        pass


def test_one_that_was_refused_leaves_the_id_alone(tmp_path: Path) -> None:
    with claim(tmp_path) as first:
        for _ in range(2):
            with pytest.raises(Refused, match=rf"pid {os.getpid()}:"), claim(tmp_path):
                pass
    with claim(tmp_path) as after:
        assert after.folder == first.folder


def test_the_death_of_a_process_gives_its_folder_to_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as child:
        assert child.stdout is not None
        folder = child.stdout.readline().strip()
        with pytest.raises(Refused, match=rf"pid {child.pid}:"), claim(tmp_path):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with claim(tmp_path) as heir:
            assert heir.folder == folder


def test_a_file_that_a_crash_left_empty_gets_a_new_id(tmp_path: Path) -> None:
    (tmp_path / "instance").touch()
    with claim(tmp_path) as me:
        assert re.fullmatch(r"[0-9a-f]{32}\.[0-9a-f]{16}", me.name)


def test_a_folder_that_cannot_be_used_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=re.escape(str(tmp_path / "file"))), claim(tmp_path / "file"):
        pass
