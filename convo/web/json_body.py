"""Reads the small JSON bodies that routes take besides conversations, as the Structs that describe them."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from convo.errors import BadRequest, Invalid, TooLarge
from convo.settings import WebSettings
from convo.web.door import RouteRequest, check_head

T = TypeVar("T")
_BODY_BYTES_MAX = 256 << 10
_VALIDATION = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?", re.DOTALL)


async def read_json_body(request: RouteRequest, kind: type[T], settings: WebSettings) -> T:
    """Read the body of a request; an empty one is an empty object, and needs no content type.

    Raises:
        UnsupportedMedia: the content type is not JSON.
        TooLarge: it is longer than 256 KiB.
        BadRequest, Invalid: it is no JSON, or not what the route takes.
    """
    size = 0

    def grow(piece: int) -> None:
        nonlocal size
        size += piece
        if size > _BODY_BYTES_MAX:
            raise TooLarge(f"the body is over {_BODY_BYTES_MAX} bytes")

    grow(request.head.content_length or 0)
    size = 0
    body = await request.read(grow)
    if body or request.head.content_type:
        check_head(request.head, settings)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        found = _VALIDATION.fullmatch(str(error))
        what, path = (found["what"], found["path"]) if found else (str(error), None)
        raise Invalid(what, path=path or "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
