from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from convo.alerts import formats
from convo.alerts.formats import Notification
from convo.alerts.rules import Alert, Evidence, condition

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
            "/v1/conversations/c%201/explain\n"
            "/v1/conversations/c-2/explain"
        )
    }


def test_slack_is_given_no_markup_of_somebody_else() -> None:
    text = json.loads(formats.slack_body(message("<!channel> & co")))["text"]
    assert "&lt;!channel&gt; &amp; co" in text
