from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trio

from scripts.bench.objects_clients import Clients
from tests.torture.load import body
from tests.torture.world import Convo

LOG = body("talk", "")["conversation_log"]


def clients_of(folder: Path) -> Clients:
    """Clients of a convo that is up, who had one conversation accepted: ``talk``."""
    clients = Clients(Convo(folder, {}))
    clients.starting = False
    clients.accepted["talk"] = body("talk", clients.users[0])
    return clients


def refused(code: str = "logs_unavailable", **headers: str) -> httpx.Response:
    return httpx.Response(503, json={"code": code}, headers=headers)


async def counted(clients: Clients, view: httpx.Response, log: Callable[[], httpx.Response]) -> list[str]:
    def answer(request: httpx.Request) -> httpx.Response:
        return log() if request.url.path.endswith("/log") else view

    async with clients.opened(httpx.MockTransport(answer)):
        odd, _ = await clients.read_all()
    return [what for what, names in odd.items() if names]


DONE = httpx.Response(200, json={"state": "done"})
GONE = httpx.Response(410, json={"code": "erased"})


@pytest.mark.parametrize(
    ("view", "log", "wrong"),
    [
        (DONE, httpx.Response(200, json=LOG), []),
        (DONE, httpx.Response(200, json=LOG[1:]), ["logs that are not what was sent"]),
        (DONE, refused(), ["logs that are not what was sent"]),
        (httpx.Response(200, json={"state": "dead"}), httpx.Response(200, json=LOG), ["not done"]),
        (
            httpx.Response(404, json={"code": "not_found"}),
            httpx.Response(404, json={"code": "not_found"}),
            ["accepted, and lost", "not done", "logs that are not what was sent"],
        ),
    ],
)
async def test_the_count_finds_what_is_lost_not_done_or_another(
    tmp_path: Path, view: httpx.Response, log: httpx.Response, wrong: list[str]
) -> None:
    assert await counted(clients_of(tmp_path), view, lambda: log) == wrong


@pytest.mark.parametrize(("log", "wrong"), [(GONE, []), (httpx.Response(200, json=LOG), ["erased, and there"])])
async def test_the_count_finds_what_is_erased_and_can_be_read(
    tmp_path: Path, log: httpx.Response, wrong: list[str]
) -> None:
    clients = clients_of(tmp_path)
    clients.erased.add(clients.users[0])
    assert await counted(clients, GONE, lambda: log) == wrong


async def test_the_count_asks_again_where_it_was_refused_for_a_while_and_says_so(tmp_path: Path) -> None:
    clients = clients_of(tmp_path)
    answers = iter([refused(**{"Retry-After": "0"}), httpx.Response(200, json=LOG)])
    assert await counted(clients, DONE, lambda: next(answers)) == []
    assert clients.again.total() == 1


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (httpx.Response(200, json=LOG), True),
        (refused(**{"Retry-After": "1"}), True),
        (refused(), False),
        (refused("unavailable", **{"Retry-After": "1"}), False),
        (httpx.Response(500, json={"code": "wrong_log"}), False),
        (httpx.Response(200, json=[]), False),
    ],
)
async def test_a_read_of_an_old_log_is_the_log_or_a_refusal_that_says_when_to_come_again(
    tmp_path: Path, answer: httpx.Response, *, right: bool
) -> None:
    clients = clients_of(tmp_path)
    with trio.move_on_after(0.3):
        async with clients.opened(httpx.MockTransport(lambda _: answer)):
            await clients.read(["talk"])
    assert clients.reads.total() >= 1
    assert (not clients.odd_reads) == right
