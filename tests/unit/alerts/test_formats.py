from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from convo import handbook
from convo.alerts import formats
from convo.alerts.formats import Notification
from convo.alerts.rules import KINDS, Alert, Evidence, condition
from convo.store.open_alerts import Acknowledgement

AT = datetime(2026, 11, 25, 4, 0, 0, tzinfo=UTC)


def message(component: str = "jobs") -> Notification:
    evidence = Evidence(figures={"unreviewed": 2}, ids=("c 1", "c-2"))
    alert = Alert(
        condition=condition("DEAD_LETTER", component, "there are some", evidence=evidence), since=0.0, notified=1
    )
    view = formats.view(alert, raised_at=AT, ended_at=None, process="here/1")
    return Notification(id="msg_1", change="raised", at=AT + timedelta(seconds=5), alert=view)


def test_the_webhooks_body_says_what_who_since_when_what_to_do_and_why() -> None:
    assert json.loads(formats.webhook_body(message())) == {
        "type": "alert.raised",
        "timestamp": "2026-11-25T04:00:05Z",
        "data": {
            "type": "DEAD_LETTER",
            "component": "jobs",
            "level": "CRITICAL",
            "trigger": "there are some",
            "do": "convo dead, then convo retry ID or convo acknowledge ID.",
            "raised_at": "2026-11-25T04:00:00Z",
            "ended_at": None,
            "count": 1,
            "told": 1,
            "evidence": {
                "figures": {"unreviewed": 2},
                "ids": ["c 1", "c-2"],
                "explain": ["/v1/conversations/c%201/explain", "/v1/conversations/c-2/explain"],
            },
            "process": "here/1",
            "handbook": "/docs/alerts#dead_letter",
            "acknowledged_at": None,
            "acknowledged_by": None,
        },
    }


@pytest.mark.parametrize("body", [formats.slack_body, formats.google_chat_body])
def test_chats_get_a_text_that_says_it_in_lines(body: object) -> None:
    assert callable(body)
    assert json.loads(body(message())) == {
        "text": (
            "🔴 *CRITICAL DEAD_LETTER* raised: jobs\n"
            "there are some (since 2026-11-25 04:00:00Z)\n"
            "unreviewed 2\n"
            "Do: convo dead, then convo retry ID or convo acknowledge ID.\n"
            "Handbook: /docs/alerts#dead_letter\n"
            "/v1/conversations/c%201/explain\n"
            "/v1/conversations/c-2/explain"
        )
    }


def test_slack_is_given_no_markup_of_somebody_else() -> None:
    text = json.loads(formats.slack_body(message("<!channel> & co")))["text"]
    assert "&lt;!channel&gt; &amp; co" in text


def test_links_begin_with_the_public_url_and_lead_to_a_section_of_the_handbook() -> None:
    for kind in KINDS:
        alert = Alert(condition=condition(kind, "x", "why", evidence=Evidence(ids=("c 1",))), since=0.0)
        shown = formats.view(
            alert, raised_at=AT, ended_at=None, process="here/1", public_url="https://convo.example.com"
        )
        address, _, anchor = shown.handbook.partition("#")
        assert address == "https://convo.example.com/docs/alerts"
        assert f"\n### {anchor.upper()}\n" in handbook.page("alerts")
        assert shown.evidence.explain == ("https://convo.example.com/v1/conversations/c%201/explain",)


def test_a_message_says_who_has_acknowledged_it() -> None:
    alert = Alert(condition=condition("DEAD_LETTER", "jobs", "why"), since=0.0)
    by = Acknowledgement(by="anna", at=AT)
    shown = formats.view(alert, raised_at=AT, ended_at=None, process="here/1", acknowledged=by)
    text = json.loads(formats.slack_body(Notification(id="msg_1", change="acknowledged", at=AT, alert=shown)))["text"]
    assert text.startswith("🟡 *CRITICAL DEAD_LETTER* acknowledged: jobs\n")
    assert "Acknowledged by anna" in text
