"""``/``, ``/openapi.json``, ``/docs`` and ``/docs/{topic}``: where to go, the interface, and the handbook's pages."""

from __future__ import annotations

from functools import cache

import trio

from convo import __version__, handbook
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import WebSettings
from convo.web.description import openapi, page, service_views
from convo.web.description.handbook_page import handbook_page
from convo.web.description.messages import Answer, encode

_HTML = "text/html; charset=utf-8"


_LINKS = {
    "The interface": "/docs",
    "The interface for programs (OpenAPI)": "/openapi.json",
    "Conversations, newest first": "/v1/conversations",
    "Is it ready?": "/readyz",
    "How to operate it": "/docs/operating",
}


async def show_index(accept: str) -> Answer:
    """Answer with a page of links to a browser, with the links to a program."""
    if "text/html" in accept:
        return _page(page.index_page(_LINKS).encode())
    view = service_views.IndexView(
        version=__version__,
        links={"docs": "/docs", "openapi": "/openapi.json", "conversations": "/v1/conversations", "ready": "/readyz"},
    )
    return Answer(status=200, body=encode(view))


async def show_openapi() -> Answer:
    """Answer with the description of this interface."""
    return Answer(status=200, body=encode(openapi.document()))


async def show_docs() -> Answer:
    """Answer with a page that shows the description and lists the handbook's pages."""
    return _page(page.api_page(handbook.topics()).encode())


async def answer_topic(topic: str, settings: WebSettings) -> Answer:
    """Answer with one page of the handbook.

    Raises:
        NotFound: the handbook has no such page.
    """
    with deadline("web.encode", settings.request_seconds):
        # Some milliseconds of work and files to read: too long for the loop, which all requests share.
        body = await trio.to_thread.run_sync(_rendered, topic, abandon_on_cancel=True, limiter=threads.REQUESTS)
    return _page(body)


def _page(body: bytes) -> Answer:
    return Answer(status=200, body=body, content_type=_HTML, headers=page.page_headers())


@cache
def _rendered(topic: str) -> bytes:
    return handbook_page(topic, handbook.page(topic), handbook.topics()).encode()
