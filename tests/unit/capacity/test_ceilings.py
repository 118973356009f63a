from __future__ import annotations

from convo.capacity.ceilings import find_ceiling
from convo.capacity.processors import Work
from convo.capacity.resources import Resource


def resource(name: str, limits: Work, low: float, high: float) -> Resource:
    return Resource(name=name, limits=limits, per_second=(low * high) ** 0.5, low=low, high=high, formula="")


SURE = resource("interpreter", "accepts", 900.0, 1_100.0)
UNSURE = resource("committer", "accepts", 500.0, 4_500.0)
WORKERS = resource("workers", "analyses", 30.0, 33.0)


def test_what_is_accepted_first_also_ends_what_is_analysed() -> None:
    found = find_ceiling([SURE, WORKERS], ("analyses", "both"), 20.0)
    assert found is not None
    assert (found.bottleneck, found.low, found.high, found.sharpen) == ("workers", 30.0, 33.0, "")
    many = resource("workers", "analyses", 5_000.0, 5_500.0)
    slow = find_ceiling([SURE, many], ("analyses", "both"), 20.0)
    assert slow is not None
    assert slow.bottleneck == "interpreter"
    assert find_ceiling([SURE], ("analyses", "both"), 20.0) is None


def test_a_resource_that_may_be_the_least_widens_the_range() -> None:
    found = find_ceiling([SURE, UNSURE], ("accepts",), 900.0)
    assert found is not None
    assert (found.bottleneck, found.low, found.high) == ("interpreter", 500.0, 1_100.0)
    assert found.sharpen.startswith("a minute at a higher load")


def test_a_range_says_what_would_make_it_a_figure() -> None:
    little = find_ceiling([UNSURE], ("accepts",), 90.0)
    assert little is not None
    assert little.sharpen == "the highest load was 90.0/s; a minute at 500/s or more says where the end is"
    shared = find_ceiling([UNSURE], ("accepts",), 900.0, slowed=2.0)
    assert shared is not None
    assert shared.sharpen.startswith("others on the machine want its processors")
    together = find_ceiling([UNSURE], ("accepts",), 900.0, apart=False)
    assert together is not None
    assert together.sharpen.startswith("accepts came with one analysis each")
