from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from convo import config
from convo.commands import database
from convo.errors import Refused
from convo.runtime import identity
from convo.settings import Settings
from convo.store import erasure_file
from convo.store.installation_key import FINGERPRINT
from convo.store.migrations import migrations
from tests.conftest import roomy_folder
from tests.support.asking import ask
from tests.support.hostile_backup import hostile_backup
from tests.support.running import ROOT, environment


def settings_of(data_dir: Path) -> Settings:
    return config.load_settings(None, {}, {("server", "data_dir"): str(data_dir)})


async def migrate(settings: Settings) -> None:
    """Make convo's tables, as the first key does."""
    await database.new_key(settings, "shop", ["read"], 0.0, "never")


async def test_a_backup_of_one_folder_is_restored_into_an_empty_one_with_the_list_of_erasures(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    with roomy_folder() as one, roomy_folder() as other:
        await migrate(settings_of(one))
        assert await database.backup(settings_of(one), file) == file.stat().st_size
        installation, _ = await ask_once(settings_of(one), FINGERPRINT, "SELECT 1")
        with pytest.raises(
            Refused, match=f"no list of erasures of .* is here: .*Copy the file erasures-{installation}"
        ):
            await database.restore(settings_of(other), file)
        erasure_file.write_file(erasure_file.path_of(other, installation), installation, [])
        await database.restore(settings_of(other), file)
        assert (other / "postgres").is_dir()


@pytest.mark.long
async def test_a_restore_without_erasures_is_said_loudly_and_noted(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    with roomy_folder() as one, roomy_folder() as other:
        await migrate(settings_of(one))
        await database.backup(settings_of(one), file)
        asked = [sys.executable, "-m", "convo", "restore", "--yes", "--without-erasures", "--json", str(file)]
        asked += ["--data-dir", str(other)]
        done = await trio.run_process(asked, capture_stdout=True, capture_stderr=True, cwd=ROOT, env=environment())
        assert json.loads(done.stdout) == {"restored_from": str(file)}
        assert b"warning: what was erased since this backup was made comes back" in done.stderr
        (detail, _) = await ask_once(
            settings_of(other), "SELECT detail FROM audit_log WHERE action = 'restore'", "SELECT 1"
        )
    assert json.loads(detail)["without_erasures"] is True


async def test_a_damaged_list_of_erasures_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    installation = "0123456789abcdef"
    file = erasure_file.path_of(tmp_path, installation)
    erasure_file.write_file(file, installation, [])
    file.write_text(f"{file.read_text()}nonsense\n")
    with pytest.raises(Refused, match=r"line 2 of the list of erasures .* is damaged"):
        await database.restore(settings_of(tmp_path), tmp_path / "convo.backup")
    assert list(tmp_path.iterdir()) == [file]


async def test_a_restore_is_noted_in_what_was_restored_and_a_refused_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"

    def refuse(_: database.Replacement) -> None:
        raise Refused("not now")

    with roomy_folder() as folder:
        settings = settings_of(folder)
        await migrate(settings)
        await database.backup(settings, file)
        with pytest.raises(Refused, match="not now"):
            await database.restore(settings, file, refuse)
        await database.restore(settings, file)
        actions, detail = await ask_once(
            settings,
            "SELECT array_agg(action ORDER BY number) FROM audit_log",
            "SELECT detail FROM audit_log WHERE action = 'restore'",
        )
    assert actions == ["key_made", "restore"]
    noted = json.loads(detail)
    assert noted["bytes"] == file.stat().st_size
    assert re.match("20[0-9]{2}-", noted["made_at"])


async def test_a_backup_and_a_restore_print_their_one_line_and_log_to_stderr(tmp_path: Path) -> None:
    with roomy_folder() as folder:
        await migrate(settings_of(folder))
        for command, *given in (["backup"], ["restore", "--yes"]):
            file = str(tmp_path / "convo.backup")
            asked = [sys.executable, "-m", "convo", command, *given, file, "--data-dir", str(folder)]
            done = await trio.run_process(asked, capture_stdout=True, capture_stderr=True, cwd=ROOT, env=environment())
            assert len(done.stdout.splitlines()) == 1, done.stdout
            lines = [json.loads(line)["event"] for line in done.stderr.splitlines()]
            assert {"embedded_started", "embedded_stopped"} <= set(lines)


async def test_a_folder_without_a_database_cannot_be_backed_up(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--data-dir"):
        await database.backup(settings_of(tmp_path / "nothing"), tmp_path / "convo.backup")


async def test_nothing_is_restored_under_a_convo_that_serves(tmp_path: Path) -> None:
    with identity.claim(tmp_path), pytest.raises(Refused, match="in use"):
        await database.restore(settings_of(tmp_path), tmp_path / "convo.backup")


# --- a database that no convo has served


def refused(reason: str) -> Any:
    """Expect a refusal, in the groups of the nurseries that it passes."""
    return pytest.RaisesGroup(pytest.RaisesExc(Refused, match=reason), flatten_subgroups=True)


async def test_a_database_that_no_convo_has_served_is_neither_backed_up_nor_audited(
    empty_database: str, tmp_path: Path
) -> None:
    # Whoever backs up the wrong database finds it out on the day of the restore.
    settings = config.load_settings(None, {"CONVO_DATABASE__URL": empty_database})
    with refused(r"PostgreSQL at .* has no tables of convo: no convo has served it yet"):
        await database.backup(settings, tmp_path / "convo.backup")
    assert list(tmp_path.iterdir()) == []
    with refused("has no tables of convo: no convo has served it yet"):
        await database.audit(settings)
    with roomy_folder() as folder:
        async with database.stopped_database(settings_of(folder)):
            pass
        with refused(f"the database in {folder} has no tables of convo"):
            await database.audit(settings_of(folder))


async def test_only_the_first_key_makes_a_database(tmp_path: Path) -> None:
    # A folder that was misspelt would hold a database of its own from then on, without any key.
    settings = settings_of(tmp_path / "nobody")
    for ask_of_it in (
        database.list_keys(settings),
        database.rotate_key(settings, "a", timedelta(days=1), None),
        database.revoke_key(settings, "a"),
    ):
        with pytest.raises(Refused, match=r"there is no database in .*nobody; name the folder with --data-dir"):
            await ask_of_it
    assert list(tmp_path.iterdir()) == []
    with roomy_folder() as folder:
        await migrate(settings_of(folder))
        (key,) = await database.list_keys(settings_of(folder))
        assert key.name == "shop"


async def test_a_database_of_an_older_schema_is_not_audited_before_it_is_migrated(empty_database: str) -> None:
    settings = config.load_settings(None, {"CONVO_DATABASE__URL": empty_database})
    await migrate(settings)
    assert await database.audit(settings) == []
    newest = migrations()[-1].number
    needed = max(one.number for one in migrations() if one.needed)
    # A contract step that nobody needs may wait for older processes for days.
    await ask(empty_database, f"DELETE FROM schema_step WHERE number > {needed}")
    assert await database.audit(settings) == []
    await ask(empty_database, f"DELETE FROM schema_step WHERE number = {needed}")
    before = max(one.number for one in migrations() if one.number < needed)
    with refused(f"has schema version {before}, and this program audits version {newest}"):
        await database.audit(settings)


# --- what a restore replaces


async def ask_once(settings: Settings, *queries: str) -> list[Any]:
    async with database.stopped_database(settings) as url:
        return await ask(url, *queries)


async def test_a_restore_shows_both_and_changes_nothing_until_somebody_agrees(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    shown: list[database.Replacement] = []

    def decline(replacement: database.Replacement) -> None:
        shown.append(replacement)
        raise Refused("declined")

    with roomy_folder() as folder:
        settings = settings_of(folder)
        await migrate(settings)
        await ask_once(settings, "CREATE TABLE kept AS SELECT 7 AS n")
        size = await database.backup(settings, file)
        await ask_once(settings, "UPDATE kept SET n = 8")
        with pytest.raises(Refused, match="declined"):
            await database.restore(settings, file, decline)
        assert await ask_once(settings, "SELECT n FROM kept") == [8]
        (found,) = shown
        assert str(folder / "postgres") in found.database
        assert found.contents == "no conversations"
        assert re.fullmatch(rf"{re.escape(str(file))}: {size:,} bytes, made at 20\d\d-.*", found.backup)
        await database.restore(settings, file)
        assert await ask_once(settings, "SELECT n FROM kept", "SELECT count(*) FROM pg_database") == [7, 4]


async def test_a_restore_without_a_terminal_and_without_yes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    with roomy_folder() as folder:
        settings = settings_of(folder)
        await migrate(settings)
        await ask_once(settings, "CREATE TABLE kept AS SELECT 7 AS n")
        await database.backup(settings, file)
        await ask_once(settings, "UPDATE kept SET n = 8")
        asked = [sys.executable, "-m", "convo", "restore", str(file), "--data-dir", str(folder)]
        done = await trio.run_process(
            asked, stdin=b"y\n", capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT, env=environment()
        )
        assert done.returncode == 1
        assert b"--yes" in done.stderr
        assert str(folder).encode() in done.stderr
        assert done.stdout == b""
        assert await ask_once(settings, "SELECT n FROM kept") == [8]


async def test_a_file_that_is_no_backup_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    asked: list[database.Replacement] = []
    with roomy_folder() as folder:
        for content, reason in ((b"notes", "is not a backup"), (b"PGDMP and no more", "cannot be read as a backup")):
            file.write_bytes(content)
            with pytest.raises(Refused, match=reason):
                await database.restore(settings_of(folder), file, asked.append)
    assert asked == []


@pytest.mark.parametrize(
    "hidden",
    [
        "'; COPY (SELECT 1) TO PROGRAM 'touch {made}'; SELECT '",
        "'; COMMIT; ALTER ROLE convo SUPERUSER; SELECT '",
        *(
            pytest.param(hidden, marks=pytest.mark.long)
            for hidden in (
                "'; COPY (SELECT 1) TO '{made}'; SELECT '",
                "'; COMMIT; DROP TABLE public.kept; SELECT '",
                "'; COMMIT; SET SESSION AUTHORIZATION convo_admin; SELECT '",
                "'; CREATE FUNCTION public.run(text) RETURNS int LANGUAGE c AS 'libc.so.6', 'system'; SELECT '",
                "'; COMMIT; ALTER DATABASE convo RENAME TO gone; SELECT '",
            )
        ),
    ],
)
async def test_a_hostile_backup_gains_nothing_and_leaves_the_embedded_database_as_it_was(
    tmp_path: Path, hidden: str
) -> None:
    with roomy_folder() as folder:
        settings = settings_of(folder)
        folder.chmod(0o777)
        made = folder / "made"
        async with database.stopped_database(settings) as url:
            file = await hostile_backup(url, tmp_path, hidden.format(made=made))
        with pytest.raises(Refused, match=r"permission denied|must be (able|owner)|kept. does not exist"):
            await database.restore(settings, file)
        assert not made.exists()
        rights = "SELECT rolsuper OR pg_has_role('pg_execute_server_program', 'USAGE') FROM pg_roles"
        found = await ask_once(
            settings,
            "SELECT n FROM kept",
            f"{rights} WHERE rolname = current_user",
            "SELECT count(*) FROM pg_database",
        )
        assert found == [8, False, 4]


async def test_a_restore_into_the_embedded_database_leaves_another_generation_and_counts_on(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    figures = ("SELECT generation FROM history", "SELECT counter FROM history")
    with roomy_folder() as folder:
        settings = settings_of(folder)
        await migrate(settings)
        generation, counter = await ask_once(settings, *figures)
        await database.backup(settings, file)
        await database.restore(settings, file)
        again, counted = await ask_once(settings, *figures)
        assert again != generation
        assert counted == counter + 1


async def test_a_backup_that_is_there_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    file.write_text("the one before")
    with pytest.raises(Refused, match="exists already"):
        await database.backup(settings_of(tmp_path / "nothing"), file)
