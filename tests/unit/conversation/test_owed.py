from __future__ import annotations

from convo.conversation.owed import (
    DEFAULT_OWED,
    DEFAULT_PARTS,
    DeclaredPart,
    Owed,
    decode_parts,
    encode_parts,
    owed_of,
    result_version,
    version_of,
)
from tests.support.making import THREE

TIER = DeclaredPart(name="tier", who="llm", version="p1:0", analyst="m", prompt="Which?", schema={"b": 1, "a": 2})
CRM = DeclaredPart(name="crm", who="http", version="p1:1", analyst="http://crm", required=True)


def test_the_default_set_is_the_three_parts_and_the_score_waits_for_all() -> None:
    assert tuple(DEFAULT_OWED.asked) == DEFAULT_PARTS == tuple(THREE)
    assert DEFAULT_OWED.required == set(DEFAULT_PARTS)
    assert (DEFAULT_OWED.number, DEFAULT_OWED.needs) == (0, "")


def test_a_set_has_a_number_by_its_content_alone_that_a_bigint_holds() -> None:
    one, same, other = owed_of([TIER, CRM]), owed_of([TIER, CRM]), owed_of([TIER])
    assert one.number == same.number != other.number
    assert 0 < one.number < 2**63


def test_a_set_is_read_back_as_it_was_stored_with_the_keys_of_its_schemas_in_their_order() -> None:
    owed = owed_of([TIER, CRM])
    read = decode_parts(owed.number, encode_parts(owed.parts))
    assert read == owed
    assert list(read.asked["tier"].schema) == ["b", "a"]


def test_a_part_that_is_skipped_is_neither_asked_for_nor_waited_for() -> None:
    owed = Owed(parts=(DeclaredPart(name="crm", who="http", version="p1:1", required=True, skipped="why"), TIER))
    assert list(owed.asked) == ["tier"]
    assert (owed.required, owed.needs) == (frozenset(), "")


def test_only_a_required_part_of_a_service_decides_who_can_lease_the_job() -> None:
    assert owed_of([TIER, CRM]).needs == "part.crm@p1:1"
    assert owed_of([TIER, DeclaredPart(name="crm", who="http", version="p1:1")]).needs == ""
    assert [part.needs for part in (TIER, DeclaredPart(name="memories", who="memory"))] == ["llm", "memory"]


def test_a_version_is_made_of_all_that_is_declared_whatever_the_order_of_its_keys() -> None:
    assert version_of("a", {"x": 1, "y": 2}) == version_of("a", {"y": 2, "x": 1})
    assert len({version_of("a", {"x": 1}), version_of("a", {"x": 2}), version_of("b", {"x": 1})}) == 3


def test_the_version_of_a_default_part_is_told_by_who_made_it() -> None:
    assert result_version("emotion", "local/2", None) == result_version("emotion", "local/2", None)
    assert result_version("emotion", "local/2", None) != result_version("emotion", "local/3", None)
    assert result_version("emotion", "local/2", None) != result_version("questions", "local/2", None)
    assert result_version("tier", "m/p1:0", "p1:0") == "p1:0"
    assert DEFAULT_OWED.version("emotion") is None
    assert owed_of([TIER]).version("tier") == "p1:0"
