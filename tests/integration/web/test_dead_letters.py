from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.fakes import failing, healthy, open_model
from tests.support.running import ended, serving

DEAD, RETRY = "/v1/dead-letters", "/v1/dead-letters/retry"
ONCE = {"jobs.attempts_max": "1", "llm.attempts": "1", "llm.model": "fake"}
PATIENT = {"web.request_seconds": "3600", "ladder.gateway_seconds": "3700"}


async def test_many_dead_letters_are_counted_and_come_back_in_batches(database: str, tmp_path: Path) -> None:
    async with open_model() as model:
        model.always = failing("413", "too_long")
        settings = {**ONCE, **PATIENT, "llm.base_url": model.url}
        async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            links = []
            for number in range(3):
                bot_id = "bot-other" if number == 2 else "bot-1"
                answer = await client.post("/v1/conversations/end", json=ended(f"poor-{number}", bot_id=bot_id))
                links.append(answer.headers["location"])
            for link in links:
                assert (await client.get(link, params={"wait": "3000"})).json()["state"] == "dead"
            found = (await client.get(DEAD)).json()
            assert (found["total"], found["complete"]) == (3, True)
            assert sum(reason["count"] for reason in found["reasons"]) == 3
            assert "413" in found["reasons"][0]["reason"]
            assert (await client.get(DEAD, params={"bot_id": "bot-other"})).json()["total"] == 1
            assert (await client.get(DEAD, params={"since": "2200-01-01T00:00:00Z"})).json()["total"] == 0

            model.always = healthy
            dry = await client.post(RETRY, params={"dry_run": "true"})
            assert (dry.status_code, dry.json()) == (202, {"retried": 3, "dry_run": True, "next_cursor": None})
            assert (await client.get(DEAD)).json()["total"] == 3
            which = {"bot_id": "bot-1", "reason": "413", "limit": "1"}
            batches, cursor = [], None
            while True:
                batch = await client.post(RETRY, params={**which, **({} if cursor is None else {"cursor": cursor})})
                batches.append(batch.json()["retried"])
                cursor = batch.json()["next_cursor"]
                if cursor is None:
                    break
            assert batches == [1, 1, 0]
            states = [(await client.get(link, params={"wait": "3000"})).json()["state"] for link in links[:2]]
            assert states == ["done", "done"]
            assert (await client.get(links[2])).json()["state"] == "dead"


@pytest.mark.parametrize(
    ("name", "value"),
    [("since", "yesterday"), ("since", ""), ("dry_run", "yes"), ("limit", "0"), ("cursor", "x"), ("reason", "\x00")],
)
def test_what_is_no_filter_is_422_with_its_name_and_retries_nothing(
    client: httpx.Client, name: str, value: str
) -> None:
    for method, path in (("POST", RETRY), *([("GET", DEAD)] if name in ("since", "reason") else [])):
        answer = client.request(method, path, params={name: value})
        assert (answer.status_code, answer.json()["path"]) == (422, name)
