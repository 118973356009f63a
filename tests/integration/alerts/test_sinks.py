from __future__ import annotations

import sys
from typing import Any

import pytest

from convo.alerts.sinks import open_sinks
from convo.errors import ConfigError
from convo.settings import AlertsSettings, OncallSettings, PersonSettings, Secret, Settings, SmtpSettings

SMTP = SmtpSettings(host="mail", sender="convo@example.com")


async def names(**sections: Any) -> tuple[list[str], dict[str, list[str]]]:
    async with open_sinks(Settings(**sections)) as sinks:
        people = {name: [queue.sink.name for queue in queues] for name, queues in sinks.people.items()}
        assert len(sinks.every) == len(sinks.shared) + sum(map(len, people.values()))
        return [queue.sink.name for queue in sinks.shared], people


async def test_without_any_setting_alerts_are_logged_and_no_mail_library_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "convo.alerts.mail", raising=False)
    assert await names() == (["log"], {})
    assert "convo.alerts.mail" not in sys.modules


async def test_each_setting_opens_its_sink() -> None:
    alerts = AlertsSettings(
        slack_url=Secret("https://s"),
        google_chat_url=Secret("https://g"),
        webhook_url=Secret("https://w"),
        webhook_secret=Secret("whsec_x"),
        pagerduty_key=Secret("r"),
        email_to=("all@example.com",),
    )
    people = {
        "anna": PersonSettings(email="anna@example.com", pagerduty_key=Secret("a"), slack_url=Secret("https://a")),
        "ben": PersonSettings(slack_url=Secret("https://b")),
    }
    shared, personal = await names(alerts=alerts, smtp=SMTP, oncall=OncallSettings(people=people))
    assert shared == ["log", "webhook", "slack", "google_chat", "pagerduty", "email"]
    assert personal == {"anna": ["pagerduty.anna", "email.anna", "slack.anna"], "ben": ["slack.ben"]}


@pytest.mark.parametrize(
    ("sections", "section"),
    [
        ({"alerts": AlertsSettings(slack_url=Secret("https://s"), ca_file="/none.pem")}, "slack"),
        ({"alerts": AlertsSettings(pagerduty_key=Secret("r"), ca_file="/none.pem")}, "pagerduty"),
    ],
)
async def test_the_sinks_trust_the_authority_of_the_settings(sections: dict[str, Any], section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}: ca_file"):
        await names(**sections)
