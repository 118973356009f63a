"""All routes, behind both doors and behind each gateway, in all spellings of their paths.

A spelling that one of them takes for another path is how a request gets past the check that was made for the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from convo.commands.cli import main
from convo.web.description.routes import ROUTES, Route
from tests.support.doors import END
from tests.support.gateways import haproxy, nginx
from tests.support.ports import free_port
from tests.support.running import Running, ended, running
from tests.support.targets import spellings

HERE = "localhost:30020"
EVIL = "https://evil.example"
VALUES = {
    "{conversation_id}": "walk-1",
    "{user_id}": "user-1",
    "{webhook_id}": "wh_1",
    "{version}": "0123456789abcdef",
    "{asset}": "style.css",
}
# One that needs no key is 200 where it means the same: then each of its other spellings must lead nowhere.
NOWHERE = {400, 404}
# An id may have any letters: such a path is another conversation, and a POST to a GET is not accepted.
ANOTHER_ID = {404, 405, 422}

Front = tuple[str, str]
"""The name of a door, and the address of it or of the gateway before it."""


Gateway = Callable[[Path, str], AbstractContextManager[str]]
# Each route is walked in a hundred spellings at both doors. A gateway has one rule for all: there each fourth goes.
SOME = ROUTES[::4]
IN_FRONT = pytest.mark.parametrize(
    ("gateway", "routes"),
    [
        pytest.param(None, ROUTES, id="none"),
        pytest.param(nginx, SOME, id="nginx"),
        pytest.param(haproxy, SOME, id="haproxy", marks=pytest.mark.long),
        pytest.param(nginx, ROUTES, id="nginx, all", marks=pytest.mark.long),
        pytest.param(haproxy, ROUTES, id="haproxy, all", marks=pytest.mark.long),
    ],
)


@contextmanager
def fronts(
    database: str, folder: Path, gateway: Gateway | None, settings: Mapping[str, str]
) -> Iterator[tuple[Running, list[Front]]]:
    stock = free_port()
    # A stream would have no end: there is room for none.
    whole = {"jobs.workers": "0", "events.streams_max": "0", **settings}
    program = ("tests.support.both_doors", str(stock))
    with ExitStack() as stack:
        convo = stack.enter_context(running(folder / "data", database, whole, program=program))
        found = [("ours", urlsplit(convo.url).netloc), ("stock", f"127.0.0.1:{stock}")]
        if gateway is not None:
            urls = [stack.enter_context(gateway(folder / door, address)) for door, address in found]
            found = [(door, urlsplit(url).netloc) for (door, _), url in zip(found, urls, strict=True)]
        yield convo, found


Ask = Callable[..., int]
"""Sends a method and a target as they stand, perhaps with header fields; returns the status."""


Walk = Callable[[Ask], Iterator[str]]
"""Yields what is wrong behind one front."""


def walked(found: list[Front], walk: Walk) -> list[str]:
    """Walk through all fronts side by side; return what is wrong."""

    def one(front: Front) -> list[str]:
        connection = HTTPConnection(front[1], timeout=20)

        def ask(method: str, target: str, fields: Mapping[str, str] = {}) -> int:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"Host": HERE, "Content-Length": "0"} | dict(fields)).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            answer.read()
            return answer.status

        with closing(connection):
            return [f"{front[0]}: {wrong}" for wrong in walk(ask)]

    with ThreadPoolExecutor(len(found)) as pool:
        return [wrong for some in pool.map(one, found) for wrong in some]


def path_of(route: Route) -> str:
    path = route.path.replace("{topic}", "ladder")
    for name, value in VALUES.items():
        path = path.replace(name, value)
    return path


def others(route: Route) -> list[str]:
    """Return the other spellings of a route's path, with ids in their places."""
    found = spellings(route.path.replace("{topic}", "ladder"))
    for name, value in VALUES.items():
        found = [one.replace(name, value) for one in found]
    return found


def expected(route: Route) -> set[int]:
    return NOWHERE | (
        {401, 405, 422} if any(word in route.path for word in ("conversations", "users", "webhooks")) else set()
    )


def without_a_key(routes: Sequence[Route], ask: Ask) -> Iterator[str]:
    for route in routes:
        method = route.method.upper()
        for target in (path_of(route), f"http://{HERE}{path_of(route)}"):
            status = ask(method, target)
            # A sign-in shows its key in a body, which the walk does not send.
            wants_key = bool(route.scope) or (route.signs_in and method != "POST")
            if (status == 401) != wants_key or status in NOWHERE:
                yield f"{method} {target}: {status}"
        for target in others(route):
            status = ask(method, target)
            if status not in expected(route):
                yield f"{method} {target}: {status}"


def with_every_key(authorization: str) -> Walk:
    # Last what erases, and the user first: of what is gone by then it is still said that it was erased.
    routes = sorted(ROUTES, key=lambda route: (route.method == "delete", "conversation_id" in route.path))

    def walk(ask: Ask) -> Iterator[str]:
        fields = {"Authorization": authorization}
        for route in routes:
            method = route.method.upper()
            # There is no such endpoint, and without types of events no stream.
            known = "webhook_id" not in route.path and route.name != "stream_events"
            refusals = {400, 401, 403, 405, *([404] if known else [])}
            # A session is a browser's, whose requests have no such header.
            if not route.signs_in and (status := ask(method, path_of(route), fields)) in refusals:
                yield f"{method} {path_of(route)}: {status}"
            for target in others(route):
                status = ask(method, target, fields)
                # Of another endpoint's id what was sent is looked at first, and the walk sends nothing.
                unread = {415, 422} if route.takes is not None else set()
                if status not in NOWHERE | (expected(route) & ANOTHER_ID) | unread:
                    yield f"{method} {target}: {status}"

    return walk


def from_a_page(routes: Sequence[Route], ask: Ask) -> Iterator[str]:
    for route in routes:
        method = route.method.upper()
        for target in (path_of(route), f"http://{HERE}{path_of(route)}"):
            if ask(method, target) == 403:
                yield f"{method} {target}: ours is 403"
            for fields in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}):
                if (status := ask(method, target, fields)) != 403:
                    yield f"{method} {target} {fields}: {status}"
        if (status := ask(method, path_of(route), {"Host": "evil.example"})) != 403:
            yield f"{method} {path_of(route)} by another name: {status}"


@IN_FRONT
def test_what_needs_a_key_needs_it_in_every_spelling(
    gateway: Gateway | None, routes: Sequence[Route], database: str, tmp_path: Path
) -> None:
    with fronts(database, tmp_path, gateway, {"auth.keys": "true"}) as (_, found):
        assert walked(found, partial(without_a_key, routes)) == []


@pytest.mark.long
def test_with_every_key_each_path_has_one_spelling(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVO_DATABASE__URL", database)
    with fronts(database, tmp_path, None, {"auth.keys": "true"}) as (convo, found):
        assert main(["key", "new", "walker", "--scopes", "read,write,admin,erase,webhooks"]) == 0
        authorization = f"Bearer {capsys.readouterr().out.split()[0]}"
        stored = httpx.post(f"{convo.url}{END}", json=ended("walk-1"), headers={"Authorization": authorization})
        assert stored.status_code == 202
        assert walked(found, with_every_key(authorization)) == []


@IN_FRONT
def test_without_keys_no_page_gets_in_by_any_door(
    gateway: Gateway | None, routes: Sequence[Route], database: str, tmp_path: Path
) -> None:
    with fronts(database, tmp_path, gateway, {}) as (convo, found):
        assert httpx.post(f"{convo.url}{END}", json=ended("walk-1")).status_code == 202
        assert walked(found, partial(from_a_page, routes)) == []
