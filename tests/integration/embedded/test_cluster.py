from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from convo.embedded import cluster
from convo.embedded.location import Location
from convo.embedded.server import open_embedded, size_bytes
from convo.errors import Refused
from tests.support.asking import ask


async def test_a_folder_of_another_major_version_is_refused_by_name_and_left_alone(data_dir: Path) -> None:
    folder = data_dir / "postgres"
    async with open_embedded(data_dir):
        pass
    (folder / "PG_VERSION").write_text("15\n")
    before = size_bytes(folder)
    with pytest.raises(Refused, match=r"holds data of PostgreSQL 15, and the programs at hand .* version 1[6-9]"):
        async with open_embedded(data_dir):
            pytest.fail("it was taken")
    assert size_bytes(folder) == before


async def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match="no PostgreSQL data"):
        async with open_embedded(data_dir):
            pytest.fail("it was taken")
    assert (data_dir / "postgres" / "thesis.txt").read_text() == "years of work"


async def test_a_folder_that_was_cut_short_in_the_making_is_made_again(data_dir: Path) -> None:
    halves: list[Path] = []

    async def cut_short(_location: Location, _folder: Path) -> None:
        # initdb is through and the folder is not its user's yet: all that a look at the folder could find is there.
        halves.extend(data_dir.glob("*/PG_VERSION"))
        raise Refused("cut short")

    with mock.patch.object(cluster, "give_to_user", cut_short), pytest.raises(Refused, match="cut short"):
        async with open_embedded(data_dir):
            pytest.fail("it was taken")
    assert [half.parent.name for half in halves] == ["postgres.unfinished"]
    assert not (data_dir / "postgres").exists()
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT current_database()") == ["convo"]
    assert not (data_dir / "postgres.unfinished").exists()
