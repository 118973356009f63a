from __future__ import annotations

from decimal import Decimal
from typing import Any

from convo.settings import NANO
from convo.web.conversation_costs import cost_view


def row(**changes: Any) -> dict[str, Any]:
    usual = {
        "part": "questions",
        "made_by": "m/1",
        "calls": 1,
        "unknown_calls": 0,
        "unpriced_calls": 0,
        "tokens_in": 700,
        "tokens_out": 20,
        "tokens_cached": 512,
        "nano": Decimal(NANO // 1000),
    }
    return {**usual, **changes}


def test_the_sums_are_those_of_the_parts() -> None:
    view = cost_view([row(), row(part="emotion", tokens_in=650, tokens_cached=0, nano=Decimal(NANO // 500))])
    assert (view.price, view.tokens_in, view.tokens_out, view.tokens_cached) == (0.003, 1350, 40, 512)
    assert view.complete
    assert [(part.part, part.by, part.price) for part in view.parts] == [
        ("questions", "m/1", 0.001),
        ("emotion", "m/1", 0.002),
    ]


def test_tokens_that_nobody_named_are_unknown_and_not_0() -> None:
    unknown = row(unknown_calls=1, tokens_in=None, tokens_out=None, tokens_cached=None, nano=Decimal(0))
    view = cost_view([unknown])
    assert (view.tokens_in, view.tokens_out, view.tokens_cached, view.price) == (None, None, None, 0.0)
    assert not view.complete
    some = cost_view([unknown, row(part="emotion")])
    assert (some.tokens_in, some.complete) == (700, False)


def test_what_is_not_priced_is_free_and_says_so() -> None:
    view = cost_view([row(unpriced_calls=1, nano=Decimal(0))])
    assert (view.price, view.complete, view.parts[0].unpriced_calls) == (0.0, False, 1)


def test_a_conversation_that_no_model_was_asked_about_has_cost_nothing() -> None:
    view = cost_view([])
    assert (view.price, view.tokens_in, view.complete, view.parts) == (0.0, 0, True, ())
