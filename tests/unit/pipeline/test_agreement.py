from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.errors import DatabaseUnavailable
from convo.pipeline.agreement import Agreement, described
from convo.settings import JobsSettings, Settings
from convo.store import process_settings
from convo.store.process_settings import Comparison, Difference
from tests.support.making import told

SETTINGS = Settings(jobs=JobsSettings(lease_seconds=30, heartbeat_seconds=5))
APART = Difference(key="fairness.key", here="bot", there="user", process="there/two")
SAID = "fairness.key is bot here and user in there/two: until they agree this process takes no jobs"


class Others:
    """Stands for the table of the processes' settings: what the next comparisons find."""

    def __init__(self) -> None:
        self.found = Comparison(takes_jobs=True)
        self.away = False
        self.changes: list[str] = []

    async def compare(self, *_: Any) -> Comparison:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise DatabaseUnavailable("away")
        return self.found


@asynccontextmanager
async def comparing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Agreement, Others]]:
    others = Others()
    monkeypatch.setattr(process_settings, "compare", others.compare)
    agreement = Agreement(cast("Any", None), SETTINGS, lambda: "here/one", others.changes.append)
    async with trio.open_nursery() as nursery:
        assert not agreement.takes_jobs()
        nursery.start_soon(agreement.run)
        await wait_all_tasks_blocked()
        yield agreement, others
        nursery.cancel_scope.cancel()


async def test_a_process_takes_jobs_from_the_first_comparison_on(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with comparing(monkeypatch) as (agreement, others):
        assert agreement.takes_jobs()
        await trio.sleep(60)
        assert agreement.takes_jobs()
        assert others.changes == [""]


async def test_a_difference_is_logged_once_and_ends_at_the_heartbeat_after_its_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with told() as names:
        async with comparing(monkeypatch) as (agreement, others):
            others.found = Comparison(takes_jobs=False, differences=(APART,))
            await trio.sleep(16)
            assert not agreement.takes_jobs()
            others.found = Comparison(takes_jobs=True)
            await trio.sleep(5)
            assert agreement.takes_jobs()
            assert others.changes == ["", SAID, ""]
    assert names == ["settings_disagree", "settings_agree"]


async def test_a_process_that_cannot_compare_takes_jobs_until_its_lease_ends(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with comparing(monkeypatch) as (agreement, others):
        others.away = True
        await trio.sleep(29.9)
        assert agreement.takes_jobs()
        await trio.sleep(0.2)
        assert not agreement.takes_jobs()
        others.away = False
        await trio.sleep(5)
        assert agreement.takes_jobs()


def test_many_differences_are_counted_and_only_ten_of_them_named() -> None:
    text = described([APART] * 12, workers=0)
    assert text.count("fairness.key is bot here") == 10
    assert text.endswith("; and 2 more: this process accepts with its own value")
