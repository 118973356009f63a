from __future__ import annotations

import signal
import stat
import subprocess
from pathlib import Path
from unittest import mock

import asyncpg
import pytest
import trio

from convo.embedded import orphans, postmaster
from convo.embedded.server import open_embedded
from convo.errors import Refused
from tests.support.asking import ask


async def test_settings_in_the_data_folder_cannot_turn_durability_off(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        pass
    with (running.data_folder / "postgresql.auto.conf").open("a") as file:
        file.write("fsync = off\n")
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SHOW fsync") == ["on"]


async def test_cancelling_in_the_making_leaves_no_process_and_no_data_folder(data_dir: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    with trio.CancelScope() as scope:

        async def cut_short(process: subprocess.Popen[bytes], _poll_seconds: float) -> int:
            # initdb's first child is at work.
            while not (data_dir / "postgres.unfinished" / "base").exists():  # noqa: ASYNC110
                await trio.sleep(0.01)
            scope.cancel()
            started.append(process)
            await trio.sleep_forever()
            raise AssertionError

        with mock.patch.object(postmaster, "ended", cut_short):
            async with open_embedded(data_dir):
                pytest.fail("it was taken")
    assert scope.cancelled_caught
    assert started[0].returncode == -signal.SIGKILL
    assert not (data_dir / "postgres").exists()
    with trio.fail_after(10):
        while await orphans._users(data_dir / "postgres.unfinished"):  # noqa: ASYNC110
            await trio.sleep(0.01)
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT 1") == [1]


async def test_a_server_that_does_not_start_is_quoted(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        pass
    (running.data_folder / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(Refused, match="no_such_setting"):
        async with open_embedded(data_dir):
            pytest.fail("it started")


async def test_the_log_holds_no_statement_and_no_value(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE one (secret text PRIMARY KEY)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await ask(running.dsn, *["INSERT INTO one VALUES ('my own words')"] * 2)
        assert "my own words" not in running.log_file.read_text()
        assert "duplicate key" in running.log_file.read_text()
        assert stat.S_IMODE(running.log_file.stat().st_mode) == 0o600
