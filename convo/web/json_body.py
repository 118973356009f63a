"""Reads a small body of JSON into a Struct, for the routes that take one."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from convo.errors import BadRequest, Invalid, TooLarge
from convo.settings import WebSettings
from convo.web.door import RouteRequest, check_head

Body = TypeVar("Body")
_BODY_BYTES_MAX = 256 << 10
_VALIDATION = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?", re.DOTALL)


async def read_json_body(request: RouteRequest, settings: WebSettings, kind: type[Body]) -> Body:
    """Read the body of a request; none at all is an empty object.

    Raises:
        UnsupportedMedia: it is not said to be JSON.
        TooLarge: it is over 256 KiB.
        BadRequest: it is no JSON.
        Invalid: a field is unknown, missing or of a wrong type.
    """
    check_head(request.head, settings)
    size = 0

    def grow(piece: int) -> None:
        nonlocal size
        size += piece
        if size > _BODY_BYTES_MAX:
            raise TooLarge(f"the body is over {_BODY_BYTES_MAX} bytes")

    grow(request.head.content_length or 0)
    size = 0
    body = await request.read(grow)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        found = _VALIDATION.fullmatch(str(error))
        what, path = (found["what"], found["path"]) if found else (str(error), None)
        raise Invalid(what, path=path or "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
