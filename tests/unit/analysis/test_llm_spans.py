from __future__ import annotations

import pytest

from convo.analysis.llm_completion import Completion
from convo.analysis.llm_spans import describe_call, describe_completion, provider_of
from convo.analysis.llm_usage import Tokens
from convo.observe.tracing import Recorder, Span
from convo.settings import LlmSettings


@pytest.mark.parametrize(
    ("base_url", "provider"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://mine.openai.azure.com/openai/v1", "azure.ai.openai"),
        ("https://notapi.groq.com.example.com/v1", "notapi.groq.com.example.com"),
        ("http://127.0.0.1:8000/v1", "127.0.0.1"),
        ("http://[::1/v1", ""),
    ],
)
def test_a_provider_is_called_as_the_conventions_have_it_or_by_its_host(base_url: str, provider: str) -> None:
    assert provider_of(base_url) == provider


def test_a_call_and_its_answer_are_described_in_the_conventions_words() -> None:
    span = Span(Recorder(sample=1.0, spans_max=1), "llm.parts", "client", parent=None)
    describe_call(span, LlmSettings(model="m", answer_tokens_max=500), ("questions",))
    tokens = Tokens(sent=100, answered=10, cached=64)
    describe_completion(span, Completion(texts=("{}",), finish_reason="stop", tokens=tokens))
    assert span.name == "chat m"
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "groq",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 500,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "convo.parts": ["questions"],
    }


def test_an_answer_that_names_no_tokens_has_none() -> None:
    span = Span(Recorder(sample=1.0, spans_max=1), "llm.parts", "client", parent=None)
    describe_completion(span, Completion())
    assert span.attributes == {}
