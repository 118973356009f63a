from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from msgspec import structs

from convo.alerts.keeper import Shown
from convo.errors import DatabaseUnavailable, NotFound
from convo.observe import metrics
from convo.resilience.dependency import Dependency
from convo.settings import CallSettings, PageSettings
from convo.store.shared_figures import ProcessFigures, SharedFigures
from convo.web import figures
from convo.web.figures import InstallationFigures
from tests.support.making import told

FOUND = SharedFigures(
    at=100.0,
    ready=7,
    delayed=2,
    parked=1,
    leased=3,
    dead=4,
    oldest_seconds=1.5,
    accepted=50,
    ended=40,
    processes=(ProcessFigures(name="p.1", host="h", version="1", seen_seconds=0.1, leads=True, workers=8, working=3),),
)


class Shared:
    """Answers in the place of the database; in each second ten jobs are accepted and twelve end."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[float] = []
        self.away = False
        patch.setattr(figures, "read_shared_figures", self._read)

    async def _read(self, _postgres: Any) -> SharedFigures:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        self.asked.append(now)
        if self.away:
            raise DatabaseUnavailable("away")
        return structs.replace(FOUND, at=now, accepted=round(10 * now), ended=round(12 * now))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    return Shared(monkeypatch)


@pytest.fixture
def llm() -> Dependency:
    return Dependency("llm", CallSettings(concurrency=2))


def made(*dependencies: Dependency, seconds: float = 2.0) -> InstallationFigures:
    alerts = Mock()
    alerts.show.return_value = Shown(active=(), recent=(), leads=True, sinks=())
    return InstallationFigures(PageSettings(sample_seconds=seconds), Mock(), alerts, dependencies, lambda: "p.1")


async def shown(of: InstallationFigures, since: int = 0, *, whole: bool = True) -> Any:
    answer = await of.show(since, whole=whole)
    assert answer.status == 200
    return json.loads(answer.body)


async def test_twenty_viewers_cost_one_query_a_period(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared
) -> None:
    taken = made()
    nursery.start_soon(taken.run)
    seen: list[int] = []

    async def view() -> None:
        since = 0
        for pause in (0.5, *[2.0] * 9):
            answer = await shown(taken, since)
            seen.extend(sample["seq"] for sample in answer["samples"])
            since = max([since, *(sample["seq"] for sample in answer["samples"])])
            await trio.sleep(pause)

    started = trio.current_time()
    async with trio.open_nursery() as viewers:
        for _ in range(20):
            viewers.start_soon(view)
    assert shared.asked == [started + 2 * n for n in range(10)]
    assert sorted(seen) == sorted([*range(1, 10)] * 20)


async def test_nothing_is_read_while_nobody_looks(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared
) -> None:
    taken = made()
    nursery.start_soon(taken.run)
    await trio.sleep(100)
    assert shared.asked == []
    await shown(taken)
    await trio.sleep(100)
    assert len(shared.asked) == 8
    # Whoever comes back gets new figures, and no rate over the pause.
    answer = await shown(taken, since=7)
    assert [(one["seq"], one["accepts_per_s"], one["done_per_s"]) for one in answer["samples"]] == [
        (8, 0.0, 12.0),
        (9, None, None),
    ]


async def test_samples_are_taken_while_a_live_stream_is_open_and_are_made_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared
) -> None:
    taken, told = made(), list[int]()
    taken._sampled_one = lambda: told.append(taken.seq)
    nursery.start_soon(taken.run)
    await trio.sleep(10)
    assert (taken.seq, told) == (0, [])
    for _ in range(20):
        taken.join()
    await trio.sleep(60.5)
    assert len(shared.asked) == 31
    assert told == list(range(1, 32))
    newest = taken.behind(30)
    assert newest is taken.behind(30)
    assert [one["seq"] for one in json.loads(newest)["samples"]] == [31]
    for seen, first in ((0, 1), (12, 13), (99, 1)):
        assert json.loads(taken.behind(seen))["samples"][0]["seq"] == first
    for _ in range(20):
        taken.leave()
    await trio.sleep(60)
    assert len(shared.asked) <= 32
    # Nothing new: a viewer that comes now waits for the next sample.
    assert taken.seq == 0


async def test_a_sample_is_kept_for_ten_minutes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared
) -> None:
    taken = made()
    nursery.start_soon(taken.run)
    for _ in range(100):
        await shown(taken)
        await trio.sleep(10)
    await trio.sleep(0.5)
    samples = (await shown(taken))["samples"]
    assert [samples[0]["seq"], samples[-1]["seq"], len(samples)] == [201, 501, 301]


async def test_the_answer_has_what_all_share_and_what_is_this_process(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared, llm: Dependency
) -> None:
    taken = made(llm)
    nursery.start_soon(taken.run)
    await shown(taken)
    async with llm.slot():
        metrics.accept_seconds.observe(0.004)
        metrics.wait_seconds.labels("db.accept").observe(0.002)
        await trio.sleep(2.5)
        answer = await shown(taken, since=1)
    assert (answer["whole"], answer["process"], answer["seconds"]) == (True, "p.1", 2.0)
    assert answer["queue"] == {"ready": 7, "delayed": 2, "parked": 1, "leased": 3, "dead": 4}
    assert (answer["oldest_seconds"], answer["shared_age_seconds"]) == (1.5, 0.0)
    assert answer["processes"][0]["workers"] == 8
    # Seven are ready, and two more end in a second than come.
    assert answer["forecast"] == {"drained_in_seconds": 3.5}
    assert answer["dependencies"] == [
        {"name": "llm", "state": "closed", "reason": "", "concurrency": 2, "in_flight": 1, "waiting": 0}
    ]
    assert [wait["name"] for wait in answer["waits"]] == ["db.accept"]
    (sample,) = answer["samples"]
    assert (sample["seq"], sample["accepts_per_s"], sample["accepted_per_s"], sample["done_per_s"]) == (2, 0.5, 10, 12)
    assert (sample["queue"], sample["oldest_s"], sample["in_flight_calls"]) == (10, 1.5, 1)


async def test_while_the_database_is_away_this_process_is_still_shown(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared
) -> None:
    taken = made()
    shared.away = True
    nursery.start_soon(taken.run)
    with told() as names:
        answer = await shown(taken)
    assert names == ["figures_failed"]
    assert (answer["queue"], answer["shared_age_seconds"], answer["processes"]) == (None, None, [])
    assert answer["samples"][0]["queue"] is None
    shared.away = False
    await trio.sleep(2.5)
    assert (await shown(taken))["queue"]["ready"] == 7
    shared.away = True
    await trio.sleep(4)
    answer = await shown(taken)
    assert (answer["queue"]["ready"], answer["shared_age_seconds"]) == (7, 4.0)
    assert answer["samples"][-1]["queue"] is None, "it is not known for that moment"
    taken.forget()
    await trio.sleep(2)
    assert (await shown(taken))["queue"] is None


async def test_a_number_of_another_process_gets_all_samples(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared
) -> None:
    taken = made()
    nursery.start_soon(taken.run)
    await shown(taken)
    await trio.sleep(2.5)
    assert (await shown(taken, since=2))["samples"] == []
    assert len((await shown(taken, since=4711))["samples"]) == 2


async def test_who_does_not_reach_all_gets_nothing_and_starts_nothing(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, shared: Shared, llm: Dependency
) -> None:
    taken = made(llm)
    nursery.start_soon(taken.run)
    answer = await shown(taken, whole=False)
    assert {name: value for name, value in answer.items() if value} == {
        "seconds": 2.0,
        "forecast": {"drained_in_seconds": None},
    }
    await trio.sleep(20)
    assert shared.asked == []


async def test_where_no_samples_are_taken_there_are_no_figures(shared: Shared) -> None:
    with pytest.raises(NotFound, match=r"page\.sample_seconds is 0"):
        await made(seconds=0.0).show(0, whole=True)
