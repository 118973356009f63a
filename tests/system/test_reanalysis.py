from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.reanalysis import measure


@pytest.mark.long
def test_a_part_is_found_again_beside_live_work_though_the_command_is_killed_twice(tmp_path: Path) -> None:
    found = measure(tmp_path, count=60, per_second=5, alone_seconds=2.0)
    assert found.faults == []
    assert found.promoted == 60
    assert len(found.killed_after) == 2
    assert found.live_beside > 0
