from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from scripts.bench import machine, packed
from tests.support.running import ended, running


@pytest.mark.parametrize(("kind", "refused"), [("items", "422"), pytest.param("keys", "413", marks=pytest.mark.long)])
def test_two_hundred_bodies_that_become_megabytes_take_less_than_100_mb(
    kind: str, refused: str, database: str, tmp_path: Path
) -> None:
    bodies = packed.packed_bodies(kind, 200)
    with running(tmp_path, database) as convo:
        httpx.post(f"{convo.url}/v1/conversations/end", json=ended("warm"), timeout=15).raise_for_status()
        before = machine.rss_bytes(convo.pid)
        machine.forget_peak(convo.pid)
        statuses = trio.run(packed.posted, convo.url, bodies)
        over_idle_mb = (machine.peak_rss_bytes(convo.pid) - before) / 1e6
    # The machine decides how many of them it reads within their time.
    assert statuses[refused] > 0
    assert statuses.keys() <= {refused, "503"}
    assert over_idle_mb < 100
