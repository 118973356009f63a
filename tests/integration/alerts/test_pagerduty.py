from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from convo.alerts import formats
from convo.alerts.formats import Notification
from convo.alerts.pagerduty import PagerDutySink
from convo.alerts.rules import Alert, Change, Evidence, condition
from convo.errors import RemoteBusy, RemoteError, RemoteRefused, RemoteUnavailable
from convo.outbound import OutboundClient
from convo.settings import Secret
from tests.support.making import AT
from tests.support.receivers import Receiver, Reply, receiving

PUBLIC = "https://convo.example.com"


@pytest.fixture
def pagerduty() -> Iterator[Receiver]:
    with receiving(lambda _: Reply(status=202, body=b'{"status": "success"}')) as receiver:
        yield receiver


async def sent(
    receiver: Receiver, change: Change = "raised", *, kind: str = "DEAD_LETTER", process: str = "host/4f1c", **more: Any
) -> list[dict[str, Any]]:
    alert = Alert(
        condition=condition(kind, "jobs", "there are some", evidence=Evidence(figures={"unreviewed": 2})), since=0.0
    )
    public_url = more.get("public_url", "")
    view = formats.view(alert, raised_at=AT, ended_at=None, process=process, public_url=public_url)
    async with OutboundClient("pagerduty", seconds=1.0) as client:
        sink = PagerDutySink(
            name="pagerduty",
            client=client,
            url=Secret(receiver.url),
            key=Secret("R0UT1NG"),
            seconds=1.0,
            public_url=public_url,
        )
        await sink.send(Notification(id="msg_1", change=change, at=AT, alert=view))
    return [one.event for one in receiver.got]


async def test_a_raised_alert_triggers_an_incident_with_what_to_do_and_a_link(pagerduty: Receiver) -> None:
    (event,) = await sent(pagerduty, public_url=PUBLIC)
    assert event["routing_key"] == "R0UT1NG"
    assert event["event_action"] == "trigger"
    assert event["links"] == [{"href": f"{PUBLIC}/docs/alerts#dead_letter", "text": "What to do"}]
    payload = event["payload"]
    assert payload["summary"] == "DEAD_LETTER jobs: there are some"
    assert (payload["severity"], payload["source"], payload["component"]) == ("critical", "host/4f1c", "jobs")
    assert payload["timestamp"].startswith(f"{AT:%Y-%m-%dT%H:%M:%S}")
    assert payload["custom_details"]["figures"] == {"unreviewed": 2}
    assert payload["custom_details"]["do"].startswith("convo dead")


async def test_without_a_public_url_no_link_is_sent_that_pagerduty_would_refuse(pagerduty: Receiver) -> None:
    (event,) = await sent(pagerduty)
    assert "links" not in event
    assert event["payload"]["custom_details"]["handbook"] == "/docs/alerts#dead_letter"


@pytest.mark.parametrize(
    ("kind", "severity"),
    [
        ("DEAD_LETTER", "critical"),
        ("BACKLOG_OLD", "error"),
        ("LOGS_BEHIND", "warning"),
        ("SLOW_DATABASE_QUERY", "info"),
    ],
)
async def test_each_level_has_its_severity(pagerduty: Receiver, kind: str, severity: str) -> None:
    (event,) = await sent(pagerduty, kind=kind)
    assert event["payload"]["severity"] == severity


async def test_all_that_becomes_of_an_alert_is_of_one_incident(pagerduty: Receiver) -> None:
    changes: tuple[Change, ...] = ("raised", "lasting", "escalated", "acknowledged", "resolved")
    for change in changes:
        await sent(pagerduty, change)
    events = [one.event for one in pagerduty.got]
    assert [one["event_action"] for one in events] == ["trigger"] * 3 + ["acknowledge", "resolve"]
    assert len({one["dedup_key"] for one in events}) == 1
    assert "payload" not in events[-1]


async def test_what_all_share_is_one_incident_whichever_process_leads_and_others_are_not(pagerduty: Receiver) -> None:
    await sent(pagerduty, process="host/4f1c")
    await sent(pagerduty, process="other/9a2b")
    await sent(pagerduty, kind="LOOP_BLOCKED", process="host/4f1c")
    await sent(pagerduty, kind="LOOP_BLOCKED", process="other/9a2b")
    events = await sent(pagerduty, kind="LOOP_BLOCKED", process="host-after-a-restart/4f1c")
    keys = [one["dedup_key"] for one in events]
    assert keys[0] == keys[1]
    assert len({keys[0], keys[2], keys[3]}) == 3
    assert keys[2] == keys[4]


async def test_a_test_leaves_no_incident_open(pagerduty: Receiver) -> None:
    events = await sent(pagerduty, "test")
    assert [one["event_action"] for one in events] == ["trigger", "resolve"]
    assert {one["dedup_key"] for one in events} == {"msg_1"}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=400), RemoteRefused),
        (Reply(status=429, headers={"Retry-After": "3"}), RemoteBusy),
        (Reply(status=503), RemoteUnavailable),
        (Reply(hangs=True), RemoteUnavailable),
        (Reply(drips=True), RemoteUnavailable),
    ],
)
async def test_a_fault_is_told_apart_and_shows_no_key(
    pagerduty: Receiver, reply: Reply, kind: type[RemoteError]
) -> None:
    pagerduty.answer = lambda _: reply
    with pytest.raises(kind) as caught:
        await sent(pagerduty)
    assert "R0UT1NG" not in str(caught.value)
