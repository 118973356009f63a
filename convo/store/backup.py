"""Copy a database into one file and back with PostgreSQL's own programs; it knows no folders, and of tables only one.

A password travels in the environment, which only the same user can read; never among the arguments, which everyone can.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import trio

from convo.deadline import deadline
from convo.errors import DeadlineExceeded, Refused
from convo.store.private import programs

# A bound for a program that hangs, not for a database that is large.
_SECONDS = 24 * 3600.0
_KILL_SECONDS = 5.0
_SYNC_SECONDS = 600.0
_LAST_LINES = 5
_FIRST_BYTES = b"PGDMP"
_RESTORED = ("--clean", "--if-exists", "--no-owner", "--no-acl")
# pg_restore from 17 on begins with a setting that servers before 17 do not know; its value is the default.
_TOO_NEW = b"SET transaction_timeout = 0;\n"
_HEAD_BYTES = 4096
# Who is at work on a database is no part of a copy of it: restored, they would seem to live.
_NO_ROWS_OF = "--exclude-table-data=public.process"
# What came after the backup would stay: pg_restore drops only what the archive names. So all that is ours in schema
# public goes first, without CASCADE: what somebody else built upon it refuses the restore. What belongs to an extension
# or to another object ('e', 'i', 'a') goes or stays with it.
_BEGIN = b"""BEGIN;
DO $convo$
DECLARE statement text;
BEGIN
    FOR statement IN
        SELECT format('DROP %s %s', kind, string_agg(name, ', '))
        FROM (
            SELECT CASE relkind WHEN 'v' THEN 1 WHEN 'm' THEN 2 WHEN 'S' THEN 4 ELSE 3 END AS turn,
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
            SELECT FROM pg_depend d WHERE d.classid = ours.class AND d.objid = ours.oid AND d.deptype IN ('e', 'i', 'a')
              AND d.refclassid IN ('pg_class'::regclass, 'pg_extension'::regclass)
        )
        GROUP BY turn, kind ORDER BY turn
    LOOP
        EXECUTE statement;
    END LOOP;
END
$convo$;
"""


async def backup(url: str, file: Path) -> int:
    """Write a consistent copy of the database at ``url`` to ``file``, while it is in use; return its size in bytes.

    The file appears under its name when it is whole and on the disk; what stood there before stays until then.

    Raises:
        Refused: the database or the file's folder does not let us; the text holds pg_dump's own words.
    """
    unfinished = file.with_name(f".{file.name}.unfinished-{os.getpid()}")
    try:
        # Made by us, so that no one else can read the conversations that come into it.
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        await _run("pg_dump", url, "--format=custom", "--no-owner", "--no-acl", _NO_ROWS_OF, f"--file={unfinished}")
        with deadline("backup.sync", _SYNC_SECONDS):
            await trio.to_thread.run_sync(_settle, unfinished, file)
        return file.stat().st_size
    except OSError as error:
        raise Refused(f"the backup cannot be written to {file}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _settle(unfinished: Path, file: Path) -> None:
    for step in (unfinished, file.parent):
        descriptor = os.open(step, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if step is unfinished:
            unfinished.rename(file)


async def restore(url: str, file: Path) -> None:
    """Put the database at ``url`` back to what ``file`` holds, whole or not at all; nobody may be using it.

    What else the URL's own role has in schema public goes: a newer program's tables, say.

    Raises:
        Refused: ``file`` is no backup, or the database does not let us; the text holds the programs' own words.
    """
    try:
        with file.open("rb") as opened:
            first = opened.read(len(_FIRST_BYTES))
    except OSError as error:
        raise Refused(f"the backup {file} cannot be read: {error.strerror}") from error
    if first != _FIRST_BYTES:
        raise Refused(f"{file} is not a backup that `convo backup` made")
    found = await programs.find()
    bare, environment = _login(url)
    reading = [str(found.folder / "pg_restore"), "--file=-", *_RESTORED, str(file.absolute())]
    writing = [str(found.folder / "psql"), "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    with tempfile.TemporaryFile() as said, deadline("backup.restore", _SECONDS):
        good = await _pipe(reading, [*writing, f"--dbname={bare}"], environment, said)
        if not good:
            said.seek(0)
            raise Refused(f"the restore failed, and nothing was changed: {_last_words(said.read())}")


async def _pipe(reading: list[str], writing: list[str], environment: dict[str, str], said: IO[bytes]) -> bool:
    """Feed what one program reads to the other inside one transaction; tell whether it was committed."""
    start = partial(trio.lowlevel.open_process, stderr=said, env=environment)
    source = await start(reading, stdout=subprocess.PIPE)
    sink = await start(writing, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        # Broken: the writer stopped at an error, and has said which.
        with suppress(trio.BrokenResourceError):
            await _feed(source, sink)
        codes = [await process.wait() for process in (source, sink)]
    finally:
        with suppress(DeadlineExceeded), trio.CancelScope(shield=True), deadline("backup.kill", _KILL_SECONDS):
            for process in (source, sink):
                process.kill()
                await process.wait()
    return codes == [0, 0]


async def _feed(source: trio.Process, sink: trio.Process) -> None:
    assert source.stdout is not None  # noqa: S101  (both were asked for)
    assert sink.stdin is not None  # noqa: S101
    async with source.stdout as reader, sink.stdin as writer:
        head = b""
        while len(head) < _HEAD_BYTES and (chunk := await reader.receive_some()):
            head += chunk
        await writer.send_all(_BEGIN + head.replace(_TOO_NEW, b"", 1))
        async for chunk in reader:
            await writer.send_all(chunk)
        # Without a COMMIT the server undoes it all, wherever the stream broke off.
        if await source.wait() == 0:
            await writer.send_all(b"COMMIT;\n")


async def _run(program: str, url: str, *arguments: str) -> None:
    found = await programs.find()
    bare, environment = _login(url)
    with deadline(f"backup.{program}", _SECONDS):
        done = await trio.run_process(
            [str(found.folder / program), f"--dbname={bare}", "--no-password", *arguments],
            capture_stderr=True,
            stdout=subprocess.DEVNULL,
            check=False,
            env=environment,
        )
    if done.returncode != 0:
        raise Refused(f"{program} {found.version} failed ({done.returncode}): {_last_words(done.stderr)}")


def _last_words(said: bytes) -> str:
    return "\n".join(said.decode("utf-8", "replace").strip().splitlines()[-_LAST_LINES:])


def _login(url: str) -> tuple[str, dict[str, str]]:
    bare, password = split_password(url)
    return bare, {"LC_ALL": "C", "PATH": os.defpath} | ({} if password is None else {"PGPASSWORD": password})


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
