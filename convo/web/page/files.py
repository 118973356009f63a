"""The files of the page, as they are served: types, tags, caching, policy, and the language that a browser gets.

Open it to add a kind of file, a language, or to change what the page may do. Each file stands under a path that holds a
digest of all of them, so that a browser keeps it for ever, and two releases behind one address are never mixed up in
its cache. The page itself is asked for every time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Template

import trio
from msgspec import Struct

from convo.errors import NotFound
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.web.description.messages import Answer

LANGUAGES = ("en", "vi")
"""The languages of the page; the first one is for those who ask for none of them."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_KEPT = "public, max-age=31536000, immutable"
# Of another release: what a page of that release gets from us must not stay under its address.
_NOT_KEPT = "no-store"
_VERSION = re.compile(r"[0-9a-f]{16}")
_RANGE = re.compile(r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]+)?\s*(?:;\s*q=([01](?:\.[0-9]{1,3})?)\s*)?")

_POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    "connect-src 'self'; "
    "img-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'; "
    # No script may turn text into HTML, whatever it is: a browser that knows this refuses innerHTML itself.
    "require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), microphone=(), geolocation=()"),
)


class _File(Struct, frozen=True, kw_only=True):
    body: bytes
    content_type: str
    tag: str


class _Files(Struct, frozen=True, kw_only=True):
    """All files by name, and the digest of all of them; the page's own text, and those of its texts it holds itself."""

    version: str
    files: Mapping[str, _File]
    page: Template
    texts: Mapping[str, Mapping[str, str]]


async def show_page(view: str, accept_language: str, seconds: float) -> Answer:
    """Answer with the page: ``view`` is ``page``, or ``live`` for the wall.

    ``seconds`` is how long a request may take.

    Raises:
        DeadlineExceeded: its files could not be read in time.
    """
    found = await _read(seconds)
    language = best_language(accept_language)
    body = found.page.substitute(
        assets=f"/assets/{found.version}",
        language=language,
        view=view,
        skip=found.texts[language]["skip"],
        noscript=found.texts[language]["noscript"],
    ).encode()
    headers = (*_HEADERS, ("Cache-Control", "no-cache"), ("Vary", "Accept, Accept-Language"))
    return Answer(status=200, body=body, content_type=_TYPES[".html"], headers=headers)


async def asset_answer(version: str, name: str, if_none_match: str, seconds: float) -> Answer:
    """Answer with one file of the page.

    A page of another release gets the file of this one: behind one address, two releases may serve for a while.

    Raises:
        NotFound: the page has no such file.
        DeadlineExceeded: the files could not be read in time.
    """
    found = await _read(seconds)
    file = found.files.get(name) if _VERSION.fullmatch(version) else None
    if file is None:
        raise NotFound(f"the page has no file {name[:100]!r} of version {version[:100]!r}")
    caching = _KEPT if version == found.version else _NOT_KEPT
    headers = (*_HEADERS, ("ETag", file.tag), ("Cache-Control", caching))
    known = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    if file.tag in known or "*" in known:
        return Answer(status=304, body=b"", content_type=file.content_type, headers=headers)
    return Answer(status=200, body=file.body, content_type=file.content_type, headers=headers)


def best_language(accept_language: str) -> str:
    """Return which of ``LANGUAGES`` an ``Accept-Language`` asks for most; the first of them where it asks for none."""
    best, weight = LANGUAGES[0], 0.0
    for part in accept_language[:1000].split(","):
        asked = _RANGE.fullmatch(part)
        if asked is None:
            continue
        name = LANGUAGES[0] if asked[1] == "*" else asked[1].lower()
        given = 1.0 if asked[2] is None else float(asked[2])
        if name in LANGUAGES and given > weight:
            best, weight = name, given
    return best


async def _read(seconds: float) -> _Files:
    with deadline("web.encode", seconds):
        # Files to read, the first time: no work for the loop.
        return await trio.to_thread.run_sync(page_files, abandon_on_cancel=True, limiter=threads.REQUESTS)


@cache
def page_files() -> _Files:
    """Read every file of the page, once."""
    folder = resources.files("convo.web.page")
    kinds = {one.name: "." + one.name.rpartition(".")[2] for one in folder.iterdir()}
    bodies = {name: folder.joinpath(name).read_bytes() for name in sorted(kinds) if kinds[name] in _TYPES}
    page = Template(bodies.pop("index.html").decode())
    whole = hashlib.sha256()
    for name, body in bodies.items():
        whole.update(f"{name} {len(body)}\n".encode() + body)
    return _Files(
        version=whole.hexdigest()[:16],
        files={
            name: _File(body=body, content_type=_TYPES[kinds[name]], tag=f'"{hashlib.sha256(body).hexdigest()[:32]}"')
            for name, body in bodies.items()
        },
        page=page,
        texts={one: json.loads(bodies[f"strings.{one}.json"]) for one in LANGUAGES},
    )
