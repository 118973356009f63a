from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from convo import erasure, erasure_keeper
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.erasure_keeper import ErasureKeeper
from convo.errors import Erased
from convo.store import erasure_file
from convo.store.audit_log import NO_CALLER
from convo.store.erasure_file import Listed
from convo.store.installation_key import read_installation_key
from tests.support.making import Process, ask, open_process, open_store, rows, told


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


def ignore(_seqs: Sequence[int]) -> None:
    pass


async def settled_keeper(process: Process, folder: Path, **others: Any) -> ErasureKeeper:
    keeper = ErasureKeeper(process.postgres, folder, erased=ignore, **others)
    await keeper.settle()
    return keeper


async def erase(process: Process, *conversation_ids: str) -> None:
    for one in conversation_ids:
        await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, one, NO_CALLER, erased=ignore)


def kept(folder: Path) -> dict[bytes, Listed]:
    (found,) = erasure_file.read_all(folder)
    return {one.hmac: one for one in found.listed.values()}


async def hmac_of(process: Process, conversation_id: str) -> bytes:
    return (await process.postgres.run("test.key", read_installation_key)).hmac_of("conversation", conversation_id)


async def test_a_process_that_starts_keeps_the_whole_list_and_then_what_comes(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.store.erasure_list._PAGE_ROWS", 2)
    await process.accepted(*(f"talk-{n}" for n in range(6)))
    await erase(process, *(f"talk-{n}" for n in range(4)))
    keeper = await settled_keeper(process, tmp_path)
    hmacs = [await hmac_of(process, f"talk-{n}") for n in range(6)]
    assert set(kept(tmp_path)) == set(hmacs[:4])
    await erase(process, "talk-4")
    await keeper.look()
    assert set(kept(tmp_path)) == set(hmacs[:5])
    assert keeper.warning == ""


async def test_an_installation_in_which_nothing_was_erased_has_an_empty_list(process: Process, tmp_path: Path) -> None:
    await settled_keeper(process, tmp_path)
    assert kept(tmp_path) == {}


async def test_what_was_erased_while_a_process_was_off_is_added_at_its_start(process: Process, tmp_path: Path) -> None:
    await process.accepted("talk-1", "talk-2")
    await settled_keeper(process, tmp_path)
    await erase(process, "talk-1", "talk-2")
    before = next(tmp_path.iterdir()).stat().st_ino
    await settled_keeper(process, tmp_path)
    assert set(kept(tmp_path)) == {await hmac_of(process, "talk-1"), await hmac_of(process, "talk-2")}
    # Added to the file, which is not written anew.
    assert next(tmp_path.iterdir()).stat().st_ino == before


async def test_nothing_is_written_again_while_a_long_transaction_is_open(
    process: Process, database: str, tmp_path: Path
) -> None:
    keeper = await settled_keeper(process, tmp_path)
    await process.accepted("talk-1")
    async with open_store(database) as other, trio.open_nursery() as nursery:

        async def hold(connection: Any) -> None:
            await connection.fetchval("SELECT pg_current_xact_id()")
            await connection.fetchval("SELECT pg_sleep(1.5)")

        nursery.start_soon(lambda: other.run("test.hold", hold))
        await trio.sleep(0.3)
        await erase(process, "talk-1")
        sizes = []
        for _ in range(3):
            await keeper.look()
            sizes.append(next(tmp_path.iterdir()).stat().st_size)
    assert len(set(sizes)) == 1
    assert len(kept(tmp_path)) == 1


async def test_a_database_that_went_back_loses_again_what_its_processes_know_to_be_erased(
    process: Process, tmp_path: Path
) -> None:
    await process.accepted("talk-1", "talk-2")
    await erase(process, "talk-2")
    await settled_keeper(process, tmp_path)
    # As if a backup of before the erasure of talk-1 had been put back by other means.
    (file,) = tmp_path.iterdir()
    at = await ask(process.postgres, "SELECT (extract(epoch FROM convo_now()) * 1000000)::bigint")
    erasure_file.append_listed(file, [Listed(kind="conversation", hmac=await hmac_of(process, "talk-1"), number=at)])
    with told() as names:
        await settled_keeper(process, tmp_path)
    assert "erased_again" in names
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 0
    with pytest.raises(Erased):
        await process.accepted("talk-1")
    with told() as names:
        await settled_keeper(process, tmp_path)
    assert "erased_again" not in names


@pytest.mark.parametrize("harm", ["damaged", "torn", "removed"])
async def test_a_file_that_was_harmed_is_made_whole_again(process: Process, tmp_path: Path, harm: str) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await erase(process, "talk-1", "talk-2")
    await settled_keeper(process, tmp_path)
    (file,) = tmp_path.iterdir()
    if harm == "damaged":
        file.write_bytes(file.read_bytes().replace(b"conversation", b"cOnversation", 1))
    elif harm == "torn":
        os.truncate(file, file.stat().st_size - 5)
    else:
        file.unlink()
    keeper = await settled_keeper(process, tmp_path)
    assert len(kept(tmp_path)) == 2
    file.unlink()
    await erase(process, "talk-3")
    await keeper.look()
    await keeper.look()
    assert len(kept(tmp_path)) == 3
    assert keeper.warning == ""


async def test_a_file_of_a_later_version_is_left_as_it_is_and_warned_of(process: Process, tmp_path: Path) -> None:
    await settled_keeper(process, tmp_path)
    (file,) = tmp_path.iterdir()
    text = file.read_text().replace("convo-erasures 1", "convo-erasures 2")
    file.write_text(text)
    await process.accepted("talk-1")
    await erase(process, "talk-1")
    keeper = await settled_keeper(process, tmp_path)
    await keeper.look()
    assert file.read_text() == text
    assert "ERASURES_NOT_KEPT" in keeper.warning
    assert "form 2" in keeper.warning


async def test_a_list_that_cannot_be_written_is_warned_of_until_it_can(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await settled_keeper(process, tmp_path)
    await process.accepted("talk-1")
    await erase(process, "talk-1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("convo.store.erasure_file.append_listed", full)
        await keeper.look()
    assert "No space left on device" in keeper.warning
    assert kept(tmp_path) == {}
    await keeper.look()
    assert (len(kept(tmp_path)), keeper.warning) == (1, "")


async def test_the_leading_process_finishes_what_was_broken_off(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure_keeper, "BROKEN_OFF_SECONDS", -1.0)
    await process.accepted("talk-1")
    hmac = await hmac_of(process, "talk-1")
    await ask(
        process.postgres,
        "WITH x AS (INSERT INTO erasure (id_hmac, kind) VALUES ($1, 'conversation') RETURNING 1) SELECT 1 FROM x",
        hmac,
    )
    leads = False
    keeper = await settled_keeper(process, tmp_path, leads=lambda: leads)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        keeper.ring()
        await trio.sleep(0.3)
        assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 1
        leads = True
        keeper.ring()
        with trio.fail_after(5):
            while await ask(process.postgres, "SELECT count(*) FROM conversation"):  # noqa: ASYNC110  (no event)
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert await rows(process.postgres, "SELECT kind FROM erasure WHERE ended_at IS NOT NULL") == [("conversation",)]
