"""Counting the items of a log before they are made: 300 bytes of zstd can become a million of them."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from convo import errors
from convo.conversation.found_log import LOG_NAMES

_FIELDS_DECODER = msgspec.json.Decoder(dict[str, Raw])


def refuse_more_items(body: bytes, items_max: int) -> None:
    """Refuse a body whose log has more than ``items_max`` items, without keeping one of them.

    What cannot be read passes, and so does a log under another name: ``decode`` finds out what it is. Where there are
    not even as many commas, nothing is read.

    Raises:
        Invalid: there are more; the text names the setting.
    """
    if body.count(b",") < items_max:
        return
    try:
        fields = _FIELDS_DECODER.decode(body)
        for name in LOG_NAMES:
            if name in fields:
                _count(name, fields[name], items_max)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return


def too_many_items(name: str, items_max: int) -> errors.Invalid:
    """Return the error for a log of too many items."""
    return errors.Invalid(f"has more than {items_max} items, intake.items_max", path=f"$.{name}")


class _Counted:
    """An item that is read past."""


_COUNTED = _Counted()


def _count(name: str, raw: Raw, items_max: int) -> None:
    count = 0

    def counted(_type: type[Any], _item: Any) -> _Counted:
        nonlocal count
        count += 1
        if count > items_max:
            raise too_many_items(name, items_max)
        return _COUNTED

    # The decoder makes one item after the other, and each is gone before the next one.
    msgspec.json.Decoder(list[_Counted], dec_hook=counted).decode(raw)
