from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.torture.auditor import (
    REQUEST_SECONDS,
    Calm,
    Receipt,
    Record,
    _dead_wrongly,
    _lost,
    _other_digest,
    _others_words,
    _two_contents,
    _unreported,
    finding,
)
from tests.torture.outside import Delivered, audit_events


def receipt(
    name: str = "talk-1", *, variant: int = 0, status: int = 202, digest: str = "1:a", at: float = 0.0
) -> Receipt:
    return Receipt(id=name, variant=variant, status=status, digest=digest if status == 202 else "", at=at)


def test_the_record_is_read_back_from_the_disk(tmp_path: Path) -> None:
    with closing(Record(tmp_path / "receipts.jsonl")) as record:
        record.answered(receipt())
        record.answered(receipt("talk-2", status=409))
    assert record.read() == [receipt(), receipt("talk-2", status=409)]


def test_only_an_answer_over_the_budget_is_late(tmp_path: Path) -> None:
    with closing(Record(tmp_path / "receipts.jsonl")) as record:
        record.took("POST", 8.1, status="202")
        assert record.late == []
        record.took("POST", 8.6, status="503")
    assert record.late == ["POST: 503 after 8.60 s"]


def test_another_digest_is_seen_by_either_way_of_looking() -> None:
    accepted = [receipt(), receipt(status=409)]
    good, bad = [{"conversation_id": "talk-1", "digest": "1:a"}], [{"conversation_id": "talk-1", "digest": "1:b"}]
    assert _other_digest(accepted, {"talk-1": {"digest": "1:a"}}, good) == []
    assert _other_digest(accepted, {"talk-1": {"digest": "1:b"}}, good) == ["talk-1"]
    assert _other_digest(accepted, {"talk-1": {"digest": "1:a"}}, bad) == ["talk-1"]


@pytest.mark.parametrize(
    ("receipts", "odd"),
    [
        ([receipt(), receipt(), receipt(variant=1, status=409)], []),
        ([receipt(), receipt(variant=1)], ["talk-1"]),
        ([receipt(), receipt(digest="1:b")], ["talk-1"]),
        ([receipt(), receipt(status=409)], ["talk-1"]),
    ],
)
def test_an_id_has_one_content_and_its_own_is_never_refused(receipts: list[Receipt], odd: list[str]) -> None:
    assert _two_contents(receipts) == odd


def test_a_database_that_lost_the_first_content_of_an_id_may_take_another() -> None:
    receipts = [receipt(), receipt(variant=1, digest="1:b"), receipt(status=409)]
    assert _two_contents(receipts, {"talk-2"}) == ["talk-1"]
    assert _two_contents(receipts, {"talk-1"}) == []
    assert _other_digest(receipts, {"talk-1": {"digest": "1:b"}}, []) == []


def test_only_what_the_database_itself_lost_and_a_process_reported_since_is_not_lost() -> None:
    accepted = {"talk-1": receipt(at=100.0)}
    assert _lost(accepted, set(), set(), {"talk-1": 110.0}) == ["talk-1"]
    assert _lost(accepted, set(), {"talk-1"}, {"talk-1": 110.0}) == []
    assert _lost(accepted, {"talk-1"}, set(), {}) == []
    late = {"talk-1": receipt(at=110.1 + REQUEST_SECONDS)}
    assert _lost(late, set(), {"talk-1"}, {"talk-1": 110.0}) == ["talk-1"]


def test_what_is_gone_and_was_never_reported_is_a_finding_of_its_own() -> None:
    accepted = {name: receipt(name) for name in ("talk-1", "talk-2", "talk-3")}
    assert _lost(accepted, set(), {"talk-1", "talk-2"}, {"talk-2": 1.0}) == ["talk-3"]
    assert _unreported(accepted, set(), {"talk-1", "talk-2"}, {"talk-2": 1.0}) == ["talk-1"]
    assert _unreported(accepted, {"talk-1"}, {"talk-1"}, {}) == []


def test_a_result_holds_the_word_of_its_own_conversation_only() -> None:
    own = ("torture-1-00012", '{"questions": ["I like tea and torture-1-00012. Why?"]}')
    assert _others_words([own, ("calm-1-00001", '{"emotion": "happy"}')]) == []
    assert _others_words([own, ("probe-1", "Likes tea and Probe-10")]) == ["probe-1 holds probe-10"]


def test_results_without_any_word_show_nothing() -> None:
    assert _others_words([("torture-1-00012", "Why?")])


def test_a_dead_letter_is_right_only_where_garbage_was_answered_and_it_says_so() -> None:
    views: dict[str, Any] = {"talk-1": {"state": "dead", "last_error": "emotion: llm: the answer does not fit (X)"}}
    assert _dead_wrongly(views, garbage=True) == []
    assert _dead_wrongly(views, garbage=False)
    assert _dead_wrongly({"talk-1": {"state": "dead", "last_error": "poison: 5 times"}}, garbage=True)


def test_what_came_shortly_before_a_fault_was_touched_by_it_too() -> None:
    calm = Calm([(10.0, 20.0)], before_seconds=4.0)
    assert [calm.at(moment) for moment in (5.9, 6.1, 15.0, 20.0, 20.1)] == [True, False, False, False, True]


def test_a_finding_counts_all_and_shows_a_few() -> None:
    found = finding("lost", range(100))
    assert (found.count, found.examples) == (100, ("0", "1", "2"))


ROWS = [{"number": number, "salt": 7, "sequence": number} for number in (1, 2, 3)]


def event(sequence: int, *, number: int = 0, user: str | None = "mia") -> Delivered:
    return Delivered(f"{number or sequence}-{7:014x}", sequence, "part.done", user)


@pytest.mark.parametrize(
    ("got", "odd"),
    [
        ([event(1), event(2), event(1), event(2), event(3)], {}),
        ([event(1), event(2, user="tom"), event(3, user=None)], {}),
        ([event(2, user="tom"), event(1), event(3)], {}),
        ([event(1), event(2)], {"events lost": 1}),
        ([event(1), event(2), event(3), event(4)], {"events that never were": 1}),
        ([event(1), event(3), event(2)], {"out of a user's order": 1}),
        ([event(1), event(2), event(3), event(3, number=2)], {"one event under two ids, or two under one": 2}),
    ],
    ids=["repeated", "a stub", "another user first", "lost", "invented", "out of order", "two ids"],
)
def test_what_a_receiver_of_events_got_is_compared_with_the_outbox(got: list[Delivered], odd: dict[str, int]) -> None:
    found = {one.what.removesuffix(" (me)"): one.count for one in audit_events("me", got, ROWS)}
    assert {what: count for what, count in found.items() if count} == odd


def test_what_a_database_lost_was_an_event_and_what_it_numbers_again_is_one_event() -> None:
    got = [event(1), event(2), event(3), event(4), event(5, number=2)]
    found = audit_events("me", got, ROWS, {event(4).id}, {event(2).id})
    assert [one.what for one in found if one.count] == []
    found = audit_events("me", got, ROWS)
    assert [one.count for one in found] == [0, 1, 1, 0]
