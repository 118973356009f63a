from __future__ import annotations

import itertools
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from convo.observe import log_records
from convo.settings import Settings
from convo.web import accept
from convo.web.description.messages import Answer, Head
from convo.web.door import answered
from convo.web.operations import OperationsRoutes
from convo.web.pings import Pings
from convo.web.readiness import Readiness
from tests.support.running import ended, running, serving

LONG = json.dumps([0.1234567] * 1_500_000)


@pytest.mark.blocks_loop(reason="that it is told of is what is tested")
async def test_a_json_loads_planted_in_a_route_is_named_with_its_line_and_its_conversation(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = accept._receipt

    def planted(*arguments: Any) -> Any:
        for _ in range(2 + number):
            json.loads(LONG)  # 100 to 200 ms
        return receipt(*arguments)

    # The client first: it reads certificates, which holds this loop, and only one block in 10 s is logged.
    async with httpx.AsyncClient(timeout=30) as client, serving(tmp_path, database) as url:
        client.base_url = httpx.URL(url)
        monkeypatch.setattr(accept, "_receipt", planted)
        line = planted.__code__.co_firstlineno + 2
        # The watchdog looks when json lets the lock go. On a busy machine it may be given a processor too late: each
        # further try holds the loop for longer.
        told: dict[str, Any] = {}
        stack: list[str] = []
        for number in range(20):
            # Of what was blocked in the last 10 s one is logged: a start on a busy machine may have been that one.
            log_records._seldom.forget()
            with capture_logs() as lines:
                answer = await client.post("/v1/conversations/end", json=ended(f"planted-{number}"))
                assert answer.status_code == 202
                figures = (await client.get("/metrics")).text
            found = (dict(one) for one in lines if one["event"] == "loop_blocked" and _is_of(one, number))
            told = next(found, {"stack": ""})
            stack = told["stack"].split(" < ")
            if f"tests/integration/runtime/test_loop_watch.py:{line} planted" in stack:
                break
        else:
            pytest.fail(f"never named: {stack}")
    assert told["seconds"] > 0.1
    assert told["cause"] == "code"
    assert [place for place in stack if re.fullmatch(r"convo/web/accept\.py:\d+ _commit", place)]
    assert told["task"]
    assert re.search(r'^convo_loop_blocked_total{cause="code"} [1-9]', figures, re.MULTILINE)
    assert re.search(r"^convo_loop_pass_seconds_count [1-9]", figures, re.MULTILINE)


def _is_of(line: Any, number: int) -> bool:
    return bool(line["conversation_id"] == f"planted-{number}")


# --- the tasks


def test_the_tasks_are_shown_to_this_machine_with_where_they_wait(client: httpx.Client) -> None:
    told = client.get("/debug/tasks")
    assert told.status_code == 200
    body = told.json()
    seen = list(flat(body["root"]))
    assert (body["tasks"], body["pid"] > 0) == (len(seen), True)
    workers = [one for one in seen if one["name"].endswith("Worker.run")]
    assert len(workers) == 8
    for worker in workers:
        assert worker["waits_in"].startswith("trio/_channel.py:")
        assert re.fullmatch(r"convo/pipeline/worker\.py:\d+ run", worker["ours"])
    # The request that asks is one of them.
    assert [one for one in seen if one["deadline"] == "web.request" and 0 < one["deadline_seconds"] < 8]


def flat(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield task
    for nursery in task["nurseries"]:
        for child in nursery["tasks"]:
            yield from flat(child)


def test_a_signal_tells_the_same_in_the_log(postgres_url: str, database: str, tmp_path: Path) -> None:
    with running(tmp_path, database) as convo:
        convo.signal(signal.SIGUSR1)
        until = time.monotonic() + 20
        while "Worker.run" not in convo.output or "_publish" not in convo.output:
            assert time.monotonic() < until, convo.output
            time.sleep(0.05)
        assert httpx.get(f"{convo.url}/livez").status_code == 200
        lines = [json.loads(line) for line in convo.output.splitlines() if '"task_waits"' in line]
    assert lines[0]["depth"] == 0
    assert {"task", "waits_in", "depth"} <= lines[-1].keys()


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("127.0.0.1", 200), ("127.8.9.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200),
        ("10.0.0.7", 403), ("::ffff:10.0.0.7", 403), ("0.0.0.0", 403), ("", 403), ("<local>", 403),
    ],
)  # fmt: skip
async def test_nobody_else_is_shown_any(peer: str, status: int) -> None:
    operations = OperationsRoutes(
        readiness=Readiness(), pings=Pings({}), check_stores=lambda: None, alerts=cast("Any", None)
    )

    async def serve() -> Answer:
        return await operations.tasks(peer)

    head = Head(method="GET", path="/debug/tasks", peer=peer, started=trio.current_time())
    answer = await answered("/debug/tasks", head, Settings(), serve)
    assert answer.status == status
    if status == 403:
        assert json.loads(answer.body)["code"] == "forbidden"


async def test_what_was_said_is_nowhere_in_it(database: str, tmp_path: Path) -> None:
    canary = "canary-4711-never-shown"
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        body = ended("shown-1", [{"character": "USER", "content": canary}])
        shown = []

        async def look() -> None:
            while True:
                shown.append((await client.get("/debug/tasks")).text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            # On a busy machine none of the first may be seen under way.
            for number in itertools.count():
                await client.post("/v1/conversations/end", json={**body, "conversation_id": f"shown-{number}"})
                if number >= 20 and any('conversation_id":"shown-' in text for text in shown):
                    break
            nursery.cancel_scope.cancel()
    assert canary not in "".join(shown)
