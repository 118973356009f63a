from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from msgspec import structs

from convo.commands import database as commands
from convo.commands.check import check_dependencies
from convo.commands.cli import main
from convo.commands.old_logs import audit_bucket, check_objects, objects_of_backup
from convo.conversation.tenant import DEFAULT, Reach
from convo.erasure import erase_conversation
from convo.errors import Refused
from convo.settings import DatabaseSettings, LogsSettings, Secret, ServerSettings, Settings
from convo.store.audit_log import NO_CALLER
from tests.support.buckets import S3Server, logs_settings
from tests.support.making import ask, shift_clock
from tests.support.old_logs import open_old_logs


def settings_of(database: str, folder: Path, s3: S3Server, bucket: str) -> Settings:
    return structs.replace(
        Settings(),
        server=ServerSettings(data_dir=str(folder)),
        database=DatabaseSettings(url=Secret(database)),
        logs=LogsSettings(**logs_settings(s3.endpoint, bucket)),
    )


async def packed(database: str, s3: S3Server, bucket: str, *names: str) -> None:
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as logs:
        await logs.settled(*names)
        await shift_clock(logs.postgres, "3 days")
        assert await logs.keeper.look() == len(names)


async def readable(database: str, s3: S3Server, bucket: str) -> bool:
    async with open_old_logs(database, s3.endpoint, bucket) as logs:
        seqs = await ask(logs.postgres, "SELECT array_agg(seq) FROM conversation")
        return all([await logs.read(seq) for seq in seqs])


async def test_a_backup_with_its_objects_is_restored_after_they_were_erased(
    database: str, tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    settings, file = settings_of(database, tmp_path, s3, bucket), tmp_path / "backup"
    await packed(database, s3, bucket, "talk-1", "talk-2")
    await commands.backup(settings, file)
    needed = await objects_of_backup(settings, file, copied=True)
    assert (needed.needed, needed.moved) == (1, 1)
    (key,) = s3.keys(bucket)
    assert needed.bytes == len(s3.ask("GET", f"/{bucket}/{key}"))
    (copy,) = (tmp_path / "backup.objects").iterdir()
    assert copy.read_bytes() == s3.ask("GET", f"/{bucket}/{key}")
    assert copy.stat().st_mode & 0o077 == 0
    # An erasure writes the object anew, under another key, and the old one is gone.
    async with open_old_logs(database, s3.endpoint, bucket) as logs:
        await erase_conversation(
            logs.postgres, Reach(tenant=DEFAULT), "talk-1", NO_CALLER, erased=lambda _: None, in_objects=True
        )
        await logs.keeper.look()
    assert key not in s3.keys(bucket)
    assert (await check_objects(settings, file)).moved == 1
    await commands.restore(settings, file, without_erasures=True)
    assert await readable(database, s3, bucket)
    assert (await check_objects(settings, file)).moved == 0


async def test_a_restore_is_refused_where_an_object_is_nowhere(
    database: str, tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    settings, file = settings_of(database, tmp_path, s3, bucket), tmp_path / "backup"
    await packed(database, s3, bucket, "talk-1")
    await commands.backup(settings, file)
    await objects_of_backup(settings, file, copied=True)
    s3.ask("DELETE", f"/{bucket}/{s3.keys(bucket)[0]}")
    shutil.rmtree(tmp_path / "backup.objects")
    with pytest.raises(Refused, match="neither in the bucket nor beside the backup"):
        await check_objects(settings, file)
    with pytest.raises(Refused, match="not in the bucket any more"):
        await objects_of_backup(settings, file, copied=True)


async def test_the_audit_of_objects_finds_what_is_missing_damaged_cut_short_or_not_known(
    database: str, tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    settings = settings_of(database, tmp_path, s3, bucket)
    for n in range(3):
        async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as logs:
            await logs.settled(f"talk-{n}")
            await shift_clock(logs.postgres, f"{3 * n + 3} days")
            assert await logs.keeper.look() == 1
    assert await audit_bucket(settings) == []
    missing, short, damaged = s3.keys(bucket)
    folder = missing.rpartition("/")[0]
    s3.ask("DELETE", f"/{bucket}/{missing}")
    body = s3.ask("GET", f"/{bucket}/{damaged}")
    s3.ask("PUT", f"/{bucket}/{damaged}", body[:-1] + bytes([body[-1] ^ 1]))
    s3.ask("PUT", f"/{bucket}/{short}", body[:-1])
    s3.ask("PUT", f"/{bucket}/{folder}/0123456789abcdef.logs", b"x")
    found = await audit_bucket(settings)
    assert [one.partition(":")[0] for one in found] == [
        "1 object that logs refer to, missing in the bucket",
        "1 object with another size than was written",
        "1 object in the bucket, unknown to the database",
        "1 log that an object does not hold as it was put there",
    ]


async def test_the_audit_of_the_tables_finds_references_to_no_object(
    database: str, tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    await packed(database, s3, bucket, "talk-1")
    settings = settings_of(database, tmp_path, s3, bucket)
    async with open_old_logs(database, s3.endpoint, bucket) as logs:
        await ask(logs.postgres, "WITH d AS (DELETE FROM log_object) SELECT 1")
    assert any("logs that refer to an object that is not stored" in one for one in await commands.audit(settings))


async def test_a_check_says_what_the_bucket_is_like_or_what_is_wrong(
    database: str, tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    found = {}
    for name, wanted in (("plain", bucket), ("versions", s3.made(versions=True)), ("none", "there-is-none")):
        results = await check_dependencies(settings_of(database, tmp_path, s3, wanted))
        found[name] = next((one.good, one.detail) for one in results if one.name == "s3")
    assert found["plain"] == (True, f"{s3.endpoint}/{bucket}, without older versions")
    assert found["versions"][0]
    assert "with older versions" in found["versions"][1]
    assert not found["none"][0]


def test_the_commands_say_which_objects_there_are(
    database: str, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.made()
    trio.run(packed, database, s3, bucket, "talk-1")
    for name, value in logs_settings(s3.endpoint, bucket).items():
        monkeypatch.setenv(f"CONVO_LOGS__{name.upper()}", str(getattr(value, "reveal", lambda v=value: v)()))
    monkeypatch.setenv("CONVO_DATABASE__URL", database)
    file = str(tmp_path / "backup")
    assert main(["backup", file, "--with-objects", "--data-dir", str(tmp_path)]) == 0
    assert "it needs 1 object of logs" in capsys.readouterr().out
    assert main(["audit", "--objects", "--data-dir", str(tmp_path)]) == 0
    assert "and the objects with the tables" in capsys.readouterr().out
    s3.ask("DELETE", f"/{bucket}/{s3.keys(bucket)[0]}")
    assert main(["audit", "--objects", "--data-dir", str(tmp_path)]) == 1
    shutil.rmtree(f"{file}.objects")
    restore = ["restore", file, "--yes", "--without-erasures", "--data-dir", str(tmp_path)]
    assert main(restore) != 0
    assert "neither in the bucket" in capsys.readouterr().err
    assert main([*restore, "--without-objects"]) == 0
