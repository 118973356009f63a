"""The page for operators: over both doors as bytes, and in a real Chromium as people see it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trio

from convo import service
from tests.support.both_doors import both_doors
from tests.support.chromium import Page, browser, chromium_path
from tests.support.fakes import failing
from tests.support.page_scene import HOSTILE, Scene, scene, shots
from tests.support.ports import free_port
from tests.support.receivers import GOOD
from tests.support.running import ended, loaded_settings

AXE = "axe-core@4.14.1"
WIDTHS = (360, 820, 1440)
VIEWS = {
    "overview": ("/#/", "Waits, this process"),
    "conversations": ("/#/conversations", "talk-3"),
    "conversation": ("/#/conversation/talk-1", "Final score"),
    "dead-conversation": ("/#/conversation/poor-1", "dead letter"),
    "user": ("/#/user/user-1", "By bot"),
    "dead": ("/#/dead", "413"),
    "webhooks": ("/#/webhooks", "http://127.0.0.1"),
    "webhook": ("/#/webhook/{webhook}", "Attempts, newest first"),
    "alerts": ("/#/alerts", "Recently ended"),
    "live": ("/live", "Alerts"),
}


async def test_both_doors_serve_the_page_and_its_files(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, stock_port = free_port(), free_port()
    monkeypatch.setattr(service, "serve_http", both_doors(stock_port))
    told = trio.Event()
    async with trio.open_nursery() as nursery:
        settings = loaded_settings(tmp_path, database, {"observe.log_level": "error"}, port=port)
        nursery.start_soon(service.serve, settings, lambda _: told.set())
        await told.wait()
        for door in (port, stock_port):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{door}") as client:
                await _walk(client)
        nursery.cancel_scope.cancel()


async def _walk(client: httpx.AsyncClient) -> None:
    page = await client.get("/", headers={"Accept": "text/html", "Accept-Language": "vi-VN,vi;q=0.9"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert '<html lang="vi"' in page.text
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert (await client.get("/", headers={"Accept": "application/json"})).json()["service"] == "convo"
    assert 'data-view="live"' in (await client.get("/live")).text
    address = page.text.partition('src="')[2].partition('"')[0]
    file = await client.get(address)
    assert (file.status_code, file.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert file.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in file.headers["cache-control"]
    again = await client.get(address, headers={"If-None-Match": file.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.head(address)).headers["content-length"] == str(len(file.content))
    for wrong in ("/assets/0/files.py", "/assets/0/..%2Ffiles.py", "/assets/0", "/assets/0/x/y", "/live/"):
        assert (await client.get(wrong)).status_code == 404, wrong


async def looked_at(folder: Path, look: Callable[[Page], None], *, languages: str = "en") -> None:
    """Run a browser in a thread, and let ``look`` use one page of it."""

    def work() -> None:
        with browser(folder) as chromium:
            look(Page(chromium, languages=languages))

    chromium_path()
    await trio.to_thread.run_sync(work)


def log_in(page: Page, url: str, key: str) -> None:
    page.open(url)
    page.wait("document.activeElement?.id === 'key'")
    page.type(key)
    page.press("Enter", 13)
    page.wait("!!document.querySelector('nav')")


def unexpected(page: Page) -> list[str]:
    """Return what the console shows, but for the answers that say that nobody is logged in yet."""
    return [one for one in page.errors() if not ("401" in one and "/v1/session" in one)]


async def test_an_operator_logs_in_sees_figures_and_hostile_words_stay_words(database: str, tmp_path: Path) -> None:
    async with scene(database, tmp_path) as shown:

        def walk(page: Page) -> None:
            page.look(1440)
            page.open(f"{shown.url}/")
            page.wait("document.activeElement?.id === 'key'")
            page.type("convo_0123456789ab_" + "x" * 43)
            page.press("Enter", 13)
            page.sees("This key is not valid")
            assert page.run("document.getElementById('key').value") == ""
            page.type(shown.key)
            page.click("button[type=submit]")
            page.wait("document.querySelectorAll('.chart canvas').length >= 6")
            page.wait("document.querySelector('.tile .big').textContent !== '–'")
            # The key is nowhere, and the session is out of reach of scripts.
            assert shown.key not in page.run("JSON.stringify({...localStorage, ...sessionStorage}) + document.cookie")
            assert "session" not in page.run("document.cookie")
            for place, text in _hostile_places(shown):
                page.open(f"{shown.url}/{place}")
                page.sees(text)
                page.sees("<b class=hostile>")
                assert page.run("document.querySelectorAll('.hostile, main img, main b.hostile').length") == 0
            assert page.run("window.hostile") is None
            assert unexpected(page) == []

        await looked_at(tmp_path, walk)


def _hostile_places(shown: Scene) -> list[tuple[str, str]]:
    name = quote(f"talk-{HOSTILE}", safe="")
    return [
        ("#/conversations", "talk-<img"),
        (f"#/conversation/{name}", "talk-<img"),
        (f"#/user/{quote(f'user-{HOSTILE}', safe='')}", "user-<img"),
    ]


@pytest.mark.long
async def test_every_view_is_drawn_at_every_width_without_an_error_and_is_accessible(
    database: str, tmp_path: Path
) -> None:
    axe = await trio.to_thread.run_sync(_axe, tmp_path)
    found: list[str] = []
    async with scene(database, tmp_path) as shown:

        def look(page: Page) -> None:
            log_in(page, f"{shown.url}/", shown.key)
            for width in WIDTHS:
                for dark in (False, True):
                    page.look(width, height=800, dark=dark)
                    for name, (place, text) in VIEWS.items():
                        page.open(shown.url + place.replace("{webhook}", shown.webhook))
                        page.sees(text)
                        case = f"{name}-{width}-{'dark' if dark else 'light'}"
                        found.extend(_faults(page, case, width, axe))
                        page.screenshot(shots(tmp_path) / f"{case}.png")
            found.extend(unexpected(page))

        await looked_at(tmp_path, look)
    (shots(tmp_path) / "faults.txt").write_text("\n".join(found))
    assert found == []


def _faults(page: Page, case: str, width: int, axe: str) -> list[str]:
    wide = page.run("document.documentElement.scrollWidth") - width
    faults = [f"{case}: {wide} px wider than the window"] if wide > 0 else []
    if axe:
        page.run(axe)
        report = page.run(
            "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(one => one.id + ' ' +"
            " one.nodes.slice(0, 3).map(node => node.target + ' ' + node.failureSummary).join(' | ')))"
        )
        faults += [f"{case}: axe: {one}" for one in report]
    return faults


def _axe(folder: Path) -> str:
    """Return axe-core's script: of ``CONVO_AXE``, or as npm has it; empty, with a note, where neither is there."""
    if given := os.environ.get("CONVO_AXE"):
        return Path(given).read_text("utf-8")
    if (npm := shutil.which("npm")) is None:
        pytest.skip("needs axe-core: npm, or its axe.min.js in CONVO_AXE")
    done = subprocess.run([npm, "pack", "--silent", AXE], cwd=folder, capture_output=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot get {AXE}: {done.stderr.decode()[-300:]}")
    shutil.unpack_archive(next(folder.glob("axe-core-*.tgz")), folder, filter="data")
    return (folder / "package/axe.min.js").read_text("utf-8")


@pytest.mark.long
async def test_what_can_be_done_is_asked_first_and_done_once(database: str, tmp_path: Path) -> None:
    async with scene(database, tmp_path) as shown:

        def state(name: str) -> str:
            answer = httpx.get(f"{shown.url}/v1/conversations/{name}", headers={"Authorization": f"Bearer {shown.key}"})
            return str(answer.json().get("state", answer.json().get("code")))

        def press(page: Page, text: str, within: str = "main") -> None:
            """Click the first button with this text."""
            buttons = f"[...document.querySelectorAll('{within} button')]"
            find = f"{buttons}.find(one => one.textContent === {json.dumps(text)})"
            page.wait(
                f"(() => {{ const one = {find}; if (!one) return false;"
                " document.querySelectorAll('[data-pressed]').forEach(old => delete old.dataset.pressed);"
                " one.dataset.pressed = 1; return true; })()"
            )
            page.click("[data-pressed]")

        def look(page: Page) -> None:
            page.look(1440)
            log_in(page, f"{shown.url}/", shown.key)
            _acknowledge(page, shown, press)
            _retry_and_erase(page, shown, press, state)
            _many(page, shown, press, state)
            _resend(page, shown, press)
            _switches(page, shown, press)
            assert unexpected(page) == []

        await looked_at(tmp_path, look)


def _acknowledge(page: Page, shown: Scene, press: Callable[..., None]) -> None:
    def held() -> dict[str, object]:
        answer = httpx.get(f"{shown.url}/v1/alerts", headers={"Authorization": f"Bearer {shown.key}"}).json()
        return {one["type"]: one.get("acknowledged_by") for one in answer["active"]}

    page.open(f"{shown.url}/#/alerts")
    page.sees("DEAD_LETTER")
    assert held()["DEAD_LETTER"] is None
    press(page, "Acknowledge", "main .alert")
    page.sees("Acknowledged")
    by = held()["DEAD_LETTER"]
    assert by
    # So it is for whoever looks next, and there is no button any more.
    page.open(f"{shown.url}/#/")
    page.open(f"{shown.url}/#/alerts")
    page.sees(str(by))
    assert page.run("[...document.querySelectorAll('.alert button')].map(one => one.textContent)") == []


def _retry_and_erase(page: Page, shown: Scene, press: Callable[..., None], state: Callable[[str], str]) -> None:
    page.open(f"{shown.url}/#/conversations")
    page.sees("talk-3")
    page.run("document.querySelector('[name=user_prefix]').focus()")
    page.type("user-2")
    page.press("Enter", 13)
    page.wait("document.querySelectorAll('tbody tr').length === 3")
    assert page.run("location.hash") == "#/conversations?user_prefix=user-2"
    page.run("document.querySelector('[name=conversation_id]').focus()")
    page.type("poor-0")
    page.press("Enter", 13)
    page.wait("location.hash === '#/conversation/poor-0'")
    press(page, "Retry")
    page.wait("document.querySelector('dialog code').textContent === 'poor-0'")
    page.press("Escape", 27)
    page.wait("!document.querySelector('dialog')")
    assert state("poor-0") == "dead"
    press(page, "Retry")
    press(page, "Retry", "dialog")
    page.wait("!document.querySelector('dialog')")
    page.wait("document.querySelector('.page-head .badge').textContent === 'done'")
    assert state("poor-0") == "done"
    press(page, "Show the turns (the audit log notes it)")
    page.sees("I have a dog named Rex")
    press(page, "Erase")
    # Enter alone erases nothing: the focus stands on Cancel.
    page.press("Enter", 13)
    page.wait("!document.querySelector('dialog')")
    assert state("poor-0") == "done"
    press(page, "Erase")
    press(page, "Erase for ever", "dialog")
    page.wait("location.hash === '#/conversations'")
    assert state("poor-0") == "erased"


def _many(page: Page, shown: Scene, press: Callable[..., None], state: Callable[[str], str]) -> None:
    page.open(f"{shown.url}/#/dead")
    press(page, "Retry all of these …")
    page.sees("Retry 2 dead letters?")
    press(page, "Retry 2", "dialog")
    page.sees("2 are ready again.")
    page.wait("!document.querySelector('tbody tr')")
    assert {state("poor-1"), state("poor-2")} <= {"ready", "leased", "done"}


def _resend(page: Page, shown: Scene, press: Callable[..., None]) -> None:
    shown.receiver.answer = lambda _: GOOD
    page.open(f"{shown.url}/#/webhook/{shown.webhook}")
    press(page, "Ping now")
    page.sees("It answered in")
    page.sees("<b class=hostile>")
    before = len(shown.receiver.got)
    press(page, "Send again")
    press(page, "Send again", "dialog")
    page.sees("events are sent again.")
    until = time.monotonic() + 20
    while len(shown.receiver.got) == before:
        assert time.monotonic() < until, "nothing was sent again"
        time.sleep(0.05)


def _switches(page: Page, shown: Scene, press: Callable[..., None]) -> None:
    page.open(f"{shown.url}/#/")
    page.sees("Overview")
    theme = page.run("document.documentElement.dataset.theme")
    press(page, "◐", "header")
    assert page.run("document.documentElement.dataset.theme") != theme
    page.run(
        "(() => { const one = document.querySelector('header select'); one.value = 'vi';"
        " one.dispatchEvent(new Event('change')); })()"
    )
    page.sees("Tổng quan")
    assert page.run("document.documentElement.lang") == "vi"
    page.open(f"{shown.url}/#/")
    page.sees("Tổng quan")
    # The first stop of the keyboard, before all of the header, leads past it.
    page.run("document.querySelector('.brand').focus()")
    page.press("Tab", 9, shift=True)
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter", 13)
    assert page.run("document.activeElement.id") == "main"
    press(page, "Đăng xuất", "header")
    page.wait("document.activeElement?.id === 'key'")
    page.open(f"{shown.url}/#/alerts")
    page.wait("document.activeElement?.id === 'key'")


@pytest.mark.long
async def test_a_key_that_only_reads_is_shown_no_button_that_changes_something(database: str, tmp_path: Path) -> None:
    async with scene(database, tmp_path) as shown:

        def look(page: Page) -> None:
            page.look(1440)
            log_in(page, f"{shown.url}/", shown.reader)
            views = {"#/conversation/poor-1": "dead letter", "#/dead": "413", "#/user/user-1": "By bot"}
            for place, text in views.items():
                page.open(f"{shown.url}/{place}")
                page.sees(text)
                texts = page.run("[...document.querySelectorAll('main button')].map(one => one.textContent)")
                assert [one for one in texts if not one.startswith(("Show", "Search"))] == []
            assert "Webhooks" not in page.run("document.querySelector('nav').textContent")
            assert unexpected(page) == []

        await looked_at(tmp_path, look)


@pytest.mark.long
async def test_a_key_of_a_bot_is_shown_its_conversations_and_nothing_of_the_installation(
    database: str, tmp_path: Path
) -> None:
    async with scene(database, tmp_path) as shown:

        def look(page: Page) -> None:
            page.look(1440)
            log_in(page, f"{shown.url}/", shown.bound)
            page.sees("does not reach the whole installation")
            assert page.run("document.querySelector('.view').hidden")
            page.open(f"{shown.url}/#/conversations")
            page.sees("talk-3")
            assert "<img" not in page.run("document.querySelector('main').innerText")
            page.open(f"{shown.url}/#/conversation/{quote(f'talk-{HOSTILE}', safe='')}")
            page.sees("No conversation has this id, or your key does not reach it.")
            page.open(f"{shown.url}/#/alerts")
            page.sees("so it is not shown alerts")
            allowed = ("401", "/v1/session"), ("404", "/v1/conversations/"), ("403", "/v1/alerts")
            told = [one for one in page.errors() if not any(code in one and path in one for code, path in allowed)]
            assert told == []

        await looked_at(tmp_path, look)


def _rests_while_hidden(page: Page, shown: Scene) -> None:
    """Hide the page, and look at what it asks for: nothing, until it is seen again."""
    asked = "performance.getEntriesByType('resource').length"

    def streams() -> str:
        text = httpx.get(f"{shown.url}/metrics", headers={"Authorization": f"Bearer {shown.key}"}).text
        return next(line for line in text.splitlines() if line.startswith("convo_event_streams ")).split()[1]

    assert float(streams()) == 1
    hide = "Object.defineProperty(document, 'hidden', {{configurable: true, get: () => {}}});"
    turn = " document.dispatchEvent(new Event('visibilitychange'))"
    page.run(hide.format("true") + turn)
    page.wait("document.querySelector('.live').textContent === 'paused'")
    # One request may have been under way.
    time.sleep(0.7)
    before = page.run(asked)
    time.sleep(1.5)
    assert page.run(asked) == before
    assert float(streams()) == 0
    page.run(hide.format("false") + turn)
    page.wait("document.querySelector('.live').textContent === 'live'")
    # What may have happened meanwhile is asked for.
    page.wait(f"{asked} > {before}")
    assert float(streams()) == 1


def _shows_an_outage(page: Page) -> None:
    unlimited = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=True, **unlimited)
    page.wait("document.querySelector('.live').textContent === 'no answer'")
    page.call("Network.emulateNetworkConditions", offline=False, **unlimited)
    page.wait("document.querySelector('.live').textContent === 'live'")


@pytest.mark.long
async def test_new_figures_and_conversations_come_by_themselves_and_an_outage_is_shown(
    database: str, tmp_path: Path
) -> None:
    async with scene(database, tmp_path) as shown:
        seen, posted = trio.Event(), trio.Event()

        def look(page: Page) -> None:
            page.look(820)
            log_in(page, f"{shown.url}/", shown.key)
            page.open(f"{shown.url}/#/conversations")
            page.sees("talk-3")
            trio.from_thread.run_sync(seen.set)
            trio.from_thread.run(posted.wait)
            page.sees("late-1")
            page.sees("late-2")
            _rests_while_hidden(page, shown)
            assert unexpected(page) == []
            _shows_an_outage(page)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(looked_at, tmp_path, look)
            await seen.wait()
            await shown.post(ended("late-1", user_id="user-9"))
            shown.model.always = failing("413", "too_long")
            await shown.post(ended("late-2", user_id="user-9"), state="dead")
            posted.set()
