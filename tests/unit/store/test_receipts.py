from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from convo.conversation.identity import id_hash
from convo.store.receipts import GivenReceipts


class KnowingPostgres:
    """A database that knows these conversations."""

    def __init__(self, *known: str) -> None:
        self.known = {id_hash(one) for one in known}
        self.asked: list[int] = []

    async def run(self, name: str, body: Any, *, begin: str) -> Any:
        return await body(self)

    async def fetchval(self, _: str) -> bytes:
        return b"the key of this installation"

    async def fetch(self, query: str, hashes: list[bytes]) -> list[dict[str, bytes]]:
        if "erasure" in query:
            return []
        self.asked.append(len(hashes))
        return [{"id_hash": one} for one in hashes if one in self.known]


async def missing(given: GivenReceipts, *known: str) -> tuple[int, list[str]]:
    return await given.missing(KnowingPostgres(*known))  # type: ignore[arg-type]


async def test_what_the_database_does_not_know_is_missing() -> None:
    given = GivenReceipts()
    given.note(["a", "b"], [1, 2])
    given.note(["c"], [])
    assert await missing(given, "b") == (3, ["a", "c"])


async def test_a_receipt_and_its_replay_are_one() -> None:
    given = GivenReceipts()
    given.note(["a"], [1])
    given.note(["a"], [])
    assert await missing(given) == (1, ["a"])


async def test_receipts_are_kept_for_ten_minutes(autojump_clock: MockClock) -> None:
    given = GivenReceipts()
    given.note(["old"], [1])
    await trio.sleep(599)
    given.note(["new"], [2])
    assert (await missing(given))[0] == 2
    await trio.sleep(2)
    given.note(["newer"], [3])
    assert await missing(given) == (2, ["new", "newer"])


async def test_a_hundred_thousand_are_kept_and_asked_for_a_thousand_at_a_time() -> None:
    given, postgres = GivenReceipts(), KnowingPostgres()
    for batch in range(1001):
        given.note([f"{batch}-{n}" for n in range(100)], [])
        await trio.lowlevel.checkpoint()
    asked, unknown = await given.missing(postgres)  # type: ignore[arg-type]
    assert (asked, unknown[0]) == (100_000, "1-0")
    assert postgres.asked == [1000] * 100


async def test_a_number_that_was_given_before_contradicts() -> None:
    seen: list[bool] = []
    given = GivenReceipts(lambda: seen.append(True))
    given.note(["a", "b"], [7, 8])
    given.note(["c"], [])
    given.note(["d"], [9])
    assert not seen
    given.note(["e"], [9])
    assert seen == [True]
    given.start_over()
    given.note(["f"], [1])
    assert seen == [True]


async def test_what_was_reported_is_not_missing_again() -> None:
    given = GivenReceipts()
    given.note(["a", "b"], [1, 2])
    given.start_over(["a"])
    assert await missing(given, "b") == (1, [])
