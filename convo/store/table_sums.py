"""A sum of every row of a database, by table: two databases with the same sums hold the same rows.

It runs in psql, as backup and restore do, and needs no session of this process.
"""

from __future__ import annotations

import os

import trio

from convo.embedded import programs
from convo.errors import Refused
from convo.runtime.deadline import deadline
from convo.store.backup import split_password

_SECONDS = 24 * 3600.0
# A backup leaves out who is at work and who is signed in, and its restore counts the history on.
_LEFT_OUT = "'process', 'session', 'history', 'history_beat'"
# A restore lets the numbers of events go on at its own time; the last number given is moved as it was.
_SUMMED = "CASE relname WHEN 'event_counter' THEN 't.last_sequence' ELSE 't' END"
# The text of a row and SHA-256 are the same in every version of the server; the order of the rows does not matter.
_SUMS = rf"""
SELECT format('SELECT %L, count(*), coalesce(sum((''x'' || encode(substr(sha256(convert_to((%s)::text, ''UTF8'')), 1, '
              '7), ''hex''))::bit(56)::bigint), 0) FROM public.%I AS t', relname, {_SUMMED}, relname)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT IN ({_LEFT_OUT})
ORDER BY relname COLLATE "C" \gexec
SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public' ORDER BY sequencename COLLATE "C";
"""


async def read_table_sums(url: str) -> str:
    """Read the number and the sum of the rows of each table, and where each sequence stands: a line each.

    It reads the whole database.

    Raises:
        Refused: the database does not answer it; the text holds its message.
    """
    found = await programs.find()
    bare, password = split_password(url)
    environment = {"LC_ALL": "C", "PATH": os.defpath, "PGPASSFILE": os.devnull, "PGPASSWORD": password or ""}
    environment["PGOPTIONS"] = "-c timezone=UTC -c datestyle=ISO -c search_path=pg_catalog -c statement_timeout=0"
    line = [str(found.folder / "psql"), "--no-psqlrc", "--no-password", "--quiet", "-A", "-t", "--set=ON_ERROR_STOP=1"]
    with deadline("backup.sums", _SECONDS):
        done = await trio.run_process(
            [*line, f"--dbname={bare}"],
            stdin=_SUMS.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment,
        )
    if done.returncode != 0:
        raise Refused(f"the rows of the database cannot be summed up: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout.decode()
