"""What a conversation has cost, as ``GET /v1/conversations/{id}?cost=1`` shows it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from convo.conversation.model import PartName

_Count = Annotated[int, Meta(ge=0)]
_Tokens = Annotated[
    _Count | None, Meta(description="Null where no answer named them: then they are unknown, and not 0.")
]
_Cost = Annotated[
    float,
    Meta(
        ge=0,
        description="In the currency of `llm.price_in` and `llm.price_out`. Calls whose tokens are unknown, or whose"
        " model has no price, add nothing.",
    ),
]


class PartCostView(Struct, frozen=True, kw_only=True):
    """What one part has cost at one model, all its attempts that were answered together.

    A call that was made for several parts counts in each of them; its tokens and its price are shared out.
    """

    part: PartName
    by: Annotated[str, Meta(description="Which model was asked, as in `parts`.")]
    calls: _Count
    unknown_calls: Annotated[int, Meta(ge=0, description="Those whose answer did not name its tokens.")]
    unpriced_calls: Annotated[int, Meta(ge=0, description="Those of a model that has no price.")]
    tokens_in: _Tokens
    tokens_out: _Tokens
    tokens_cached: Annotated[_Count | None, Meta(description="Those of `tokens_in` that the server had cached.")]
    price: _Cost


class ConversationCostView(Struct, frozen=True, kw_only=True):
    """What language models were asked for one conversation, and what that cost so far."""

    price: _Cost
    tokens_in: _Tokens
    tokens_out: _Tokens
    tokens_cached: _Tokens
    complete: Annotated[
        bool, Meta(description="False where some calls are `unknown` or `unpriced`: then it cost more than `price`.")
    ]
    parts: tuple[PartCostView, ...]
