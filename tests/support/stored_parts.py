"""Reads the parts that are stored of conversations, whether their jobs are open or done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convo.store.outcomes import PARTS_OF_JOB, PartRecord, read_parts, unpack_details
from convo.store.postgres import Connection, Postgres

JOBS = f"""
SELECT conversation_id, details, {PARTS_OF_JOB} AS parts
FROM every_job AS job JOIN conversation USING (seq) ORDER BY seq
"""


def parts_of(row: Mapping[str, Any]) -> tuple[PartRecord, ...]:
    """Return the parts of a row of ``JOBS``, by their names."""
    found = read_parts(row["parts"]) if row["details"] is None else unpack_details(row["details"]).parts
    return tuple(sorted(found, key=lambda part: part.name))


async def stored_parts(postgres: Postgres) -> dict[str, tuple[PartRecord, ...]]:
    """Read the parts of each conversation, by its id."""

    async def body(connection: Connection) -> dict[str, tuple[PartRecord, ...]]:
        return {row["conversation_id"]: parts_of(row) for row in await connection.fetch(JOBS)}

    return await postgres.run("test.parts", body)
