from __future__ import annotations

import json
from typing import Any, cast
from unittest.mock import Mock

import pytest
import trio

from convo.settings import Settings
from convo.web.app import make_app
from convo.web.description.routes import ROUTES
from tests.support.doors import accept_route, made_api


async def test_the_app_serves_exactly_the_routes_of_the_catalogue() -> None:
    app = make_app(made_api(Settings(), accept_route(Settings(), Mock())))
    served = {(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    described = {(route.rule, route.method.upper()) for route in ROUTES}
    # Where a path answers GET, it answers HEAD in the same way.
    assert served == described | {(rule, "HEAD") for rule, method in described if method == "GET"}


NO_PATHS = (
    "ftp://[x/livez", "ftp://x/livez", "http://[x/livez", "http://x:y/livez", "http://u@x/livez", "http:///livez",
    "file:///livez",
)  # fmt: skip


@pytest.mark.parametrize(
    ("target", "raw"),
    [(target, raw) for target in NO_PATHS for raw in (True, False)]
    + [(target, True) for target in ("/%FF", "/livez%FF", "/v1/conversations/%FF")],
)
async def test_a_target_that_is_no_path_is_400_under_any_server(target: str, *, raw: bool) -> None:
    """A server may pass anything on as a path, and may leave out how it was sent."""
    api = made_api(Settings(), accept_route(Settings(), Mock()))
    reading: Any = api.reading
    reading.reads.until_sent = lambda finishing: finishing
    app = make_app(api)
    sent: list[Any] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": target, "query_string": b"", "root_path": "", "headers": [(b"host", b"x")], "server": ("x", 1),
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    if raw:
        scope["raw_path"] = target.encode()

    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        if asked > 1:
            await trio.sleep_forever()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    with trio.fail_after(5):
        await app(cast("Any", scope), receive, send)
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["code"] == "bad_request"
