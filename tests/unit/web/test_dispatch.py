from __future__ import annotations

from unittest.mock import Mock

from convo.settings import Settings
from convo.web.description.routes import ROUTES
from convo.web.dispatch import direct_targets, route_functions
from tests.support.doors import accept_route, made_api


async def test_every_route_has_one_function_and_no_function_is_without_a_route() -> None:
    api = made_api(Settings(), accept_route(Settings(), Mock()))
    assert route_functions(api).keys() == {route.name for route in ROUTES}


async def test_a_connection_calls_the_direct_routes_and_no_other() -> None:
    targets = direct_targets(made_api(Settings(), accept_route(Settings(), Mock())))
    assert {(path.decode(), target.path, target.method) for path, target in targets.items()} == {
        (route.path, route.path, route.method.upper()) for route in ROUTES if route.direct
    }


async def test_the_accept_route_alone_takes_no_turn() -> None:
    targets = direct_targets(made_api(Settings(), accept_route(Settings(), Mock())))
    assert {target.path for target in targets.values() if not target.takes_turns} == {"/v1/conversations/end"}
