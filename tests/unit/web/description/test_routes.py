from __future__ import annotations

import re

import pytest

from convo.web.description.routes import ROUTES, Route


def test_no_two_routes_have_the_same_name_or_the_same_path_and_method() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_route_describes_every_value_of_its_path(route: Route) -> None:
    described = {parameter.name for parameter in route.parameters if parameter.where == "path"}
    assert described == set(re.findall(r"{(\w+)}", route.path))


@pytest.mark.parametrize("route", [route for route in ROUTES if route.direct], ids=lambda route: route.name)
def test_a_route_that_is_called_directly_has_one_target(route: Route) -> None:
    # A connection looks its target up as bytes. (On the operations' address it asks the app alone.)
    assert route.rule == route.path


def test_what_the_database_answers_needs_a_key() -> None:
    assert all(route.scope or route.signs_in for route in ROUTES if route.needs_database)


def test_what_anybody_may_ask_all_the_time_is_answered_past_the_framework() -> None:
    assert {"live", "ready"} <= {route.name for route in ROUTES if route.direct}
