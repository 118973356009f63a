from __future__ import annotations

import hashlib

import pytest

from convo.conversation.identity import id_hash


@pytest.mark.parametrize("conversation_id", ["talk-1", "Bé-ɸ 🐘", "7:default", " "])
def test_the_hash_of_an_id_never_changes(conversation_id: str) -> None:
    """Stored hashes would no longer be found: the bytes that are hashed are spelt out here once more."""
    hashed = hashlib.sha256(b"7:default" + conversation_id.encode()).digest()
    assert id_hash(conversation_id) == hashed[:16]


def test_no_two_pairs_of_a_tenant_and_an_id_are_hashed_from_the_same_bytes() -> None:
    pairs = [("a", "b:c"), ("a:b", "c"), ("ab", "c"), ("a", "bc"), ("", "abc"), ("1:a", "bc"), ("é", "a"), ("e", "a")]
    assert len({id_hash(conversation_id, tenant) for tenant, conversation_id in pairs}) == len(pairs)
