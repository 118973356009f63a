from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from convo.embedded import orphans
from convo.embedded.server import open_embedded
from tests.support.asking import ask

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user run PostgreSQL")
async def test_as_root_it_runs_as_somebody_else_below_a_closed_folder(data_dir: Path) -> None:
    data_dir.chmod(0o700)
    async with open_embedded(data_dir) as running:
        user = running.data_folder.stat().st_uid
        assert user not in (0, NOBODY)
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        pid = orphans.recorded_pid(running.data_folder)
        assert f"Uid:\t{user}\t{user}" in Path(f"/proc/{pid}/status").read_text()
        assert await orphans._users(running.data_folder) != []
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]
