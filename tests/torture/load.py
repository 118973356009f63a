"""What is sent to a world: conversations of known ids, each one to five times at once, some with changed content."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import trio

from tests.torture.auditor import Receipt, Record
from tests.torture.world import GATEWAY_SECONDS, World, wall

END = "/v1/conversations/end"
_USERS_EACH = 20
_CHANGED = 0.12
_READ = 0.15
_PER_SECOND = 14.0
_HURRIED_PER_SECOND = 40.0
_PAUSE_SECONDS_MAX = 2.0
# In an outage all of them try again. More would leave this process no time for its proxies and faults.
_SENDERS_MAX = 120
_AWAY = (OSError, httpx.HTTPError)
_numbers = iter(range(1, 1_000_000))


class Load:
    """Sends ``count`` conversations, whose content follows from the seed."""

    def __init__(self, world: World, record: Record, seed: int, count: int, *, name: str = "torture") -> None:
        self._world = world
        self._record = record
        self._chance = random.Random(seed)
        self._seed = seed
        self._count = count
        self._name = name
        self._per_second = _PER_SECOND
        self._room = trio.Semaphore(_SENDERS_MAX)

    def hurry(self) -> None:
        """Send the rest faster: all faults are over."""
        self._per_second = _HURRIED_PER_SECOND

    async def run(self) -> None:
        """Send everything, each until it has its final answer."""
        async with httpx.AsyncClient(timeout=GATEWAY_SECONDS, limits=_NO_LIMITS) as client, trio.open_nursery() as all_:
            for number in range(self._count):
                name = f"{self._name}-{self._seed}-{number:05}"
                user = f"user-{self._chance.randrange(max(1, self._count // _USERS_EACH))}"
                for _ in range(self._chance.randint(1, 5)):
                    variant = int(self._chance.random() < _CHANGED)
                    await self._room.acquire()
                    all_.start_soon(self._send, client, body(name, user, variant), variant)
                await trio.sleep(1 / self._per_second)

    async def _send(self, client: httpx.AsyncClient, content: dict[str, Any], variant: int) -> None:
        try:
            await send(self._world, self._record, client, content, variant)
        finally:
            self._room.release()


_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=50)


def body(name: str, user: str, variant: int = 0) -> dict[str, Any]:
    """Make one conversation; another variant has the same id and other content."""
    changed = f" For the {variant}. time." if variant else ""
    turns = (
        ("BOT", "Hello! How was your day?"),
        ("USER", f"I like tea and {name}.{changed} Do you know why?"),
        ("BOT", "Because it is warm."),
    )
    log = [{"character": who, "content": what} for who, what in turns]
    return {"conversation_id": name, "user_id": user, "bot_id": f"bot-{len(name) % 3}", "conversation_log": log}


async def send(
    world: World, record: Record, client: httpx.AsyncClient, content: dict[str, Any], variant: int = 0
) -> None:
    """Send one conversation as a client should: repeat it, to any of the processes, until it has its answer."""
    while True:
        answer = await _timed(world, record, client, "POST", END, content)
        # 410: it was erased, or its user.
        if answer is not None and answer.status_code in {202, 409, 410}:
            _note(record, content["conversation_id"], variant, answer)
            break
        hint = answer.headers.get("retry-after") if answer is not None else None
        if answer is not None and hint is None:
            record.without_hint += 1
        await trio.sleep(min(float(hint or 0.3), _PAUSE_SECONDS_MAX) * random.uniform(0.5, 1.0))
    if random.random() < _READ:
        await _timed(world, record, client, "GET", f"/v1/users/{content['user_id']}/relationship")


def _note(record: Record, name: str, variant: int, answer: httpx.Response) -> None:
    digest = answer.json()["digest"] if answer.status_code == 202 else ""
    replayed = answer.headers.get("idempotent-replayed") == "true"
    record.answered(
        Receipt(id=name, variant=variant, status=answer.status_code, digest=digest, at=wall(), replayed=replayed)
    )


async def _timed(  # noqa: PLR0917  (whom to ask, where to note it, and what)
    world: World, record: Record, client: httpx.AsyncClient, method: str, path: str, content: Any = None
) -> httpx.Response | None:
    """Send a request to any of the processes; None where there was no answer. Only processes that were up are timed."""
    convo = random.choice(world.convos)
    began = trio.current_time()
    answer = None
    try:
        answer = await client.request(method, convo.url + path, json=content)
        status = str(answer.status_code)
    except httpx.TimeoutException:
        status = "none at the gateway"
    except _AWAY:
        status = "no connection"
    if status == "no connection" or convo.was_away(began):
        record.statuses["process away"] += 1
    else:
        record.took(f"{method} {path} at {convo.folder.name}", trio.current_time() - began, status=status)
    return answer


async def probe(world: World, record: Record, *, can_be_done: bool = True) -> tuple[float, float | None]:
    """Send one more conversation of a user of its own; return after how many seconds it is accepted, and done.

    Where it cannot be done now, wait for the first only.
    """
    name = f"probe-{next(_numbers)}"
    began = trio.current_time()
    async with httpx.AsyncClient(timeout=GATEWAY_SECONDS) as client:
        await send(world, record, client, body(name, f"user-{name}"))
        accepted = trio.current_time()
        while can_be_done:
            for convo in world.convos:
                try:
                    answer = await client.get(f"{convo.url}/v1/conversations/{name}", params={"wait": "2"})
                except _AWAY:
                    continue
                if answer.status_code == 200 and answer.json()["state"] == "done":
                    return accepted - began, trio.current_time() - began
            await trio.sleep(0.1)
    return accepted - began, None


async def until_done(world: World, seconds: float, report: Callable[[str], None]) -> None:
    """Wait until no job is left to be done, at most ``seconds``; the audit shows what is left."""
    with trio.move_on_after(seconds):
        while left := (await world.ask("SELECT count(*) FROM job WHERE state IN ('ready', 'leased')"))[0][0]:
            report(f"{left} conversations to be analysed")
            await trio.sleep(2.0)


async def revive_the_dead(world: World) -> int:
    """Retry every dead letter at its endpoint; return how many there were."""
    dead: Sequence[Any] = await world.ask(
        "SELECT conversation_id FROM conversation JOIN job USING (seq) WHERE state = 'dead'"
    )
    async with httpx.AsyncClient(base_url=world.convos[0].url, timeout=GATEWAY_SECONDS) as client:
        for row in dead:
            (await client.post(f"/v1/conversations/{row['conversation_id']}/retry")).raise_for_status()
    return len(dead)
