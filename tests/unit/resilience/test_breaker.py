from __future__ import annotations

from convo.resilience.breaker import Breaker, Permit, Rules

RULES = Rules(failures=5, calls=20, open_seconds=60.0)


def admitted(breaker: Breaker, now: float = 0.0) -> Permit:
    permit = breaker.admit(now)
    assert permit is not None
    return permit


def ends(breaker: Breaker, outcomes: str, now: float = 0.0) -> str:
    """Make calls that end well (+), badly (-) or without a word on the dependency (0); return the state after each."""
    letters = {"closed": "c", "open": "o", "half-open": "h"}
    states = []
    for outcome in outcomes:
        permit = admitted(breaker, now)
        if outcome == "+":
            breaker.succeeded(permit)
        elif outcome == "-":
            breaker.failed(permit, now)
        else:
            breaker.dropped(permit)
        states.append(letters[breaker.state(now)])
    return "".join(states)


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    ends(breaker, "-----", at)
    return breaker


# --- opening


def test_five_failures_in_a_row_open_it() -> None:
    assert ends(Breaker(RULES), "-----") == "cccco"


def test_a_success_between_starts_the_row_anew() -> None:
    assert ends(Breaker(RULES), "----+----") == "ccccccccc"


def test_over_half_of_the_last_twenty_calls_open_it() -> None:
    assert ends(Breaker(RULES), "+-" * 10) == "c" * 20  # just half
    assert ends(Breaker(RULES), "+-" * 9 + "--") == "c" * 19 + "o"  # eleven of twenty


def test_the_eleventh_failure_among_twenty_opens_it() -> None:
    breaker = Breaker(RULES)
    assert ends(breaker, "--+" * 5) == "c" * 15  # ten failures
    assert ends(breaker, "-") == "o"


def test_what_is_older_than_twenty_calls_is_forgotten() -> None:
    breaker = Breaker(RULES)
    ends(breaker, "----+" + "----+")
    ends(breaker, "+" * 20)
    assert ends(breaker, "----+" + "----+") == "c" * 10


def test_a_call_that_says_nothing_counts_for_nothing() -> None:
    assert ends(Breaker(RULES), "--0--0-") == "cccccco"


# --- open, half-open


def test_open_it_lets_nothing_through_for_its_time() -> None:
    breaker = opened()
    assert [breaker.admit(now) for now in (0.0, 1.0, 59.9)] == [None] * 3
    assert (breaker.state(59.9), breaker.state(60.0)) == ("open", "half-open")
    assert breaker.probe_at == 60.0


def test_half_open_it_lets_one_through() -> None:
    breaker = opened()
    assert breaker.lets_through(60.0)
    admitted(breaker, 60.0)
    assert not breaker.lets_through(60.0)
    assert breaker.admit(61.0) is None


def test_a_good_probe_closes_it_for_all() -> None:
    breaker = opened()
    assert breaker.succeeded(admitted(breaker, 60.0))
    assert breaker.state(60.0) == "closed"
    assert breaker.probe_at is None
    assert ends(breaker, "----", 60.0) == "cccc"  # and what was before counts no more


def test_a_failed_probe_opens_it_for_another_time() -> None:
    breaker = opened()
    assert breaker.failed(admitted(breaker, 60.0), 75.0)
    assert [breaker.state(now) for now in (75.0, 134.9, 135.0)] == ["open", "open", "half-open"]


def test_a_probe_that_says_nothing_leaves_its_place_to_the_next() -> None:
    breaker = opened()
    breaker.dropped(admitted(breaker, 60.0))
    assert breaker.state(60.0) == "half-open"
    assert breaker.lets_through(60.0)


def test_a_call_from_before_it_opened_changes_nothing() -> None:
    breaker = Breaker(RULES)
    early = [admitted(breaker) for _ in range(3)]
    ends(breaker, "-----")
    assert not breaker.succeeded(early[0])
    assert not breaker.failed(early[1], 30.0)
    assert breaker.probe_at == 60.0
    probe = admitted(breaker, 60.0)
    breaker.dropped(early[2])
    assert not breaker.lets_through(60.0)  # the probe's place is the probe's
    assert breaker.succeeded(probe)
