"""A good client of convo: it knows the API's answers, and nothing of files, terminals or convo's inside.

It has one ``httpx`` client and no more requests under way than that has connections; reads every answer's body; tries
again with the same id, and only what can succeed unchanged; waits as long as ``Retry-After`` says, and otherwise longer
each time, with chance in it; ends its tries, and says why.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import trio

from scripts.seed_bodies import Body, encode

ATTEMPTS = 8
ATTEMPT_SECONDS = 20.0
BACKOFF_SECONDS = 0.25
BACKOFF_MAX_SECONDS = 10.0
RETRY_AFTER_MAX_SECONDS = 120.0
WAIT_STEP_SECONDS = 8.0
PAUSE_SECONDS = 0.25
LAST_LOOK_SECONDS = 2.0

# By 429 and 503 the server states that the same request can succeed later; 502 and 504 come from a gateway.
RETRYABLE = {429, 502, 503, 504}
CONNECTION_ERRORS = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, trio.TooSlowError)


class GaveUp(Exception):
    """No answer that counts came, though everything allowed was tried; the text is the last reason."""


class Tally:
    """What has happened so far; the progress bar and the final table read it."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()  # accepted, replayed, refused, lost
        self.reasons: Counter[tuple[str, str]] = Counter()  # (refused or lost, why)
        self.retries: Counter[str] = Counter()  # by the reason to try again
        self.states: Counter[str] = Counter()  # of what was taken: done, dead, pending
        self.latencies: list[float] = []  # seconds, each of the one attempt that was answered 202
        self.taken: list[str] = []  # ids that have had their 202

    def note(self, outcome: str, why: str = "") -> None:
        """Count one conversation's outcome, and the reason for one that is not wanted."""
        self.outcomes[outcome] += 1
        if why:
            self.reasons[outcome, why] += 1


class Api:
    """One server, through one client; never more requests under way than the client has connections."""

    def __init__(self, client: httpx.AsyncClient, connections: int, tally: Tally) -> None:
        # httpx loses a connection's slot when a request is cancelled while it waits for one: here none waits.
        self._limiter = trio.CapacityLimiter(connections)
        self._client = client
        self._tally = tally

    async def call(self, method: str, path: str, **content: Any) -> tuple[httpx.Response, float]:
        """Send one request until it is answered; return the answer and the seconds of the attempt that got it.

        Raises:
            GaveUp: the last attempt failed as well, or the server asked for more patience than there is.
        """
        why = ""
        for attempt in range(1, ATTEMPTS + 1):
            asked = None
            try:
                response, seconds = await self._once(method, path, **content)
                if response.status_code not in RETRYABLE:
                    return response, seconds
                why = reason(response)
                asked = retry_after_seconds(response.headers.get("retry-after"), datetime.now(UTC))
            except CONNECTION_ERRORS as error:
                why = type(error).__name__
            if asked is not None and asked > RETRY_AFTER_MAX_SECONDS:
                raise GaveUp(f"{why}, asked to wait {asked:.0f} s")
            if attempt < ATTEMPTS:
                self._tally.retries[why] += 1
                await trio.sleep(backoff_seconds(attempt, asked, random.random()))
        raise GaveUp(f"{why}, {ATTEMPTS} times")

    async def _once(self, method: str, path: str, **content: Any) -> tuple[httpx.Response, float]:
        async with self._limiter:
            with trio.fail_after(ATTEMPT_SECONDS):
                started = trio.current_time()
                response = await self._client.request(method, path, **content)  # reads the whole body
                return response, trio.current_time() - started


def backoff_seconds(attempt: int, asked: float | None, chance: float) -> float:
    """Compute how long to wait after the ``attempt``-th try (from 1), ``asked`` being the server's ``Retry-After``.

    ``chance`` is in [0, 1): without it, all clients that were turned away together would come back together.
    """
    own = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** (attempt - 1))
    if asked is None or asked < own / 2:
        return own * (0.5 + chance / 2)
    return asked + own * chance / 2


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After``: seconds, or a date; None when there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())


def field(response: httpx.Response, name: str) -> str | None:
    """Read one text of a JSON answer; None when the answer is something else: not all that listens is convo."""
    try:
        value = msgspec.json.decode(response.content)[name]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def reason(response: httpx.Response) -> str:
    """Say in a few words what an answer that is no success means: its status and the problem's code."""
    return f"{response.status_code} {field(response, 'code') or response.reason_phrase.lower()}"


async def post(api: Api, body: Body, tally: Tally) -> None:
    """Post one conversation, again and again under the same id until its outcome is known."""
    content, headers = encode(body), {"content-type": "application/json"}
    try:
        response, seconds = await api.call("POST", "/v1/conversations/end", content=content, headers=headers)
    except GaveUp as error:
        tally.note("lost", str(error))
        return
    if response.status_code != 202:
        tally.note("refused", reason(response))
    elif field(response, "conversation_id") != body["conversation_id"]:
        tally.note("lost", "202 without a receipt")
    else:
        tally.latencies.append(seconds)
        tally.taken.append(body["conversation_id"])
        tally.note("replayed" if response.headers.get("idempotent-replayed") == "true" else "accepted")


async def await_end(api: Api, conversation_id: str, until: float, tally: Tally) -> None:
    """Wait until one conversation is done or dead, or trio's clock is at ``until``; the server does the waiting.

    It is asked at least once, even when the time is over already.
    """
    path, state, left = f"/v1/conversations/{quote(conversation_id, safe='')}", "pending", math.inf
    while state == "pending" and left > 0:
        left = max(0.0, until - trio.current_time())
        with trio.move_on_after(left + LAST_LOOK_SECONDS):
            state = await _state(api, path, min(left, WAIT_STEP_SECONDS))
    tally.states[state] += 1
    if state == "lost":  # it had its 202: the one thing that must never happen
        tally.note("lost", "404 after its 202")


async def _state(api: Api, path: str, wait_seconds: float) -> str:
    try:
        response, seconds = await api.call("GET", path, params={"wait": f"{wait_seconds:.2f}"})
    except GaveUp:
        return "pending"
    state = "lost" if response.status_code == 404 else field(response, "state")
    if state in ("done", "dead", "lost"):
        return state
    # A server that does not wait, or not for long, must not be asked without a pause.
    await trio.sleep(max(0.0, PAUSE_SECONDS - seconds))
    return "pending"
