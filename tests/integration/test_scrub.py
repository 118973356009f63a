"""What was erased stands in no file of the database once it is scrubbed, packed or not; but in its write-ahead log."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import zstandard

from convo import config, erasure, scrub, user_erasure
from convo.commands import database
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.errors import Refused
from convo.scrub import ScrubbedTable, Size
from convo.settings import Settings
from convo.store.audit_log import NO_CALLER
from convo.store.outcomes import unpack_details
from convo.store.postgres import Postgres
from tests.conftest import roomy_folder
from tests.integration.test_erasure_marker import MARKER, TALK, every_way
from tests.support.making import ask, open_dedicated, open_process, open_store, vacuum
from tests.support.running import ROOT, environment

USER = f"mia-{MARKER}"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PGLZ_BYTES_MAX = 1 << 16


def settings_of(folder: Path) -> Settings:
    return config.load_settings(None, {}, {("server", "data_dir"): str(folder)})


async def erased(postgres: Postgres) -> None:
    await erasure.erase_conversation(postgres, WHOLE_DEFAULT, TALK, NO_CALLER, erased=lambda _: None)
    until = trio.current_time() + 10
    await user_erasure.erase_user(postgres, DEFAULT, USER, NO_CALLER, erased=lambda _: None, until=until)


@pytest.mark.blocks_loop("it reads every file of a server")
async def test_after_a_scrub_what_was_erased_stands_in_no_file_but_the_write_ahead_log(tmp_path: Path) -> None:
    with roomy_folder() as folder:
        settings = settings_of(folder)
        await database.new_key(settings, "shop", ["read"], 0.0, "never")
        async with database.stopped_database(settings) as url:
            async with open_process(url) as process:
                await every_way(process, USER)
                # Of somebody else, so that no table is empty: and one that is.
                await process.accepted("other-1", user_id="tom", said=("Lots of words.",) * 50)
            await vacuum(url, "VACUUM ANALYZE")
        # Stopped: all is in the files.
        assert {"plain", "zstd"} <= {how for _, how in found_in(folder)}, "it must be found while it is there"
        async with database.stopped_database(settings) as url:
            async with open_store(url) as postgres:
                await erased(postgres)
            await vacuum(url)
        assert found_in(folder), "a plain VACUUM leaves bytes: nothing is shown otherwise"
        seen: list[ScrubbedTable] = []
        done = await database.scrub_erased(settings, lambda _: None, lambda one, _: seen.append(one))
        assert found_in(folder) == []
        assert {one.name for one in done.tables} == set(scrub.SCRUBBED_TABLES)
        assert [one.name for one in seen] == [one.name for one in done.tables]
        assert done.remains == (scrub.WAL_REMAINS,)
        async with database.stopped_database(settings) as url, open_store(url) as postgres:
            assert await ask(postgres, "SELECT count(*) FROM conversation") >= 1
            noted = await ask(postgres, "SELECT detail FROM audit_log WHERE action = 'scrub'")
        sizes = {"tables": len(done.tables), "bytes": sum(one.bytes_before for one in done.tables)}
        assert json.loads(noted) == sizes


def found_in(folder: Path) -> list[tuple[str, str]]:
    """Look for the marker in every file but those of the log, plain and in what is packed."""
    found = []
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or "pg_wal" in file.parts:
            continue
        data = file.read_bytes()
        for how, texts in (("plain", [data]), ("zstd", unzstd(data)), ("pglz", unpglz(data))):
            if any(MARKER.encode() in text for text in texts):
                found.append((str(file.relative_to(folder)), how))
    return found


def unzstd(data: bytes) -> Iterator[bytes]:
    """Decompress whatever begins like a frame."""
    at = data.find(_ZSTD)
    while at >= 0:
        with suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(data[at : at + (1 << 20)])
        # What a done job found is packed with a dictionary, behind a mark.
        with suppress(zstandard.ZstdError, msgspec.DecodeError):
            yield msgspec.json.encode(unpack_details(data[at - 1 : at + (1 << 16)]))
        at = data.find(_ZSTD, at + 1)


def unpglz(data: bytes) -> Iterator[bytes]:
    """Decompress what may be a value that the server packed inside a page: a length word, then the size of the raw."""
    if len(data) % 8192 or not data:
        return
    for at in range(0, len(data) - 8, 4):
        (header, raw) = struct.unpack_from("<II", data, at)
        # The low bits of a packed value's header are 10, and its method (the high bits of the size) is 0.
        size = header >> 2
        if header & 3 == 2 and 8 < size < 8192 and size < raw < _PGLZ_BYTES_MAX:
            text = pglz(data[at + 8 : at + size], raw)
            if text:
                yield text


def pglz(packed: bytes, raw: int) -> bytes:
    """Decompress as PostgreSQL's pglz_decompress does; empty where it is no such value."""
    out, at = bytearray(), 0
    while at < len(packed) and len(out) < raw:
        control = packed[at]
        at += 1
        for bit in range(8):
            if at >= len(packed) or len(out) >= raw:
                break
            if not control >> bit & 1:
                out.append(packed[at])
                at += 1
                continue
            if at + 1 >= len(packed):
                return b""
            length = (packed[at] & 0x0F) + 3
            offset = ((packed[at] & 0xF0) << 4) | packed[at + 1]
            at += 2
            if length == 18 and at < len(packed):
                length += packed[at]
                at += 1
            if not 0 < offset <= len(out):
                return b""
            for _ in range(length):
                out.append(out[-offset])
    return bytes(out) if len(out) == raw else b""


async def test_what_the_server_packed_is_unpacked() -> None:
    # Without this, the test above might not see it.
    text = f"{MARKER} {'again and again ' * 300}"
    with roomy_folder() as folder:
        async with database.stopped_database(settings_of(folder)) as url, open_store(url) as postgres:

            async def body(connection: Any) -> str:
                await connection.execute("CREATE TABLE packed (text text)")
                await connection.execute("ALTER TABLE packed ALTER COLUMN text SET COMPRESSION pglz")
                await connection.execute("INSERT INTO packed VALUES ($1)", text)
                path: str = await connection.fetchval("SELECT pg_relation_filepath('packed')")
                return path

            path = await postgres.run("test.packed", body)
        data = (folder / "postgres" / path).read_bytes()
    assert text.encode() not in data
    assert text.encode() in list(unpglz(data))


async def test_a_transaction_that_may_still_see_what_was_erased_is_named_and_nothing_is_changed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "_OLD_WAIT_SECONDS", 0.3)
    async with (
        open_store(database) as other,
        open_store(database) as postgres,
        open_dedicated(other) as reader,
        open_dedicated(postgres, **scrub.SCRUB_SETTINGS) as session,
        trio.open_nursery() as nursery,
    ):

        async def look(connection: Any) -> None:
            await connection.fetchval("SELECT count(*) FROM conversation")
            await connection.fetchval("SELECT pg_sleep(2)")

        nursery.start_soon(lambda: reader.run("test.look", look, begin="BEGIN ISOLATION LEVEL REPEATABLE READ"))
        await trio.sleep(0.5)
        sizes = await scrub.read_sizes(session)
        with pytest.raises(Refused, match=r"a session of .* open since before this scrub"):
            await scrub.scrub(session, sizes, lambda _one, _left: None)


async def test_nothing_that_was_sampled_of_a_table_that_is_empty_now_is_left(database: str) -> None:
    sampled = "SELECT count(*) FROM pg_stats WHERE schemaname = 'public' AND tablename = 'memory'"
    async with open_store(database) as postgres, open_dedicated(postgres, **scrub.SCRUB_SETTINGS) as session:
        forget = "SELECT to_regprocedure('pg_clear_attribute_stats(text,text,text,boolean)') IS NOT NULL"
        if not await ask(postgres, forget):
            pytest.skip("this server cannot forget a sample")
        row = "INSERT INTO memory (user_id, key, kind, text, seq) SELECT 'u', n::text, 'k', 't', n FROM generate_series"
        await ask(postgres, f"{row}(1, 100) AS n")
        await vacuum(database, "ANALYZE memory")
        await ask(postgres, "DELETE FROM memory")
        assert await ask(postgres, sampled) > 0
        sizes = [one for one in await scrub.read_sizes(session) if one.name == "memory"]
        await scrub.scrub(session, sizes, lambda _one, _left: None)
        assert await ask(postgres, sampled) == 0


def test_what_is_left_is_expected_by_what_was_measured() -> None:
    sizes = [Size(name="part", bytes=100_000_000), Size(name="run", bytes=50_000_000)]
    assert scrub.expected_seconds(sizes) == 3.0
    done = ScrubbedTable(name="job", bytes_before=10_000_000, bytes_after=1, seconds=1.0)
    assert scrub.expected_seconds(sizes, [done]) == 15.0


@pytest.mark.long
async def test_the_command_asks_shows_its_progress_and_says_what_remains(tmp_path: Path) -> None:
    with roomy_folder() as folder:
        await database.new_key(settings_of(folder), "shop", ["read"], 0.0, "never")
        refused = await convo("erase", "--scrub", "--data-dir", str(folder))
        assert refused.returncode != 0
        assert b"give --yes to write the tables anew" in refused.stderr
        done = await convo("erase", "--scrub", "--yes", "--json", "--data-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert b"A table is locked while it is written" in done.stderr
    assert b"conversation_log: " in done.stderr
    shown = json.loads(done.stdout)
    assert {one["name"] for one in shown["tables"]} == set(scrub.SCRUBBED_TABLES)
    assert any("write-ahead log" in one for one in shown["remains"])


async def convo(*arguments: str) -> Any:
    line: Sequence[str] = [sys.executable, "-m", "convo", *arguments]
    return await trio.run_process(
        line, capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT, env=environment(), stdin=b""
    )
