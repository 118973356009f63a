from __future__ import annotations

from collections.abc import Callable

from convo.observe.observers import Observers


def test_an_observer_is_called_inside_its_block_alone() -> None:
    observers: Observers[Callable[[], None]] = Observers()
    one, other = (lambda: None), (lambda: None)
    with observers.adding(one):
        with observers.adding(other):
            assert list(observers.current) == [one, other]
        assert list(observers.current) == [one]
    assert list(observers.current) == []


def test_blocks_may_end_in_any_order() -> None:
    observers: Observers[str] = Observers("first")
    outer, inner = observers.adding("outer"), observers.adding("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert list(observers.current) == ["first", "inner"]
    inner.__exit__(None, None, None)
    assert list(observers.current) == ["first"]


def test_one_that_is_added_twice_is_removed_once() -> None:
    observers: Observers[str] = Observers("it")
    with observers.adding("it"):
        assert list(observers.current) == ["it", "it"]
    assert list(observers.current) == ["it"]


def test_a_source_in_the_middle_of_its_observers_is_not_disturbed() -> None:
    observers: Observers[str] = Observers("a", "b")
    seen = []
    for one in observers.current:
        with observers.adding("c"):
            seen.append(one)
    assert seen == ["a", "b"]
