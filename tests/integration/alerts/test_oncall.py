"""The whole service with a rotation: a real mail server and a real PagerDuty's place, an acknowledgement, a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.support.mail_server import MailServer, mail_server
from tests.support.receivers import Receiver, Reply, receiving
from tests.support.running import eventually, serving

QUICK = {"alerts.evaluate_seconds": "0.05", "alerts.look_seconds": "0.1", "alerts.backoff_seconds": "0.1"}
# No disk has as much, so that this alert lasts from the start.
ALWAYS = {"alerts.disk_free_bytes": str(1 << 50), "observe.loop_block_seconds": "0", "jobs.workers": "0"}
ACK = {"type": "DISK_LOW", "component": "data_dir", "by": "anna"}


def rotating(mails: MailServer, pagerduty: Receiver, escalate_seconds: float) -> dict[str, str]:
    people = {name: {"email": f"{name}@example.com"} for name in ("anna", "ben")}
    return {
        **QUICK,
        **ALWAYS,
        "alerts.pagerduty_key": "r0ut1ng",
        "alerts.pagerduty_url": pagerduty.url,
        "smtp.host": "localhost",
        "smtp.port": str(mails.port),
        "smtp.security": "none",
        "smtp.sender": "convo@example.com",
        "oncall.people": json.dumps(people),
        "oncall.rotation": '["anna"]',
        "oncall.escalate_seconds": str(escalate_seconds),
    }


async def disk_low(client: httpx.AsyncClient) -> dict[str, Any]:
    while True:
        for one in (await client.get("/v1/alerts")).json()["active"]:
            if one["type"] == "DISK_LOW":
                return dict(one)
        await trio.sleep(0.02)


async def test_an_alert_goes_from_one_to_the_next_until_it_is_acknowledged_and_a_restart_keeps_that(
    tmp_path: Path, database: str
) -> None:
    with trio.fail_after(50), receiving(lambda _: Reply(status=202)) as pagerduty:
        async with mail_server() as mails:
            settings = rotating(mails, pagerduty, 1.5)
            async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
                await eventually(lambda: len(mails.taken) >= 2)
                answer = await client.post("/v1/alerts/acknowledge", json=ACK)
                assert answer.status_code == 200
                (given,) = answer.json()["alerts"]
                assert (given["component"], given["acknowledged_by"]) == ("data_dir", "anna")
                # Each of the two gets the acknowledgement, and PagerDuty.
                await eventually(lambda: len(mails.taken) >= 4 and len(pagerduty.got) >= 2)
                shown = await disk_low(client)
                assert (shown["acknowledged_by"], shown["acknowledged_at"]) == ("anna", given["acknowledged_at"])
                (again,) = (await client.post("/v1/alerts/acknowledge", json=ACK | {"by": "ben"})).json()["alerts"]
                assert again == given
            found = [(one.to[0].partition("@")[0], one.mail["Subject"].split()[2]) for one in mails.taken]
            assert found[:2] == [("anna", "raised:"), ("ben", "escalated:")]
            # Each of them has a queue of its own.
            assert sorted(found[2:]) == [("anna", "acknowledged:"), ("ben", "acknowledged:")]
            actions = [one.event["event_action"] for one in pagerduty.got]
            assert actions == ["trigger", "acknowledge"]
            async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
                while (await disk_low(client))["acknowledged_by"] is None:  # noqa: ASYNC110
                    await trio.sleep(0.02)
                # By then all would be notified.
                await trio.sleep(2)
                assert (await disk_low(client))["acknowledged_by"] == "anna"
            assert len(mails.taken) == 4


async def test_what_is_sent_to_acknowledge_is_checked(tmp_path: Path, database: str) -> None:
    async with (
        serving(tmp_path, database, {**QUICK, **ALWAYS}) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        # What lasts is told only once it was notified.
        other = {"type": "LEDGER_GAP"}
        while "none does" in (await client.post("/v1/alerts/acknowledge", json=other)).text:  # noqa: ASYNC110
            await trio.sleep(0.02)
        for sent, status, words in (
            ({"type": "DISK_HIGH"}, 422, "'DISK_HIGH' is no type of alert"),
            ({"type": "DISK_LOW", "component": "disk"}, 404, "these do: DISK_LOW of 'data_dir'"),
            ({"type": "LEDGER_GAP"}, 404, "no alert LEDGER_GAP lasts"),
            ({"component": "data_dir"}, 422, "type"),
            ({"type": "DISK_LOW", "who": "anna"}, 422, "who"),
            ({"type": "DISK_LOW", "by": "an\nna"}, 422, ""),
        ):
            answer = await client.post("/v1/alerts/acknowledge", json=sent)
            assert (answer.status_code, words in answer.text) == (status, True), answer.text
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/v1/alerts/acknowledge", content=b"{", headers=headers)
        assert answer.status_code == 400


async def test_a_test_reaches_every_way_of_every_person(tmp_path: Path, database: str) -> None:
    with trio.fail_after(30), receiving(lambda _: Reply(status=202)) as pagerduty:
        async with mail_server() as mails:
            settings = rotating(mails, pagerduty, 0.0) | {"alerts.disk_free_bytes": "0"}
            async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
                found = (await client.post("/v1/alerts/test")).json()["sinks"]
    assert [(one["sink"], one["ok"]) for one in found] == [
        ("log", True),
        ("pagerduty", True),
        ("email.anna", True),
        ("email.ben", True),
    ]
    assert [one.event["event_action"] for one in pagerduty.got] == ["trigger", "resolve"]
    assert {one.to for one in mails.taken} == {("anna@example.com",), ("ben@example.com",)}
