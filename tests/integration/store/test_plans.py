"""A statement that reads touches as many buffers in a large database as in a small one, or is listed with why not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from convo.store import listing
from tests.conftest import _database
from tests.support.many_rows import SHAPES, Explained, Shape, connect, explained, fill
from tests.support.planned_statements import CASES, FEW, NOT_COMPARED, asked, statements

FACTOR = 2
FLOOR = 12
"""The buffers of two look-ups: below, one level more of an index is more than the factor."""
Found = Mapping[str, Explained]


def test_every_statement_that_reads_is_compared_or_listed_with_the_reason() -> None:
    found = set(statements())
    assert found - CASES.keys() - NOT_COMPARED.keys() == set(), "give them values in CASES, or a reason in NOT_COMPARED"
    assert (CASES.keys() | NOT_COMPARED.keys()) - found == set(), "these are no longer in the product"
    assert CASES.keys() & NOT_COMPARED.keys() == set()
    assert len(CASES) >= 60


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2_000, 20_000), id="twenty_thousand"),
        pytest.param((10_000, 1_000_000), id="million", marks=pytest.mark.long),
    ],
)
def sizes(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The rows of the small database and of the large one."""
    found: tuple[int, int] = request.param
    return found


async def measured(url: str, rows: int, shape: Shape, *, small: bool) -> Found:
    connection = await connect(url)
    try:
        sample = await fill(connection, rows, shape)
        if small:
            # A table of a few pages is read whole: it would touch more than the indexes do, and hide what grows.
            for method in ("seqscan", "hashjoin", "mergejoin"):
                await connection.execute(f"SET enable_{method} = off")
        return {
            name: await explained(connection, query, values)
            for name, (query, values) in asked(sample, limit=10).items()
        }
    finally:
        connection.terminate()


@pytest.fixture(scope="module", params=SHAPES)
def both(
    request: pytest.FixtureRequest, postgres_url: str, template: str, sizes: tuple[int, int]
) -> Iterator[tuple[Found, Found]]:
    """What each statement costs in the small database and in the large one, both of the same shape."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
        patched.setattr(listing, "LOOKED_AT_MAX", 20)
        found: list[Any] = []
        for rows in sizes:
            url = stack.enter_context(_database(postgres_url, template))
            found.append(asyncio.run(measured(url, rows, request.param, small=rows == sizes[0])))
        yield found[0], found[1]


def test_what_is_counted_up_to_a_limit_reads_no_more_rows_than_that(both: tuple[Found, Found]) -> None:
    # Of an index alone a page holds hundreds of them, so at these sizes its buffers do not show it.
    small, large = (found["convo.store.jobs.counts._COUNT"] for found in both)
    assert large.rows <= FACTOR * max(small.rows, FEW), large.plan


def test_a_statement_touches_as_many_buffers_in_a_larger_database(both: tuple[Found, Found]) -> None:
    small, large = both
    grown = {
        name: (small[name].buffers, one.buffers)
        for name, one in large.items()
        if one.buffers > FACTOR * max(small[name].buffers, FLOOR)
    }
    for name in grown:
        print(name, large[name].plan)
    assert grown == {}
