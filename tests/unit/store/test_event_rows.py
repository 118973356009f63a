from __future__ import annotations

from convo.store.event_rows import event_id, parse_event_id


def test_the_largest_number_and_salt_are_read_back() -> None:
    pair = (1 << 63) - 1, (1 << 53) - 1
    assert parse_event_id(event_id(*pair)) == pair
