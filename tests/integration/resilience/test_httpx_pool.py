from __future__ import annotations

import random
from functools import partial

import pytest
import trio

from convo.analysis.llm import Model
from convo.settings import LlmSettings
from tests.support import fakes
from tests.support.fakes import FakeServer, conversation_of

# httpx and httpcore leave generators of their own to the garbage collector when a call ends early.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")

CALLERS = 16
CANCELLATIONS_EACH = 200
CONNECTIONS = 4


async def test_thousands_of_cancelled_calls_lose_no_connection() -> None:
    async with fakes.open_model() as server:
        settings = LlmSettings(base_url=server.url, model="m", attempts=1, concurrency=CONNECTIONS)
        async with Model(settings) as model:
            server.always = fakes.slow("0.003")
            await _cancel_at_random(model)
            server.always = fakes.stuck
            await _see_all_connections_at_work(model, server)


async def _cancel_at_random(model: Model) -> None:
    dice = random.Random(1)
    async with trio.open_nursery() as nursery:
        for number in range(CALLERS):
            nursery.start_soon(_call_and_cancel, model, number, dice)


async def _call_and_cancel(model: Model, number: int, dice: random.Random) -> None:
    talk = conversation_of("why?", conversation_id=f"talk-{number}")
    for _ in range(CANCELLATIONS_EACH):
        with trio.move_on_after(dice.uniform(0, 0.02)):
            while True:
                await model.emotion(talk)


async def _see_all_connections_at_work(model: Model, server: FakeServer) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(partial(model.emotion, conversation_of("who is there?")))
        with trio.fail_after(10):
            # By their words: the server may read calls that were cancelled only now.
            await server.until(lambda now: sum(b"who is there?" in call.body for call in now.calls) == CONNECTIONS)
        nursery.cancel_scope.cancel()
