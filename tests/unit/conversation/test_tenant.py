from __future__ import annotations

import re

import pytest

from convo.conversation.identity import id_hash
from convo.conversation.tenant import (
    DEFAULT,
    LAST_KEY,
    NAME_PATTERN,
    WHOLE_DEFAULT,
    Reach,
    Tenant,
    hash_of_own,
    turn_bounds,
    turn_prefix,
)

ACME, BETA = Tenant(number=1, name="acme"), Tenant(number=2, name="beta")


def test_an_id_of_the_default_tenant_stands_as_it_did_before_there_were_tenants() -> None:
    assert DEFAULT.own("talk-1") == "talk-1"
    assert DEFAULT.id_hash("talk-1") == id_hash("talk-1") == hash_of_own("talk-1")


def test_the_same_id_of_two_tenants_is_two_things() -> None:
    tenants = (DEFAULT, ACME, BETA)
    ids = ("talk-1", "acme", "acme/talk-1", "beta")
    assert len({tenant.own(one) for tenant in tenants for one in ids}) == 12
    assert len({tenant.id_hash(one) for tenant in tenants for one in ids}) == 12
    assert {hash_of_own(tenant.own(one)) for tenant in tenants for one in ids} == {
        tenant.id_hash(one) for tenant in tenants for one in ids
    }


def test_a_reach_of_all_bots_has_each_and_one_of_some_has_those() -> None:
    assert WHOLE_DEFAULT.is_default
    assert WHOLE_DEFAULT.values == (0, None)
    assert WHOLE_DEFAULT.has_bot("pika")
    some = Reach(tenant=ACME, bots=("pika",))
    assert some.values == (1, ["pika"])
    assert (some.has_bot("pika"), some.has_bot("tom"), some.is_default) == (True, False, False)
    assert not Reach(bots=("pika",)).is_default
    assert not Reach(tenant=ACME).is_default


@pytest.mark.parametrize("key", ["user-1", " ", "Ünal", "\U0010ffff" * 255, "~"])
def test_keys_of_one_tenant_lie_between_its_bounds_and_no_others_do(key: str) -> None:
    keys = {number: turn_prefix(number) + key for number in (0, 1, 2, 32_767)}
    for number, own in keys.items():
        first, behind = (bound.encode() for bound in turn_bounds(own))
        assert [n for n, one in keys.items() if first <= one.encode() < behind] == [number]
        assert turn_bounds(turn_prefix(number) + "another") == turn_bounds(own)


def test_where_nothing_shares_the_work_out_the_keys_are_bounded_as_well() -> None:
    bounds = [turn_bounds(turn_prefix(number)) for number in (0, 1, 2)]
    assert len(set(bounds)) == 3
    for number, (first, behind) in enumerate(bounds):
        assert first <= turn_prefix(number) < behind
    assert turn_bounds("user-1")[1] == LAST_KEY


@pytest.mark.parametrize("name", ["acme", "a", "0-9_z", "a" * 63])
def test_a_name_is_of_letters_that_part_it_from_an_id(name: str) -> None:
    assert re.fullmatch(NAME_PATTERN, name)


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "-a", "a" * 64, "ä", "a b", "a\n"])
def test_another_text_is_no_name(name: str) -> None:
    assert not re.fullmatch(NAME_PATTERN, name)
