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
from convo.identity import claim

_HOLD = """
import sys, time
from pathlib import Path
from convo.identity import claim
with claim(Path(sys.argv[1])) as name:
    print(name, flush=True)
    time.sleep(60)
"""


def test_a_folder_keeps_its_name(tmp_path: Path) -> None:
    with claim(tmp_path / "new" / "folder") as first:
        pass
    with claim(tmp_path / "new" / "folder") as second:
        assert second == first


def test_two_folders_have_two_names(tmp_path: Path) -> None:
    with claim(tmp_path / "one") as one, claim(tmp_path / "two") as two:
        assert one != two


def test_the_host_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(tmp_path) as here:
        pass
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with claim(tmp_path) as there:
        assert there == f"elsewhere/{here.rpartition('/')[2]}"


def test_a_second_process_is_refused_and_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(Refused, match=rf"pid {os.getpid()}\b"), claim(tmp_path):
        pass


def test_one_that_was_refused_leaves_the_name_alone(tmp_path: Path) -> None:
    with claim(tmp_path) as first:
        for _ in range(2):
            with pytest.raises(Refused, match=rf"pid {os.getpid()}\b"), claim(tmp_path):
                pass
    with claim(tmp_path) as after:
        assert after == first


def test_the_death_of_a_process_gives_its_name_to_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        with pytest.raises(Refused, match=rf"pid {child.pid}\b"), claim(tmp_path):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with claim(tmp_path) as heir:
            assert heir == name


def test_a_file_that_a_crash_left_empty_gets_a_new_name(tmp_path: Path) -> None:
    (tmp_path / "instance").touch()
    with claim(tmp_path) as name:
        assert re.fullmatch(r".+/[0-9a-f]{32}", name)


def test_a_folder_that_cannot_be_used_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=re.escape(str(tmp_path / "file"))), claim(tmp_path / "file"):
        pass
