from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import structlog

from convo.embedded import orphans
from convo.embedded.server import open_embedded
from tests.support.asking import ask


async def test_an_orphan_is_replaced_and_its_commits_are_kept(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        first = orphans.recorded_pid(running.data_folder)
        assert first is not None
        # As after a kill -9 where no wish to die with us reached the server: it runs on, and we start anew.
        with structlog.testing.capture_logs() as told:
            async with open_embedded(data_dir) as again:
                assert orphans.recorded_pid(again.data_folder) != first
                assert await ask(again.dsn, "SELECT n FROM kept") == [7]
        assert told[0]["replaced_pid"] == first


async def test_a_pid_that_went_to_a_stranger_is_left_alone_and_does_not_stop_us(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        pass
    owner = running.data_folder.stat()
    stranger = subprocess.Popen(["/bin/sleep", "1000"], cwd="/", user=owner.st_uid, group=owner.st_gid)  # noqa: ASYNC220
    try:
        locks = [running.data_folder / "postmaster.pid", running.socket_folder / ".s.PGSQL.5432.lock"]
        for lock in locks:
            lock.parent.mkdir(exist_ok=True)
            lock.write_text(f"{stranger.pid}\n{running.data_folder}\n")
        async with open_embedded(data_dir) as again:
            assert await ask(again.dsn, "SELECT 1") == [1]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_backends_whose_postmaster_was_killed_do_not_stop_the_next_start(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        pid = orphans.recorded_pid(running.data_folder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await running.postmaster.gone(0.01)
        async with open_embedded(data_dir) as again:
            assert await ask(again.dsn, "SELECT 1") == [1]
