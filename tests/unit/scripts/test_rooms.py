from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT


def printed(tree: Path) -> tuple[int, str]:
    program = [sys.executable, "-I", str(ROOT / "scripts" / "rooms.py"), str(tree)]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path, "tests/test_layers.py", 'RANKS = {"convo": 0, "convo.low": 1, "convo.high": 2}\n')
    write(tmp_path, "convo/__init__.py", "")
    write(tmp_path, "convo/low/__init__.py", "")
    write(tmp_path, "convo/low/base.py", "LIMIT = 3\n_private = 4\n\n\ndef grow() -> None:\n    pass\n")
    write(tmp_path, "convo/high.py", "from convo.low import base\n")
    return tmp_path


def write(tree: Path, name: str, text: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_sheet_counts_files_lines_and_public_names_and_shows_the_imports(tree: Path) -> None:
    code, text = printed(tree)
    assert code == 0, text
    rows = {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}
    assert rows["convo.low"] == ["2", "6", "2"]
    assert rows["convo.high"] == ["1", "1", "0", "low"]
    assert text.endswith("cycles of rooms: none\ncycles of modules: none\nimports that run upwards: none\n")


def test_an_import_that_runs_upwards_is_named_and_so_is_the_cycle_that_it_closes(tree: Path) -> None:
    write(tree, "convo/low/base.py", "from convo.high import base\n")
    code, text = printed(tree)
    assert code == 1
    assert "cycles of rooms: 1\n  convo.high <-> convo.low\n" in text
    assert "cycles of modules: 1\n  convo.high <-> convo.low.base\n" in text
    assert "imports that run upwards: 1\n  convo.low.base (rank 1) -> convo.high (rank 2)\n" in text


def test_two_modules_of_one_room_in_a_cycle_are_named(tree: Path) -> None:
    write(tree, "convo/low/base.py", "from convo.low import other\n")
    write(tree, "convo/low/other.py", "from convo.low import base\n")
    code, text = printed(tree)
    assert code == 1
    assert "cycles of rooms: none" in text
    assert "cycles of modules: 1\n  convo.low.base <-> convo.low.other\n" in text
