from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

from convo import config, identity, upkeep
from convo.config import Settings
from convo.errors import Refused
from tests.conftest import roomy_folder
from tests.running import ROOT, environment


def settings_of(data_dir: Path) -> Settings:
    return config.load(None, {}, {("server", "data_dir"): str(data_dir)})


async def test_a_backup_of_one_folder_is_restored_into_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    with roomy_folder() as one, roomy_folder() as other:
        async with upkeep.stopped(settings_of(one)):
            pass
        assert await upkeep.backup(settings_of(one), file) == file.stat().st_size
        await upkeep.restore(settings_of(other), file)
        assert (other / "postgres").is_dir()


async def test_a_backup_and_a_restore_print_their_one_line_and_log_to_stderr(tmp_path: Path) -> None:
    with roomy_folder() as folder:
        async with upkeep.stopped(settings_of(folder)):
            pass
        for command in ("backup", "restore"):
            asked = [sys.executable, "-m", "convo", command, str(tmp_path / "convo.backup"), "--data-dir", str(folder)]
            done = await trio.run_process(asked, capture_stdout=True, capture_stderr=True, cwd=ROOT, env=environment())
            assert len(done.stdout.splitlines()) == 1, done.stdout
            lines = [json.loads(line)["event"] for line in done.stderr.splitlines()]
            assert {"embedded_started", "embedded_stopped"} <= set(lines)


async def test_a_folder_without_a_database_cannot_be_backed_up(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--data-dir"):
        await upkeep.backup(settings_of(tmp_path / "nothing"), tmp_path / "convo.backup")


async def test_nothing_is_restored_under_a_convo_that_serves(tmp_path: Path) -> None:
    with identity.claim(tmp_path), pytest.raises(Refused, match="in use"):
        await upkeep.restore(settings_of(tmp_path), tmp_path / "convo.backup")
