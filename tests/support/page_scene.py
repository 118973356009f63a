"""An installation that has something to show on every view of the page, and a browser that looks at it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio
from msgspec import Struct

from convo.store import keys
from tests.support.fakes import FakeServer, failing, healthy, open_model
from tests.support.making import open_store
from tests.support.receivers import Receiver, Reply, receiving
from tests.support.running import ended, serving

HOSTILE = '<img src=x onerror="window.hostile=1"><b class=hostile>bold</b>'
"""Markup in the place of an id and of words: on the page it must be text."""

_SETTINGS = {
    "auth.keys": "true",
    "jobs.attempts_max": "1",
    "llm.attempts": "1",
    "llm.model": "fake",
    "page.sample_seconds": "0.5",
    "webhooks.allow_private": "true",
    "events.types": '["conversation.accepted", "conversation.analysed", "conversation.dead"]',
}


class Scene(Struct, frozen=True):
    """Where it is served, a key with all scopes, one that only reads, one of a bot, and who answers from outside."""

    url: str
    key: str
    reader: str
    bound: str
    webhook: str
    model: FakeServer
    receiver: Receiver

    async def post(self, *bodies: Mapping[str, object], state: str = "done") -> None:
        """Post conversations one after another, and wait until each is in ``state``."""
        headers = {"Authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30) as client:
            for body in bodies:
                answer = await client.post("/v1/conversations/end", json=body)
                assert answer.status_code == 202, answer.text
                found = await client.get(answer.headers["location"], params={"wait": "7"})
                assert found.json()["state"] == state, found.text


@asynccontextmanager
async def scene(database: str, folder: Path) -> AsyncIterator[Scene]:
    """Serve it: one hostile conversation, some of one user, three dead letters, and an endpoint that fails."""
    async with open_store(database) as postgres:
        key = await keys.new(postgres, "operators", list(keys.SCOPES), 0)
        reader = await keys.new(postgres, "readers", ["read"], 0)
        bound = await keys.new(postgres, "of-pika", ["read", "write"], 0, bots=["pika"])
    with receiving() as receiver:
        async with open_model() as model, serving(folder, database, {**_SETTINGS, "llm.base_url": model.url}) as url:
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
                made = (await client.post("/v1/webhooks", json={"url": receiver.url})).json()
                # It becomes so when the service has pinged it.
                while (await client.get(f"/v1/webhooks/{made['id']}")).json()["state"] != "active":  # noqa: ASYNC110
                    await trio.sleep(0.02)
                receiver.answer = lambda _: Reply(status=500, body=HOSTILE.encode())
            found = Scene(url, key, reader, bound, made["id"], model, receiver)
            log = [
                {"role": "assistant", "content": "Hello! " + HOSTILE},
                {"role": "user", "content": f"I have a dog named Rex. {HOSTILE} Why do dogs bark?"},
                {"role": "assistant", "content": "To talk. " * 30},
            ]
            await found.post(ended(f"talk-{HOSTILE}", log, user_id=f"user-{HOSTILE}", bot_id=f"bot-{HOSTILE}"))
            await found.post(*(ended(f"talk-{number}", user_id="user-1") for number in range(4)))
            model.always = failing("413", "too_long " + HOSTILE)
            await found.post(*(ended(f"poor-{number}", user_id="user-2") for number in range(3)), state="dead")
            model.always = healthy
            yield found


def shots(folder: Path) -> Path:
    """Return where pictures are written: ``CONVO_SCREENSHOTS``, or the test's own folder."""
    path = Path(os.environ.get("CONVO_SCREENSHOTS") or folder / "shots")
    path.mkdir(parents=True, exist_ok=True)
    return path
