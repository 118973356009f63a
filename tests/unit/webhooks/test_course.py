from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from convo.store.deliveries import AsideEvent, Delivery, LeasedWebhook
from convo.store.event_rows import EventPage, StoredEvent
from convo.webhooks.course import Course, WaitingEvent

AT = datetime(2026, 11, 29, tzinfo=UTC)
ENDPOINT = LeasedWebhook(
    webhook_id="wh_1",
    tenant=0,
    token=1,
    url="http://receiver.example/",
    types=(),
    bots=(),
    secrets=("whsec_x",),
    active=True,
    cursor=0,
    version=0,
)


def event(sequence: int, user: str | None = "mia") -> StoredEvent:
    return StoredEvent(
        number=sequence,
        salt=0,
        sequence=sequence,
        type="conversation.accepted",
        at=AT,
        conversation_id="talk",
        user_id=user,
        bot_id="pika",
        data="{}",
    )


def course(*users: str | None, hold: float = 300.0, concurrency: int = 8, **endpoint: Any) -> Course:
    made = Course(structs.replace(ENDPOINT, **endpoint), hold_seconds=hold, concurrency=concurrency)
    made.add(EventPage(events=[event(n, user) for n, user in enumerate(users, 1)], looked_to=len(users)))
    return made


def taken(one: Course, now: float, *, alone: bool = False) -> list[WaitingEvent]:
    found = []
    while (waiting := one.take(now, alone=alone)) is not None:
        found.append(waiting)
    return found


def sequences(found: list[WaitingEvent]) -> list[int]:
    return [one.event.sequence for one in found if one.event is not None]


def outcome(waiting: WaitingEvent, *, good: bool) -> Delivery:
    number = None if waiting.event is None else waiting.event.number
    return Delivery(
        number=number,
        event_id="x",
        good=good,
        status=204 if good else 500,
        error=None if good else "answered 500",
        answer=b"",
        seconds=0.1,
        aside_since=waiting.aside_since,
    )


def end(one: Course, waiting: WaitingEvent, now: float, *, good: bool, pause: float | None = None) -> None:
    one.ended(waiting, outcome(waiting, good=good), now, pause)


def test_of_each_user_one_event_is_under_way() -> None:
    one = course("mia", "mia", "tom", "mia")
    first, second = taken(one, 0)
    assert sequences([first, second]) == [1, 3]
    end(one, first, 1, good=True)
    assert sequences(taken(one, 1)) == [2]
    assert sequences(taken(one, 1)) == []


def test_the_cursor_stands_before_the_first_event_that_is_not_confirmed() -> None:
    one = course("mia", "tom", "ann")
    first, second, third = taken(one, 0)
    end(one, third, 1, good=True)
    end(one, second, 1, good=True)
    assert one.cursor == 0
    end(one, first, 1, good=True)
    assert one.cursor == 3


def test_the_oldest_goes_first_so_that_little_is_repeated_after_a_crash() -> None:
    one = course("mia", "tom", "mia", "ann", "eve", concurrency=2)
    first, second = taken(one, 0)
    end(one, first, 1, good=True)
    (third,) = taken(one, 1)
    assert sequences([second, third]) == [2, 3], "her first one has just ended, and others have waited for longer"
    end(one, second, 2, good=False)
    assert sequences(taken(one, 2)) == [4]
    end(one, third, 3, good=True)
    assert sequences(taken(one, 3)) == [2]


def test_what_is_apart_from_the_order_waits_for_what_was_there_before_it() -> None:
    one = course("mia", "tom", "mia", concurrency=1)
    one.add_aside([AsideEvent(event=event(0, "ann"), attempts=0, due_at=AT)])
    one.add(EventPage(events=[event(4, "eve")], looked_to=4))
    seen = []
    while found := taken(one, 0):
        seen += sequences(found)
        end(one, found[0], 0, good=True)
    assert seen == [1, 2, 3, 0, 4]


def test_what_an_endpoint_does_not_want_is_passed_over() -> None:
    one = Course(ENDPOINT, hold_seconds=300, concurrency=8)
    one.add(EventPage(events=[], looked_to=40))
    assert one.cursor == 40


def test_an_event_that_fails_is_tried_again_and_holds_its_users_next_one() -> None:
    one = course("mia", "mia")
    (first,) = taken(one, 0)
    end(one, first, 0.5, good=False)
    assert taken(one, 1.4) == []
    assert sequences(taken(one, 1.5)) == [1]


def test_an_event_that_failed_for_long_enough_steps_aside_and_the_next_one_goes() -> None:
    one = course("mia", "mia", hold=3.0)
    now = 0.0
    while not any(outcome.steps_aside for outcome in one.outcomes):
        for waiting in taken(one, now):
            end(one, waiting, now, good=waiting.event is not None and waiting.event.sequence != 1)
        now += 0.5
    (aside,) = [outcome for outcome in one.outcomes if outcome.steps_aside]
    assert (aside.number, aside.tried_seconds) == (1, 3.0)
    assert one.cursor == 1
    assert sequences(taken(one, now + 60)) == [2]


def test_after_three_failures_in_a_row_there_is_one_attempt_at_a_time_after_a_growing_pause() -> None:
    one = course(*(f"user-{n}" for n in range(20)))
    first = taken(one, 0)
    assert len(first) == 8
    for waiting in first:
        end(one, waiting, 0, good=False)
    assert one.is_paused(59.9)
    (probe,) = taken(one, 60)
    assert taken(one, 60) == []
    end(one, probe, 61, good=True)
    assert len(taken(one, 61)) == 8


def test_a_pause_that_is_asked_for_holds_everything() -> None:
    one = course("mia", "tom", concurrency=1)
    (first,) = taken(one, 0)
    end(one, first, 1, good=False, pause=30)
    assert taken(one, 30.9) == []
    assert sequences(taken(one, 31)) != []


def test_an_endpoint_that_is_alone_gets_one_attempt() -> None:
    one = course("mia", "tom", "ann")
    assert len(taken(one, 0, alone=True)) == 1


def test_stubs_of_erased_users_do_not_wait_for_each_other() -> None:
    assert len(taken(course(None, None, None), 0)) == 3


def test_an_event_that_was_erased_meanwhile_is_sent_empty() -> None:
    one = course("mia")
    one.empty({1})
    (waiting,) = taken(one, 0)
    assert waiting.event is not None
    assert (waiting.event.data, waiting.event.conversation_id, waiting.event.user_id) == (None, None, None)
    assert one.waiting_numbers() == []


def test_before_a_ping_is_answered_nothing_else_is_sent() -> None:
    one = course(active=False)
    assert one.room == 0
    (ping,) = taken(one, 0)
    assert ping.event is None
    end(one, ping, 0, good=False)
    assert taken(one, 1.9) == []
    (again,) = taken(one, 2)
    assert again.event is None


def test_what_is_apart_from_the_order_holds_nobody_and_is_forgotten_when_it_is_stored() -> None:
    one = course("mia")
    one.add_aside(
        [AsideEvent(event=event(9), attempts=3, due_at=AT), AsideEvent(event=event(8), attempts=0, due_at=AT)]
    )
    one.add_aside([AsideEvent(event=event(7), attempts=0, due_at=AT)])
    found = taken(one, 0)
    # The two that are sent again are of one user, and go in turn.
    assert sequences(found) == [1, 9, 8]
    for waiting in found:
        end(one, waiting, 0, good=waiting.event is not None and waiting.event.sequence != 9)
    assert sequences(taken(one, 0)) == [7]
    assert set(one.aside_numbers) == {7, 8, 9}
    one.noted(list(one.outcomes))
    assert one.aside_numbers == [7]
