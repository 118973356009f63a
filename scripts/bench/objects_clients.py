"""The clients of ``objects_away.py``: who posts, reads and erases, what they have sent, and what they were answered."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from tests.torture.load import END, body
from tests.torture.world import GATEWAY_SECONDS, Convo

WHEN = ("before", "during", "after")
ERASED_EACH = 3
_USERS = 20
_READ_PAUSE_SECONDS = 0.1
_AT_A_TIME = 4
_AGAIN_SECONDS = 0.2
_ASKED_AGAIN = 4


class Clients:
    """All who ask: they know what they have sent, and note each answer that should not be."""

    def __init__(self, convo: Convo) -> None:
        self._convo = convo
        self._chance = random.Random(1)
        self._open = [f"{name}-{secrets.token_hex(6)}" for name in (*("kept",) * _USERS, *WHEN * ERASED_EACH)]
        self.users = tuple(self._open)
        self._under_way: Counter[str] = Counter()
        # From a kill, or the first start, until the process is ready.
        self.starting = True
        self.accepted: dict[str, dict[str, Any]] = {}
        self.erased: set[str] = set()
        self.accepts: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.erasures: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.odd_accepts: list[str] = []
        self.odd_reads: list[str] = []
        self.odd_erasures: list[str] = []

    @asynccontextmanager
    async def opened(self, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[None]:
        """Have a client for the block; a test gives what answers it."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self._convo.url, timeout=GATEWAY_SECONDS, limits=limits, transport=transport
        ) as self._http:
            yield

    async def _asked(self, method: str, path: str, **more: Any) -> tuple[str, httpx.Response | None, bool]:
        """Ask once; return what came, its name, and whether convo was up all the time."""
        began, starting = trio.current_time(), self.starting
        answer: httpx.Response | None = None
        try:
            answer = await self._http.request(method, path, **more)
        except httpx.TransportError as error:
            name = type(error).__name__
        else:
            name = str(answer.status_code)
            name += f" {answer.json().get('code', '')}" if answer.status_code >= httpx.codes.BAD_REQUEST else ""
        return name, answer, not (starting or self.starting or self._convo.was_away(began))

    async def post(self, per_second: float, stop: trio.CancelScope) -> None:
        """Post conversations at a fixed rate until stopped."""
        due, number = trio.current_time(), 0
        async with trio.open_nursery() as nursery:
            while not stop.cancel_called:
                user = self._chance.choice(self._open)
                self._under_way[user] += 1
                nursery.start_soon(self._send, body(f"{user}-{number}", user))
                number, due = number + 1, due + 1 / per_second
                await trio.sleep_until(due)

    async def _send(self, content: dict[str, Any]) -> None:
        """Send one as a client should: again until it is accepted."""
        name = content["conversation_id"]
        while name not in self.accepted:
            came, _, up = await self._asked("POST", END, json=content)
            self.accepts[came if up else f"{came} (killed or starting)"] += 1
            if came == "202":
                self.accepted[name] = content
                self._under_way[content["user_id"]] -= 1
                return
            if up:
                self.odd_accepts.append(f"{name}: {came}")
            await trio.sleep(_AGAIN_SECONDS)

    async def read(self, names: Sequence[str]) -> None:
        """Read logs that have moved, one after the other."""
        while True:
            name = self._chance.choice(names)
            if self.accepted[name]["user_id"] in self._open:
                came, answer, up = await self._asked("GET", f"/v1/conversations/{name}/log?as=sent")
                self.reads[came if up else f"{came} (killed or starting)"] += 1
                # Its user may have been erased meanwhile.
                if up and self.accepted[name]["user_id"] in self._open and not self._is_right(name, came, answer):
                    self.odd_reads.append(f"{name}: {came}")
            await trio.sleep(_READ_PAUSE_SECONDS)

    def _is_right(self, name: str, came: str, answer: httpx.Response | None) -> bool:
        if answer is None or came == "503 logs_unavailable":
            return answer is not None and "Retry-After" in answer.headers
        return came == "200" and answer.json() == self.accepted[name]["conversation_log"]

    def next_of(self, when: str, count: int) -> Sequence[str]:
        """Return users that are to be erased then, and are not."""
        return [user for user in self.users if user.startswith(when) and user not in self.erased][:count]

    async def erase(self, user: str) -> None:
        """Erase a user of whom no conversation is under way any more, nor comes again."""
        self._open.remove(user)
        while self._under_way[user]:  # noqa: ASYNC110  (counted by many)
            await trio.sleep(_AGAIN_SECONDS)
        self.erased.add(user)
        while True:
            came, _, up = await self._asked("DELETE", f"/v1/users/{user}")
            self.erasures[came if up else f"{came} (killed or starting)"] += 1
            if came in {"200", "202"}:
                return
            if up:
                self.odd_erasures.append(f"{user}: {came}")
            await trio.sleep(_AGAIN_SECONDS)

    async def all_erased(self) -> bool:
        """Ask for all receipts again: whether nothing waits any more."""
        for user in self.erased:
            came, answer, _ = await self._asked("DELETE", f"/v1/users/{user}")
            if came != "200" or answer is None or answer.json()["waiting"]:
                return False
        return True

    async def is_ready(self) -> bool:
        """Return whether the process is ready."""
        return (await self._asked("GET", "/readyz"))[0] == "200"

    async def alerts(self) -> set[str]:
        """Return the types of the alerts of logs that are active; none where nobody answers."""
        came, answer, _ = await self._asked("GET", "/v1/alerts")
        active = answer.json()["active"] if answer is not None and came == "200" else []
        return {one["type"] for one in active if one["type"].startswith("LOGS_")}

    async def is_calm(self) -> bool:
        """Return whether no alert of logs is active."""
        return not await self.alerts()

    async def _read_patiently(self, path: str) -> tuple[str, httpx.Response | None]:
        """Read as a client does, which comes again after ``Retry-After``; each refusal is counted."""
        came, answer, _ = await self._asked("GET", path)
        for _ in range(_ASKED_AGAIN):
            if answer is None or "Retry-After" not in answer.headers:
                break
            self.again[f"{came}: {answer.json().get('detail', '')}"] += 1
            await trio.sleep(float(answer.headers["Retry-After"]))
            came, answer, _ = await self._asked("GET", path)
        return came, answer

    async def read_all(self) -> tuple[Mapping[str, Sequence[str]], int]:
        """Read everything that was accepted; return what is wrong by kind, and how many were not erased."""
        odd: dict[str, list[str]] = {
            what: []
            for what in ("accepted, and lost", "not done", "logs that are not what was sent", "erased, and there")
        }
        room, alive = trio.CapacityLimiter(_AT_A_TIME), 0

        async def look(name: str, erased: bool) -> None:  # noqa: FBT001
            async with room:
                came, answer = await self._read_patiently(f"/v1/conversations/{name}")
                log, said = await self._read_patiently(f"/v1/conversations/{name}/log?as=sent")
            if erased:
                odd["erased, and there"] += [f"{name}: {came}, {log}"] if {came[:3], log[:3]} != {"410"} else []
                return
            odd["accepted, and lost"] += [] if came == "200" else [f"{name}: {came}"]
            done = answer is not None and answer.json().get("state") == "done"
            odd["not done"] += [] if done else [name]
            right = log == "200" and self._is_right(name, log, said)
            odd["logs that are not what was sent"] += [] if right else [f"{name}: {log}"]

        async with trio.open_nursery() as nursery:
            for name, content in self.accepted.items():
                erased = content["user_id"] in self.erased
                alive += not erased
                nursery.start_soon(look, name, erased)
        return odd, alive
