from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from convo.alerts.causes import Causes
from convo.alerts.look import Look, SeenRecord
from convo.errors import RemoteUnavailable
from convo.objects.keeper import LogsKeeper
from convo.observe import log_records
from convo.settings import AlertsSettings
from convo.store import process_programs
from convo.store.migrations import number_of
from convo.store.postgres import Connection
from tests.support.buckets import S3Server
from tests.support.making import shift_clock
from tests.support.old_logs import OldLogs, open_old_logs


@pytest.fixture
async def logs(database: str, s3: S3Server, bucket: str) -> AsyncIterator[OldLogs]:
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as opened:
        yield opened


async def test_a_look_packs_and_leaves_what_others_have_put_into_the_bucket(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    s3.ask("PUT", f"/{bucket}/convo/other-installation/00000/0123456789abcdef.logs", b"other")
    s3.ask("PUT", f"/{bucket}/{await logs.storage.folder()}/notes.txt", b"mine")
    await logs.settled("talk-1")
    await shift_clock(logs.postgres, "3 days")
    assert await logs.keeper.look() == 1
    assert await logs.keeper.look() == 0
    assert len(s3.keys(bucket)) == 3


async def test_an_object_that_the_database_does_not_know_is_deleted_after_a_day(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    orphan = f"{await logs.storage.folder()}/00000/0123456789abcdef.logs"
    s3.ask("PUT", f"/{bucket}/{orphan}", b"left by a database that went back")
    await logs.keeper.look()
    assert await logs.objects() == [("leaving", 0)]
    assert s3.keys(bucket) == [orphan]  # whoever has restored an old backup has a day to see it
    await shift_clock(logs.postgres, "25 hours")
    await logs.keeper.look()
    assert (await logs.objects(), s3.keys(bucket)) == ([], [])


async def test_nothing_moves_while_a_program_is_at_work_that_would_not_find_it(logs: OldLogs) -> None:
    async def announce(knows: int) -> None:
        async def body(connection: Connection) -> None:
            await process_programs.announce(connection, "one", "0.2", knows)

        await logs.postgres.run("test.announce", body)

    await logs.settled("talk-1")
    await shift_clock(logs.postgres, "3 days")
    await announce(number_of("log_objects") - 1)
    assert await logs.keeper.look() == 0
    await announce(number_of("log_objects"))
    assert await logs.keeper.look() == 1


async def test_logs_that_cannot_move_for_long_raise_an_alert_until_they_do(
    logs: OldLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = structs.replace(logs.settings, behind_seconds=0.001, breaker_open_seconds=0.01)
    keeper = LogsKeeper(logs.storage, logs.postgres, settings, lambda: True)
    causes = Causes(AlertsSettings(), 0.0, Look())
    seen: list[SeenRecord] = []
    await logs.settled("talk-1")
    await shift_clock(logs.postgres, "3 days")
    put = logs.bucket.put

    async def full(_key: str, _body: bytes) -> None:
        raise RemoteUnavailable("s3", "there is no room")

    with log_records.record_observers.adding(lambda name, fields: seen.append(SeenRecord(name, fields))):
        monkeypatch.setattr(logs.bucket, "put", full)
        for _ in range(3):
            await keeper.look()
        (behind,) = [one for one in causes.conditions(1.0, Look(records=tuple(seen))) if one.type == "LOGS_BEHIND"]
        assert behind.component == "logs"
        assert behind.evidence.figures["oldest_seconds"] > 200_000  # type: ignore[operator]
        assert "no room" in str(behind.evidence.figures["reason"])
        seen.clear()
        monkeypatch.setattr(logs.bucket, "put", put)
        while not await keeper.look():
            await shift_clock(logs.postgres, "4 days")
        await keeper.look()
        assert "LOGS_BEHIND" not in {one.type for one in causes.conditions(2.0, Look(records=tuple(seen)))}


async def test_packing_that_waits_for_idle_moments_is_seen_and_ends_its_wait(logs: OldLogs) -> None:
    import trio  # noqa: PLC0415

    await logs.settled("talk-1")
    await shift_clock(logs.postgres, "3 days")
    settings = structs.replace(logs.settings, busy_seconds=0.3)
    keeper = LogsKeeper(logs.storage, logs.postgres, settings, lambda: True, lambda: True)
    assert not keeper.warning
    shown: list[str] = []

    async def look() -> None:
        while True:
            shown.append(keeper.warning)
            await trio.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convo.objects.keeper._SHOWN_BUSY_SECONDS", 0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            assert await keeper.look() == 1, "it has packed under pressure"
            nursery.cancel_scope.cancel()
    assert any(
        one.startswith("LOGS_BEHIND: packing waits for idle moments (busy for 0 s; at 0.3 s it") for one in shown
    )
    assert any("s; it packs in spite of the load)" in one for one in shown)
    assert not keeper.warning


async def test_a_process_that_does_not_lead_does_nothing(logs: OldLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    import trio  # noqa: PLC0415

    keeper = LogsKeeper(logs.storage, logs.postgres, logs.settings, lambda: False)

    async def never() -> int:
        pytest.fail("it does not lead")

    monkeypatch.setattr(keeper, "look", never)
    with trio.move_on_after(0.5):
        await keeper.run()
