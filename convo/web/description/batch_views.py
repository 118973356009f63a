"""The lines that answer a batch: a receipt or a problem for each conversation."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, structs

from convo.conversation.model import Receipt
from convo.errors import ConvoError
from convo.web.description.messages import Problem, problem_view

MEDIA_OF_BATCHES = ("application/x-ndjson", "application/jsonl")


class BatchReceipt(Receipt, frozen=True, kw_only=True, gc=False):
    """The receipt of one line of a batch; `replayed`: it was stored before this request."""

    replayed: bool


class BatchProblem(Problem, frozen=True, kw_only=True):
    """Why one line of a batch is not stored; with 429 and 503 the line can be sent again."""

    retry_after_seconds: (
        Annotated[float, Meta(ge=0, description="Send the line again after so long; there is no `Retry-After`.")]
        | UnsetType
    ) = UNSET


def batch_receipt(receipt: Receipt, *, replayed: bool) -> BatchReceipt:
    """Return the line of a stored conversation."""
    return BatchReceipt(**structs.asdict(receipt), replayed=replayed)


def batch_problem(error: ConvoError, conversation_id: str | None = None) -> BatchProblem:
    """Return the line of a conversation that is not stored."""
    after = error.retry_after_seconds
    return BatchProblem(
        **structs.asdict(problem_view(error, conversation_id or error.conversation_id)),
        retry_after_seconds=UNSET if after is None else after,
    )
