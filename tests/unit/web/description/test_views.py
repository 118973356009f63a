from __future__ import annotations

from convo.web.description import views


def test_links_are_percent_encoded() -> None:
    made = views.links("số 1?#%")
    assert made.self == "/v1/conversations/s%E1%BB%91%201%3F%23%25"
    assert made.log == made.self + "/log"
