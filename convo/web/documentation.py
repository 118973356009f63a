"""``/``, ``/live``, ``/assets``, ``/openapi.json``, ``/docs`` and ``/docs/{topic}``: the pages, and where to go."""

from __future__ import annotations

from functools import cache

import trio

from convo import __version__, handbook
from convo.errors import NotFound
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import Settings, WebSettings
from convo.web.description import openapi, page, service_views
from convo.web.description.handbook_page import handbook_page
from convo.web.description.messages import Answer, Head, encode
from convo.web.page import files

_HTML = "text/html; charset=utf-8"


_LINKS = {
    "The interface": "/docs",
    "The interface for programs (OpenAPI)": "/openapi.json",
    "Conversations, newest first": "/v1/conversations",
    "Is it ready?": "/readyz",
    "How to operate it": "/docs/operating",
}


async def show_index(head: Head, settings: Settings) -> Answer:
    """Answer a browser with the page for operators, or with a page of links where there is none; a program with links.

    Raises:
        DeadlineExceeded: the page could not be read in time.
    """
    if "text/html" in head.accept:
        if settings.page.served:
            return await _page_of(head, settings, "page")
        return _page(page.index_page(_LINKS).encode())
    view = service_views.IndexView(
        version=__version__,
        links={"docs": "/docs", "openapi": "/openapi.json", "conversations": "/v1/conversations", "ready": "/readyz"},
    )
    return Answer(status=200, body=encode(view), headers=(("Vary", "Accept"),))


async def show_wall(head: Head, settings: Settings) -> Answer:
    """Answer with the page's view for a wall.

    Raises:
        NotFound: no page is served here.
        DeadlineExceeded: the page could not be read in time.
    """
    _check_served(settings)
    return await _page_of(head, settings, "live")


async def answer_asset(version: str, name: str, if_none_match: str, settings: Settings) -> Answer:
    """Answer with one file of the page.

    Raises:
        NotFound: no page is served here, or it has no such file.
        DeadlineExceeded: the page's files could not be read in time.
    """
    _check_served(settings)
    return await files.asset_answer(version, name, if_none_match, settings.web.request_seconds)


def _check_served(settings: Settings) -> None:
    if not settings.page.served:
        raise NotFound("no page is served here: page.served is false (CONVO_PAGE__SERVED)")


async def _page_of(head: Head, settings: Settings, view: str) -> Answer:
    return await files.show_page(view, head.accept_language, settings.web.request_seconds)


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
