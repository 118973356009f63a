from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import trio

from convo.embedded import orphans, server
from convo.embedded.server import keep_running, open_embedded, running_dsn, trim_log
from tests.support.asking import ask


async def test_a_receipt_stands_on_fsync_checksums_and_full_pages(data_dir: Path) -> None:
    names = ["fsync", "full_page_writes", "synchronous_commit", "data_checksums", "server_encoding"]
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, *(f"SHOW {name}" for name in names)) == ["on", "on", "on", "on", "UTF8"]


async def test_it_listens_on_a_socket_that_only_its_user_may_enter(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SHOW listen_addresses") == [""]
        assert stat.S_IMODE(running.socket_folder.stat().st_mode) == 0o700
        # postmaster.pid's sixth line is the first TCP address it listens on
        assert (running.data_folder / "postmaster.pid").read_text().splitlines()[5] == ""


async def test_the_data_are_there_at_the_next_start(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]


async def test_it_says_where_it_is_and_what_it_takes(data_dir: Path) -> None:
    assert running_dsn(data_dir) is None
    async with open_embedded(data_dir) as running:
        assert running_dsn(data_dir) == running.dsn
        assert running.data_folder == data_dir / "postgres"
        assert running.size_bytes > (running.data_folder / "global" / "pg_control").stat().st_size
        assert running.disk_free_bytes > 0
        assert (await ask(running.dsn, "SHOW server_version"))[0].split()[0] == running.version
    assert running_dsn(data_dir) is None
    assert not running.socket_folder.exists()


async def test_a_server_that_was_killed_is_started_again(data_dir: Path, nursery: trio.Nursery) -> None:
    async with open_embedded(data_dir) as running:
        first = orphans.recorded_pid(running.data_folder)
        assert first is not None
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        nursery.start_soon(keep_running, running)
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(30):
            while running_dsn(data_dir) is None or orphans.recorded_pid(running.data_folder) == first:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]
        nursery.cancel_scope.cancel()


def test_the_log_is_cut_back_to_its_last_part(tmp_path: Path) -> None:
    log = tmp_path / "postgres.log"
    trim_log(log)
    log.write_bytes(b"a" * (server._LOG_BYTES_MAX - 1) + b"z")
    trim_log(log)
    assert log.stat().st_size == server._LOG_BYTES_MAX
    with log.open("ab") as writer:
        writer.write(b"!")
        writer.flush()
        trim_log(log)
        writer.write(b"next")
    assert log.read_bytes() == b"next"
    assert (tmp_path / "postgres.log.old").read_bytes() == b"a" * (server._LOG_BYTES_KEPT - 2) + b"z!"
