from __future__ import annotations

import pytest

from convo.errors import Refused
from convo.store.server_settings import check_room, risks

DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


def server(max_connections: int, reserved: int = 3) -> dict[str, str]:
    return {"max_connections": str(max_connections), "superuser_reserved_connections": str(reserved)}


def test_the_old_services_pool_of_150_does_not_fit_its_server_of_105() -> None:
    with pytest.raises(Refused) as caught:
        check_room(server(105), 150)
    for word in ("database.pool_max = 150", "max_connections 105", "the 102 that the database takes", "turn"):
        assert word in caught.value.detail


@pytest.mark.parametrize(("pool_max", "fits"), [(88, True), (89, False)])
def test_the_connections_of_all_other_purposes_count_too(pool_max: int, *, fits: bool) -> None:
    if fits:
        check_room(server(105), pool_max)
    else:
        with pytest.raises(Refused):
            check_room(server(105), pool_max)


@pytest.mark.parametrize("setting", DURABLE)
def test_what_a_receipt_stands_on_is_a_risk_when_it_is_off(setting: str) -> None:
    assert risks(DURABLE) == {}
    found = risks({**DURABLE, setting: "off"})
    assert list(found) == [setting]
    assert f"{setting} = off" in found[setting]
