"""Describes a call to a language model in its span, in the words of OpenTelemetry's conventions for generative AI.

Open it to record more of a call. What was asked and answered is not in it: a trace holds no text of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from convo.analysis.llm_completion import Completion
from convo.conversation.model import PartName
from convo.observe.tracing import Span
from convo.settings import LlmSettings

# The conventions' names of providers, by what the names of their hosts end with.
_PROVIDERS = {
    "api.groq.com": "groq",
    "api.openai.com": "openai",
    "openai.azure.com": "azure.ai.openai",
    "api.anthropic.com": "anthropic",
    "api.deepseek.com": "deepseek",
    "api.mistral.ai": "mistral_ai",
    "api.x.ai": "x_ai",
    "api.perplexity.ai": "perplexity",
    "api.cohere.com": "cohere",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "amazonaws.com": "aws.bedrock",
}


def describe_call(span: Span, settings: LlmSettings, parts: Sequence[PartName]) -> None:
    """Note which model is asked, and for what."""
    span.name = f"chat {settings.model}"
    span.attributes |= {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider_of(settings.base_url),
        "gen_ai.request.model": settings.model,
        "gen_ai.request.temperature": settings.temperature,
        "convo.parts": list(parts),
    }
    if settings.answer_tokens_max:
        span.attributes["gen_ai.request.max_tokens"] = settings.answer_tokens_max


def describe_completion(span: Span, completion: Completion) -> None:
    """Note what an answer took, and why it ended."""
    if completion.finish_reason:
        span.attributes["gen_ai.response.finish_reasons"] = [completion.finish_reason]
    if completion.tokens is not None:
        span.attributes["gen_ai.usage.input_tokens"] = completion.tokens.sent
        span.attributes["gen_ai.usage.output_tokens"] = completion.tokens.answered
        span.attributes["gen_ai.usage.cache_read.input_tokens"] = completion.tokens.cached


def provider_of(base_url: str) -> str:
    """Return the conventions' name of a provider, or the host of one that they do not name."""
    try:
        host = urlsplit(base_url).hostname or ""
    except ValueError:
        return ""
    return next((name for end, name in _PROVIDERS.items() if host == end or host.endswith(f".{end}")), host)
