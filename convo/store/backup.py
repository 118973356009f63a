"""Backup and restore: a database into one file and back, with PostgreSQL's own pg_dump and pg_restore.

Open it to change what a backup holds. A password is passed in the environment, which only the same user can read, and
never in the arguments, which every user can read. A backup may come from anybody: its statements run as the role of the
URL, which decides what they can do, and psql obeys no command in it that would reach this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import trio

from convo.embedded import programs
from convo.embedded.programs import Programs
from convo.errors import Refused
from convo.runtime.deadline import deadline
from convo.store.history import RESTORE_LOCK, RESTORED
from convo.store.migrations import migrations
from convo.store.piped import ENVIRONMENT, PACKING, kill, piped, unpacked

# It bounds a program that hangs, and leaves room for a very large database.
_SECONDS = 24 * 3600.0
_SYNC_SECONDS = 600.0
_LINES_SHOWN = 5
_RESTORED = ("--clean", "--if-exists", "--no-owner", "--no-acl")
# pg_restore from 17 on begins with a setting that servers before 17 do not know; its value is the default.
_TOO_NEW = b"SET transaction_timeout = 0;\n"
_HEAD_BYTES = 4096
# The first line of pg_restore: from here on psql refuses its own commands, of which some run programs.
_RESTRICTED = re.compile(rb"^\\restrict \w+$", re.MULTILINE)
_LIST_SECONDS = 60.0
_MADE_AT = re.compile(r"^;\s+Archive created at ([0-9][0-9A-Za-z :+-]{0,40})$", re.MULTILINE)
# The processes at work are left out of a backup: after a restore they would seem to live. So are sessions: those that
# were ended since would be good again.
_LEFT_OUT = ("--exclude-table-data=public.process", "--exclude-table-data=public.session")
_DUMPED = ("--format=custom", "--compress=0", "--no-owner", "--no-acl", *_LEFT_OUT)
# pg_restore drops only what the archive names, so a table that is newer than the backup would stay. Therefore all that
# our role owns in schema public is dropped first. Without CASCADE: when another role's object depends on ours, the
# restore is refused. What belongs to an extension or to another object ('e', 'i', 'a') goes or stays with it. Not so a
# table of which a column does (objsubid): the one that it is partitioned by.
_BEGIN = f"""BEGIN;
DO $convo$
DECLARE statement text;
BEGIN
    -- Every session of a convo has a share of this lock. One that ends at this moment has a little time for it.
    FOR _ IN 1..40 LOOP
        EXIT WHEN pg_try_advisory_xact_lock({RESTORE_LOCK});
        PERFORM pg_sleep(0.05);
    END LOOP;
    IF NOT pg_try_advisory_xact_lock({RESTORE_LOCK}) THEN
        RAISE EXCEPTION 'a convo is using this database: stop it, then restore';
    END IF;
    FOR statement IN
        SELECT format('DROP %s %s', kind, string_agg(name, ', '))
        FROM (
            SELECT CASE relkind WHEN 'v' THEN 1 WHEN 'm' THEN 2 WHEN 'S' THEN 4 ELSE 3 END AS step,
                   CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                                WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind,
                   oid::regclass::text AS name, 'pg_class'::regclass AS class, oid
            FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
              AND relowner = current_user::regrole
            UNION ALL
            SELECT 5, 'ROUTINE', oid::regprocedure::text, 'pg_proc'::regclass, oid
            FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND proowner = current_user::regrole
            UNION ALL
            SELECT 6, CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, oid::regtype::text, 'pg_type'::regclass, oid
            FROM pg_type
            WHERE typnamespace = 'public'::regnamespace AND typowner = current_user::regrole
              AND (typtype IN ('d', 'e')
                   OR (typtype = 'c' AND (SELECT relkind FROM pg_class c WHERE c.oid = typrelid) = 'c'))
        ) AS ours
        WHERE NOT EXISTS (
            SELECT FROM pg_depend d
            WHERE d.classid = ours.class AND d.objid = ours.oid AND d.objsubid = 0 AND d.deptype IN ('e', 'i', 'a')
              AND d.refclassid IN ('pg_class'::regclass, 'pg_extension'::regclass)
        )
        GROUP BY step, kind ORDER BY step
    LOOP
        EXECUTE statement;
    END LOOP;
END
$convo$;
""".encode()


async def write_backup(url: str, file: Path, *, replace: bool = False, by: Programs | None = None) -> int:
    """Write a consistent copy of the database at ``url`` to ``file``, while it is in use; return its size in bytes.

    The file gets its name when it is complete and on the disk. With ``replace``, a file of that name stays as it is
    until then. ``by`` are other programs than those at hand.

    Raises:
        Refused: there is such a file and ``replace`` is false, or the database or the file's folder does not let us;
            the text holds pg_dump's own message.
    """
    if not replace:
        _refuse_existing(file)
    unfinished = file.with_name(f".{file.name}.unfinished-{os.getpid()}")
    try:
        # Made here and not by pg_dump, so that no other user can read the conversations in it.
        written = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            await _dump(by or await programs.find(), url, written)
        finally:
            os.close(written)
        if not replace:
            _refuse_existing(file)
        with deadline("backup.sync", _SYNC_SECONDS):
            await trio.to_thread.run_sync(_settle, unfinished, file)
        return file.stat().st_size
    except OSError as error:
        raise Refused(f"the backup cannot be written to {file}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _refuse_existing(file: Path) -> None:
    if os.path.lexists(file):
        raise Refused(f"{file} exists already: choose another name, or replace it with --force")


def _settle(unfinished: Path, file: Path) -> None:
    for step in (unfinished, file.parent):
        descriptor = os.open(step, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if step is unfinished:
            unfinished.rename(file)


async def read_made_at(file: Path) -> str:
    """Read when a backup was made, as its head has it; empty where it has none.

    Raises:
        Refused: ``file`` is no backup.
    """
    found = await programs.find()
    with deadline("backup.list", _LIST_SECONDS):
        async with unpacked(file) as archive:
            done = await trio.run_process(
                [str(found.folder / "pg_restore"), "--list"],
                stdin=archive,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=ENVIRONMENT,
            )
    if done.returncode != 0:
        raise Refused(f"{file} cannot be read as a backup: {_last_lines(done.stderr)}")
    line = _MADE_AT.search(done.stdout.decode("utf-8", "replace"))
    return line[1] if line else ""


async def restore_backup(url: str, file: Path, *, ending: str = "") -> None:
    """Replace the database at ``url`` by what ``file`` holds, whole or not at all; no process may be using it.

    Everything else that the URL's role owns in schema public is dropped, such as a newer program's tables. ``ending``
    is SQL that is run in the same transaction, after all else.

    Raises:
        Refused: ``file`` is no backup, or of a newer convo, or the database does not let us; the text holds the
            programs' own message.
    """
    found = await programs.find()
    bare, environment = _login(url)
    reading = [str(found.folder / "pg_restore"), "--file=-", *_RESTORED]
    writing = [str(found.folder / "psql"), "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    with tempfile.TemporaryFile() as output, deadline("backup.restore", _SECONDS):
        async with unpacked(file) as archive:
            good = await _pipe(reading, [*writing, f"--dbname={bare}"], environment, output, archive, ending)
        if not good:
            output.seek(0)
            raise Refused(f"the restore failed, and nothing was changed: {_last_lines(output.read())}")


async def _pipe(  # noqa: PLR0913, PLR0917  (two programs, and what each of them gets)
    reading: list[str],
    writing: list[str],
    environment: dict[str, str],
    output: IO[bytes],
    archive: int | None = None,
    ending: str = "",
) -> bool:
    """Feed the output of one program to the other inside one transaction; return whether it was committed."""
    start = partial(trio.lowlevel.open_process, stderr=output, env=environment)
    source = await start(reading, stdin=archive, stdout=subprocess.PIPE)
    sink = await start(writing, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        # Broken: the writer stopped at an error, which is in its output.
        with suppress(trio.BrokenResourceError):
            await _feed(source, sink, ending)
        codes = [await process.wait() for process in (source, sink)]
    finally:
        await kill(source, sink)  # noqa: ASYNC102  (shields itself, with a bound)
    return codes == [0, 0]


async def _feed(source: trio.Process, sink: trio.Process, ending: str) -> None:
    assert source.stdout is not None  # noqa: S101  (both were asked for)
    assert sink.stdin is not None  # noqa: S101
    async with source.stdout as reader, sink.stdin as writer:
        head = b""
        while len(head) < _HEAD_BYTES and (chunk := await reader.receive_some()):
            head += chunk
        if head and not _RESTRICTED.search(head):
            raise Refused(
                "the programs of PostgreSQL on this machine would run commands that a backup may hide: install 15.14,"
                " 16.10, 17.6 or a later one, and nothing was changed"
            )
        await writer.send_all(_BEGIN + head.replace(_TOO_NEW, b"", 1))
        async for chunk in reader:
            await writer.send_all(chunk)
        # Without a COMMIT the server undoes everything, wherever the stream breaks off.
        if await source.wait() == 0:
            await writer.send_all(f"{_refuse_newer()}{RESTORED}{ending}COMMIT;\n".encode())


def _refuse_newer() -> str:
    newest = migrations()[-1].number
    return f"""
DO $convo$
DECLARE found integer;
BEGIN
    IF to_regclass('public.schema_version') IS NOT NULL THEN
        SELECT max(version) INTO found FROM public.schema_version;
        IF found > {newest} THEN
            RAISE EXCEPTION 'the backup has schema version %, this program knows {newest}: restore it with the convo'
                ' that made it', found;
        END IF;
    END IF;
END
$convo$;
"""


async def _dump(found: Programs, url: str, written: int) -> None:
    """Write the database to this descriptor: pg_dump's own archive, packed by another program on its way."""
    bare, environment = _login(url)
    dumping = [str(found.folder / "pg_dump"), f"--dbname={bare}", "--no-password", *_DUMPED]
    with tempfile.TemporaryFile() as output, deadline("backup.pg_dump", _SECONDS):
        async with piped(dumping, environment, stderr=output) as (dump, archive):
            packed = await trio.run_process(
                [*PACKING, "pack"], stdin=archive, stdout=written, stderr=output, check=False, env=ENVIRONMENT
            )
            # Its end is no proof that all was written: it may have been killed.
            codes = await dump.wait(), packed.returncode
        output.seek(0)
        if codes != (0, 0):
            raise Refused(f"pg_dump {found.version} failed ({codes[0]}): {_last_lines(output.read())}")


def _last_lines(output: bytes) -> str:
    return "\n".join(output.decode("utf-8", "replace").strip().splitlines()[-_LINES_SHOWN:])


def _login(url: str) -> tuple[str, dict[str, str]]:
    bare, password = split_password(url)
    return bare, ENVIRONMENT | ({} if password is None else {"PGPASSWORD": password})


def split_password(url: str) -> tuple[str, str | None]:
    """Return ``url`` without its password, and the password, wherever in the URL it stood."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, quoted = login.partition(":")
    query = parse_qsl(parts.query, keep_blank_values=True)
    passwords = [unquote(quoted)] if colon else []
    passwords += [value for name, value in query if name == "password"]
    kept = urlencode([(name, value) for name, value in query if name != "password"], quote_via=quote, safe="/")
    bare = parts._replace(netloc=f"{user}{at}{hosts}", query=kept)
    return bare.geturl(), passwords[-1] if passwords else None
