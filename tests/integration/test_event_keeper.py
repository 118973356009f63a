from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from convo import event_keeper
from convo.conversation.tenant import DEFAULT
from convo.settings import EventsSettings, Settings
from convo.store.audit_log import NO_CALLER
from convo.store.event_expiry import expire_events, find_expiring
from convo.store.event_numbers import number_events
from convo.store.webhooks import ReplayFilter, WebhookDraft, make_webhook, replay
from tests.support.making import Process, ask, open_process, shift_clock, told

ON = Settings(events=EventsSettings(types=("conversation.accepted",)))


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, ON) as opened:
        yield opened


async def test_events_go_when_they_are_over_with_their_attempts_and_what_stepped_aside(process: Process) -> None:
    made, _ = await make_webhook(process.postgres, DEFAULT, WebhookDraft(url="http://receiver.example/"), NO_CALLER)
    await process.accepted("talk-1")
    await number_events(process.postgres)
    await ask(process.postgres, "UPDATE webhook SET cursor = 1")
    assert (await replay(process.postgres, DEFAULT, made.webhook_id, ReplayFilter())).count == 1
    await ask(
        process.postgres,
        "INSERT INTO webhook_attempt (webhook_id, event_id, answer, seconds) VALUES ('wh_1', '1-0', '', 1)",
    )
    assert not await expire_events(process.postgres, 7)
    assert await ask(process.postgres, "SELECT count(*) FROM event") == 1
    await shift_clock(process.postgres, "7 days")
    await process.accepted("talk-2")
    assert not await expire_events(process.postgres, 7)
    assert await ask(process.postgres, "SELECT array_agg(conversation_id) FROM event") == ["talk-2"]
    assert await ask(process.postgres, "SELECT count(*) FROM webhook_aside") == 0
    assert await ask(process.postgres, "SELECT count(*) FROM webhook_attempt") == 0


async def test_an_endpoint_that_has_not_confirmed_what_is_over_soon_is_found(process: Process) -> None:
    late, _ = await make_webhook(process.postgres, DEFAULT, WebhookDraft(url="http://receiver.example/"), NO_CALLER)
    await process.accepted("talk-1")
    await number_events(process.postgres)
    await make_webhook(process.postgres, DEFAULT, WebhookDraft(url="http://other.example/"), NO_CALLER)
    assert await find_expiring(process.postgres, 7) == []
    await shift_clock(process.postgres, "6 days")
    assert [one.receiver for one in await find_expiring(process.postgres, 7)] == [late.webhook_id]
    await ask(process.postgres, "UPDATE webhook SET cursor = 1")
    assert await find_expiring(process.postgres, 7) == []
    await ask(process.postgres, f"INSERT INTO webhook_aside (webhook_id, number) SELECT '{late.webhook_id}', 1")
    assert [one.receiver for one in await find_expiring(process.postgres, 7)] == [late.webhook_id]


async def test_the_keeper_of_the_process_that_leads_reports_and_removes(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_keeper, "_LOOK_SECONDS", 0.01)
    await make_webhook(process.postgres, DEFAULT, WebhookDraft(url="http://receiver.example/"), NO_CALLER)
    await process.accepted("talk-1")
    await number_events(process.postgres)
    await shift_clock(process.postgres, "8 days")
    leads = False
    with told() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event_keeper.keep_events, process.postgres, ON.events, lambda: leads)
            await trio.sleep(0.3)
            assert await ask(process.postgres, "SELECT count(*) FROM event") == 1
            leads = True
            with trio.fail_after(5):
                while await ask(process.postgres, "SELECT count(*) FROM event"):  # noqa: ASYNC110
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert "events_expiring" in records
