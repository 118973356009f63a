"""Answers of a convo that is not there, for tests of the client and of what uses it."""

from __future__ import annotations

from typing import Any

import msgspec

from convo.web.description import samples


def receipt(conversation_id: str, *, replayed: bool | None = None) -> dict[str, Any]:
    """Return a receipt; one of a batch says whether it is ``replayed``."""
    said = {} if replayed is None else {"replayed": replayed}
    return {**_sample(samples.RECEIPT), "conversation_id": conversation_id, **said}


def conversation(conversation_id: str, state: str) -> dict[str, Any]:
    """Return a conversation in a state."""
    return {**_sample(samples.CONVERSATION), "conversation_id": conversation_id, "state": state}


def problem(status: int, code: str) -> dict[str, Any]:
    """Return a problem document."""
    return {"type": f"/docs#{code}", "title": code, "status": status, "code": code, "detail": f"it is {code}"}


def _sample(view: object) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(view))
    return found
