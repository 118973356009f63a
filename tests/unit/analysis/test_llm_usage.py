from __future__ import annotations

from typing import Any

import pytest

from convo.analysis.llm_completion import completion_in
from convo.analysis.llm_usage import Tokens, price_nano, shared_out, usage_in
from convo.settings import NANO, LlmSettings


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"usage": {"prompt_tokens": 700, "completion_tokens": 20}}, Tokens(sent=700, answered=20)),
        (
            {
                "usage": {
                    "prompt_tokens": 700,
                    "completion_tokens": 20,
                    "prompt_tokens_details": {"cached_tokens": 512, "audio_tokens": 0},
                }
            },
            Tokens(sent=700, answered=20, cached=512),
        ),
        (
            {"usage": {"prompt_tokens": 700, "completion_tokens": 20, "prompt_cache_hit_tokens": 640}},
            Tokens(sent=700, answered=20, cached=640),
        ),
        ({"x_groq": {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}}, Tokens(sent=9, answered=1)),
        (
            {"usage": {"input_tokens": 100, "output_tokens": 5, "cache_read_input_tokens": 600}},
            Tokens(sent=700, answered=5, cached=600),
        ),
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 50,
                    "candidatesTokenCount": 5,
                    "thoughtsTokenCount": 30,
                    "cachedContentTokenCount": 40,
                }
            },
            Tokens(sent=50, answered=35, cached=40),
        ),
        ({"prompt_eval_count": 26, "eval_count": 12, "message": {}}, Tokens(sent=26, answered=12)),
        ({"usage": {"prompt_tokens": 7.0, "completion_tokens": 0}}, Tokens(sent=7, answered=0)),
        (
            {"usage": {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}},
            Tokens(sent=7, answered=1, cached=7),
        ),
    ],
    ids=[
        *("openai", "cached", "deepseek", "groq", "anthropic", "gemini", "ollama", "floats", "more cached than sent"),
    ],
)
def test_the_tokens_are_found_where_servers_name_them(answer: dict[str, Any], tokens: Tokens) -> None:
    assert usage_in(answer) == tokens


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"usage": None},
        {"usage": "700"},
        {"usage": {}},
        {"usage": {"prompt_tokens": 0, "completion_tokens": 0}},
        {"usage": {"prompt_tokens": 700}},
        {"usage": {"prompt_tokens": -3, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": True, "completion_tokens": True}},
        {"usage": {"prompt_tokens": 10**12, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": "700", "completion_tokens": "20"}},
    ],
)
def test_what_is_missing_or_makes_no_sense_is_unknown_and_not_0(answer: dict[str, Any]) -> None:
    assert usage_in(answer) is None


def test_an_event_stream_names_them_in_its_last_piece() -> None:
    body = (
        b'data: {"choices":[{"delta":{"content":"{}"}}],"usage":null}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3}}\n\ndata: [DONE]\n'
    )
    found = completion_in(body)
    assert found is not None
    assert found.tokens == Tokens(sent=12, answered=3)


def test_a_price_is_that_of_each_kind_of_token() -> None:
    tokens = Tokens(sent=1_000, answered=100, cached=400)
    prices = LlmSettings(price_in=0.59, price_out=0.79, price_cached=0.1)
    assert price_nano(tokens, prices) == round((600 * 0.59 + 400 * 0.1 + 100 * 0.79) / 1e6 * NANO) == 473_000
    assert price_nano(tokens, LlmSettings(price_in=1.0, price_out=2.0)) == 1_200_000, "cached ones cost as the others"


def test_what_has_no_price_has_none_and_what_is_free_costs_0() -> None:
    tokens = Tokens(sent=1_000, answered=100)
    assert price_nano(tokens, LlmSettings()) is None
    assert price_nano(tokens, LlmSettings(price_in=0.0, price_out=0.0)) == 0


def test_a_number_is_shared_out_in_equal_parts_and_nothing_is_lost() -> None:
    assert shared_out(10, 3) == [4, 3, 3]
    assert shared_out(1, 2) == [1, 0]
    assert shared_out(None, 2) == [None, None]
    assert all(sum(shared_out(number, 7)) == number for number in range(50))  # type: ignore[arg-type]
