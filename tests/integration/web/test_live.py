from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.store import keys
from convo.store.history import SKIP_EVENT_NUMBERS
from convo.web import conversations
from convo.web.conversations import ReadRoutes
from tests.integration.web.test_event_stream import ACCEPTED, END, convo, numbered, posted
from tests.support.making import ask, open_store
from tests.support.running import ended

FIGURES = {**ACCEPTED, "page.sample_seconds": "0.2"}
SCOPES: list[Any] = ["read", "write", "admin"]


class Viewer:
    """One live stream: its frames so far, by their kind."""

    def __init__(self) -> None:
        self.frames: dict[str, list[Any]] = {"live": [], "figures": [], "changes": []}
        self.ended = trio.Event()

    async def look(self, client: httpx.AsyncClient, headers: Mapping[str, str] | None = None) -> None:
        async with client.stream("GET", "/v1/live", headers=dict(headers or {})) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["cache-control"] == "no-store"
            kind = ""
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    self.frames[kind].append(json.loads(value))
        self.ended.set()

    async def got(self, kind: str, count: int) -> list[Any]:
        with trio.fail_after(10):
            while len(self.frames[kind]) < count:  # noqa: ASYNC110  (a stream rings no bell)
                await trio.sleep(0.02)
        return self.frames[kind]


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_viewer_gets_every_sample_once_and_word_of_what_happens(database: str, tmp_path: Path) -> None:
    async with convo(tmp_path, database, FIGURES) as client, trio.open_nursery() as nursery:
        await posted(client, "before")
        await numbered(database, 1)
        viewer = Viewer()
        nursery.start_soon(viewer.look, client)
        assert await viewer.got("live", 1) == [{"figures": True, "changes": True}]
        await trio.sleep(0.5)
        await posted(client, "one", "two")
        (changes,) = await viewer.got("changes", 1)
        assert changes == {"sequence": 3, "types": {"conversation.accepted": 2}}
        figures = await viewer.got("figures", 5)
        sent = [sample["seq"] for one in figures for sample in one["samples"]]
        assert sent == list(range(1, len(sent) + 1))
        # Who comes later gets all samples at first, as from the route that is asked.
        later = Viewer()
        nursery.start_soon(later.look, client)
        (first, *_) = await later.got("figures", 1)
        assert [sample["seq"] for sample in first["samples"]][: len(sent)] == sent
        asked = (await client.get("/v1/figures")).json()
        assert set(first) == set(asked)
        assert asked["whole"] is first["whole"] is True
        nursery.cancel_scope.cancel()


async def test_a_viewer_is_told_of_what_its_key_reaches_alone(database: str, tmp_path: Path) -> None:
    async with convo(tmp_path, database, {**FIGURES, "auth.keys": "true"}) as client:
        async with open_store(database) as postgres:
            whole = await keys.new(postgres, "whole", SCOPES, 0)
            bound = await keys.new(postgres, "bound", SCOPES[:2], 0, bots=["pika"])
            other = await keys.new(postgres, "other", SCOPES, 0, tenant="acme")
        async with trio.open_nursery() as nursery:
            viewers = {key: Viewer() for key in (whole, bound, other)}
            for key, viewer in viewers.items():
                nursery.start_soon(viewer.look, client, of(key))
                await viewer.got("live", 1)
            await trio.sleep(0.5)
            for key, name, bot in (
                (whole, "one", "mia"),
                (whole, "two", "mia"),
                (whole, "three", "pika"),
                (other, "four", "pika"),
            ):
                answer = await client.post(END, json=ended(name, bot_id=bot), headers=of(key))
                assert answer.status_code == 202
            await numbered(database, 4)

            def counts() -> list[int]:
                return [
                    sum(one["types"]["conversation.accepted"] for one in viewer.frames["changes"])
                    for viewer in viewers.values()
                ]

            with trio.move_on_after(10):
                while sum(counts()) < 5:  # noqa: ASYNC110  (a stream rings no bell)
                    await trio.sleep(0.05)
            await trio.sleep(0.5)
            assert counts() == [3, 1, 1]
            assert len(await viewers[whole].got("figures", 3)) >= 3
            for key in (bound, other):
                (figures,) = viewers[key].frames["figures"]
                assert (figures["whole"], figures["samples"], figures["alerts"]) == (False, [], [])
            nursery.cancel_scope.cancel()


async def test_a_live_stream_ends_with_its_key_or_session_in_time(database: str, tmp_path: Path) -> None:
    settings = {**FIGURES, "auth.keys": "true", "auth.refresh_seconds": "2"}
    async with convo(tmp_path, database, settings) as client, open_store(database) as postgres:
        gone, kept, browser = [await keys.new(postgres, name, SCOPES, 0) for name in ("gone", "kept", "browser")]
        signed_in = await client.post("/v1/session", json={"key": browser})
        cookie = signed_in.headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        async with trio.open_nursery() as nursery:
            viewers = {name: Viewer() for name in ("gone", "kept", "browser")}
            for name, headers in (("gone", of(gone)), ("kept", of(kept)), ("browser", {"Cookie": cookie})):
                nursery.start_soon(viewers[name].look, client, headers)
                await viewers[name].got("figures", 1)
            # They outlive readings of keys that are good.
            await trio.sleep(2.5)
            assert [viewer.ended.is_set() for viewer in viewers.values()] == [False] * 3
            for key in (gone, browser):
                await keys.revoke(postgres, key.split("_")[1])
            with trio.fail_after(2.5):
                await viewers["gone"].ended.wait()
                await viewers["browser"].ended.wait()
            await trio.sleep(1)
            assert not viewers["kept"].ended.is_set()
            for headers in (of(gone), {"Cookie": cookie}):
                assert (await client.get("/v1/live", headers=headers)).status_code == 401
            nursery.cancel_scope.cancel()


async def test_who_is_told_of_the_same_event_shares_a_list_within_its_reach(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    listed = ReadRoutes._listed

    async def counted(self: ReadRoutes, reach: Any, *rest: Any) -> Any:
        read.append(reach)
        return await listed(self, reach, *rest)

    monkeypatch.setattr(conversations.ReadRoutes, "_listed", counted)
    async with convo(tmp_path, database, {**ACCEPTED, "auth.keys": "true"}) as client:
        async with open_store(database) as postgres:
            whole, second, bound = [
                await keys.new(postgres, name, SCOPES[:2], 0, bots=bots)
                for name, bots in (("whole", []), ("second", []), ("bound", ["pika"]))
            ]
        for name, bot in (("one", "mia"), ("two", "pika")):
            await client.post(END, json=ended(name, bot_id=bot), headers=of(whole))
        await numbered(database, 2)
        await trio.sleep(1)

        async def names(key: str, query: str) -> list[str]:
            answer = await client.get(f"/v1/conversations{query}", headers=of(key))
            return sorted(one["conversation_id"] for one in answer.json()["conversations"])

        assert [await names(key, "?as_of=2") for key in (whole, second, whole, bound)] == [
            ["one", "two"],
            ["one", "two"],
            ["one", "two"],
            ["two"],
        ]
        assert len(read) == 2
        # Who says nothing, and who was told of a later event, gets what is there now.
        await client.post(END, json=ended("three", bot_id="mia"), headers=of(whole))
        assert await names(whole, "") == ["one", "three", "two"]
        await numbered(database, 3)
        await trio.sleep(1)
        assert await names(second, "?as_of=3") == ["one", "three", "two"]
        assert (await client.get("/v1/dead-letters?as_of=3", headers=of(whole))).json()["total"] == 0
        # What is erased is in no answer that is shared.
        async with open_store(database) as postgres:
            admin = await keys.new(postgres, "eraser", ["erase"], 0)
        assert (await client.delete("/v1/conversations/one", headers=of(admin))).status_code == 200
        assert await names(second, "?as_of=3") == ["three", "two"]


async def test_without_figures_and_without_events_there_is_no_live_stream(database: str, tmp_path: Path) -> None:
    for number, (settings, first) in enumerate(
        (
            ({"page.sample_seconds": "0"}, None),
            ({"page.sample_seconds": "0", **ACCEPTED}, {"figures": False, "changes": True}),
            ({}, {"figures": True, "changes": False}),
        )
    ):
        async with convo(tmp_path / str(number), database, settings) as client, trio.open_nursery() as nursery:
            if first is None:
                answer = await client.get("/v1/live")
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
                continue
            viewer = Viewer()
            nursery.start_soon(viewer.look, client)
            assert await viewer.got("live", 1) == [first]
            nursery.cancel_scope.cancel()


async def test_a_viewer_hears_of_what_happens_after_a_database_went_back(database: str, tmp_path: Path) -> None:
    async with convo(tmp_path, database, ACCEPTED) as client, trio.open_nursery() as nursery:
        viewer = Viewer()
        nursery.start_soon(viewer.look, client)
        await viewer.got("live", 1)
        async with open_store(database) as postgres:
            await ask(postgres, SKIP_EVENT_NUMBERS)
        await posted(client, "after")
        (changes,) = await viewer.got("changes", 1)
        assert changes["types"] == {"conversation.accepted": 1}
        assert changes["sequence"] > 1_000_000_000_000_000
        nursery.cancel_scope.cancel()
