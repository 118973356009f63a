from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from convo import handbook
from convo.errors import NotFound
from convo.settings import PageSettings, Settings, WebSettings
from convo.web import documentation
from convo.web.description.messages import Head

SETTINGS = WebSettings()


async def test_the_description_is_openapi() -> None:
    answer = await documentation.show_openapi()
    assert (answer.content_type, json.loads(answer.body)["openapi"]) == ("application/json", "3.1.0")


async def test_the_page_of_the_interface_lists_every_page_of_the_handbook() -> None:
    answer = await documentation.show_docs()
    assert answer.content_type == "text/html; charset=utf-8"
    for topic in handbook.topics():
        assert f'<a href="/docs/{topic}">' in answer.body.decode()


@pytest.mark.parametrize("topic", handbook.topics())
async def test_every_page_of_the_handbook_is_shown(topic: str) -> None:
    answer = await documentation.answer_topic(topic, SETTINGS)
    assert (answer.status, answer.content_type) == (200, "text/html; charset=utf-8")
    assert f"<title>convo: {topic}</title>" in answer.body.decode()


@pytest.mark.parametrize("topic", ["", *handbook.topics()])
async def test_a_page_runs_and_shows_under_its_own_policy(topic: str) -> None:
    answer = await (documentation.answer_topic(topic, SETTINGS) if topic else documentation.show_docs())
    policy = dict(part.split(" ", 1) for part in dict(answer.headers)["Content-Security-Policy"].split("; "))
    shown = answer.body.decode()
    for element, directive in (("style", "style-src"), ("script", "script-src")):
        inline = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", shown, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inline]
        assert [f"'sha256-{digest}'" for digest in digests] == [policy[directive]]
    # What the policy forbids besides, and a browser would only report where nobody looks.
    assert re.findall(r"<[^>]*\s(?:style|on\w+)=[^>]*>", shown) == []


@pytest.mark.parametrize("topic", ["nothing", "", "../web/app", "operating.md", "__init__"])
async def test_another_page_is_not_there(topic: str) -> None:
    with pytest.raises(NotFound, match="the handbook has no page"):
        await documentation.answer_topic(topic, SETTINGS)


async def test_a_browser_gets_the_page_at_the_root_and_a_program_links() -> None:
    seen = await documentation.show_index(_head("text/html,application/xhtml+xml"), Settings())
    assert seen.content_type.startswith("text/html")
    assert b'data-view="page"' in seen.body
    answer = await documentation.show_index(_head("*/*"), Settings())
    read = json.loads(answer.body)
    assert read["service"] == "convo"
    assert read["links"]["docs"] == "/docs"
    assert ("Vary", "Accept") in answer.headers


async def test_the_wall_is_the_same_page_with_another_view() -> None:
    wall = await documentation.show_wall(_head("*/*"), Settings())
    page = await documentation.show_index(_head("text/html"), Settings())
    assert wall.body == page.body.replace(b'data-view="page"', b'data-view="live"')


async def test_without_the_page_a_browser_gets_links_and_nothing_of_the_page_is_served() -> None:
    settings = Settings(page=PageSettings(served=False))
    seen = await documentation.show_index(_head("text/html"), settings)
    assert b'<a href="/docs">' in seen.body
    assert b"<script src" not in seen.body
    with pytest.raises(NotFound, match=r"page\.served"):
        await documentation.show_wall(_head("text/html"), settings)
    with pytest.raises(NotFound, match=r"page\.served"):
        await documentation.answer_asset("0", "app.js", "", settings)


def _head(accept: str) -> Head:
    return Head(method="GET", path="/", peer="127.0.0.1", started=0.0, accept=accept)
