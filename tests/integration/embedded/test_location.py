from __future__ import annotations

import os
from pathlib import Path

import pytest

from convo.embedded import location
from convo.embedded.programs import User
from convo.embedded.server import open_embedded, running_dsn
from tests.support.asking import ask


async def test_a_folder_with_a_long_path_or_odd_characters_gets_its_socket_elsewhere(data_dir: Path) -> None:
    far = data_dir / ("deep" * 20) / "a, b%20ü"
    async with open_embedded(far) as running:
        assert await ask(running.dsn, "SELECT 1") == [1]
        assert running.data_folder == far / "postgres"
        assert len(str(running.socket_folder)) < 60
        assert running_dsn(far) == running.dsn


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_as_root_it_runs_as_the_owner_of_the_data(data_dir: Path) -> None:
    async with open_embedded(data_dir):
        pass
    location._chown_all(data_dir / "postgres", User(12345, 12345))
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT 1") == [1]
        assert running.data_folder.stat().st_uid == 12345
