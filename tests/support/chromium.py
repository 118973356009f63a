"""A real Chromium for tests, driven over a pipe by its DevTools protocol: no driver, no package, no port.

It needs a Chromium on the machine (Debian: ``apt-get install chromium``); without one its tests are skipped.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 30.0
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--metrics-recording-only", "--force-color-profile=srgb", "--hide-scrollbars"),
    *("--no-proxy-server", "--remote-debugging-pipe", "about:blank"),
)


def chromium_path() -> str:
    """Return where a Chromium is, or skip the test."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"needs a Chromium; none of {', '.join(_NAMES)} is here")


class Chromium:
    """One browser: sends commands, and keeps what it reports meanwhile."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int) -> None:
        self.process = process
        self._read, self._write = read, write
        self._pending = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", /, **params: Any) -> Any:
        """Send a command and return its result; what is reported meanwhile is kept for ``events``."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _SECONDS
        while True:
            for answer in self._received(until - time.monotonic()):
                if answer.get("id") != number:
                    self._events.append(answer)
                elif "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                else:
                    # What came behind the answer in the same reading has been kept by the generator's end.
                    return answer["result"]
            assert time.monotonic() < until, f"Chromium did not answer {method} within {_SECONDS:g} s"

    def events(self) -> list[dict[str, Any]]:
        """Return what was reported since the last time."""
        found, self._events = self._events, []
        return found

    def _received(self, seconds: float) -> Iterator[dict[str, Any]]:
        if b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], max(0.0, seconds))
            if not ready:
                return
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium has ended"
            self._pending += piece
        while b"\0" in self._pending:
            text, _, self._pending = self._pending.partition(b"\0")
            yield json.loads(text)


class Page:
    """One page of a browser, in a context of its own: cookies and storage are shared with no other."""

    def __init__(self, chromium: Chromium, *, languages: str = "en") -> None:
        self._chromium = chromium
        context = chromium.call("Target.createBrowserContext")["browserContextId"]
        target = chromium.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        agent = chromium.call("Browser.getVersion")["userAgent"]
        self.call("Network.setUserAgentOverride", userAgent=agent, acceptLanguage=languages)
        self._reports: list[str] = []

    def call(self, method: str, **params: Any) -> Any:
        """Send a command for this page."""
        return self._chromium.call(method, self._session, **params)

    def look(self, width: int, *, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels, and which colours are preferred."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page from its server."""
        self.call("Page.navigate", url="about:blank")
        found = self.call("Page.navigate", url=url)
        assert "errorText" not in found, found
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page, a promise too, and return its value."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = _SECONDS) -> Any:
        """Wait until an expression is true, and return its value."""
        until = time.monotonic() + seconds
        while not (found := self.run(script)):
            text = self.run("document.body?.innerText.slice(0, 1500)")
            assert time.monotonic() < until, f"not within {seconds:g} s: {script}\n{text}\n{self.errors()}"
            time.sleep(0.05)
        return found

    def sees(self, text: str) -> None:
        """Wait until a text is seen."""
        self.wait(f"document.body.innerText.toLowerCase().includes({json.dumps(text.lower())})")

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a mouse does: what covers it gets the click."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        x, y = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({block: 'center', behavior: 'instant'}); const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """Press one key: ``Tab`` is 9, ``Enter`` 13, ``Escape`` 27."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def errors(self) -> list[str]:
        """Return what the console has shown as an error or a warning: exceptions, refusals of the policy, requests."""
        for one in self._chromium.events():
            if one.get("sessionId") == self._session:
                self._reports += _reported(one)
        return self._reports


def _reported(event: dict[str, Any]) -> list[str]:
    method, params = event["method"], event["params"]
    if method == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        return [f"{details['text']} {details.get('exception', {}).get('description', '')}"]
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        return [" ".join(str(one.get("value", one.get("description"))) for one in params["args"])]
    if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return [f"{params['entry']['text']} {params['entry'].get('url', '')}"]
    return []


@contextmanager
def browser(folder: Path) -> Iterator[Chromium]:
    """Run a Chromium with a profile of its own in ``folder``."""
    path = chromium_path()
    to_child, write = os.pipe()
    read, from_child = os.pipe()

    def connect() -> None:
        # The protocol's pipes are these two numbers. Aside first: one of the ends may be 3 or 4 itself.
        ends = [os.dup(to_child), os.dup(from_child)]
        aside = [end if end > 4 else os.dup(os.dup(end)) for end in ends]
        os.dup2(aside[0], 3)
        os.dup2(aside[1], 4)

    with (folder / "chromium.txt").open("wb") as output:
        process = subprocess.Popen(
            [path, f"--user-data-dir={folder / 'profile'}", *_FLAGS],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=connect,  # noqa: PLW1509  (nothing of ours holds a lock in another thread here)
            pass_fds=(3, 4),
        )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Chromium(process, read, write)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
