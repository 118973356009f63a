"""What a lease brings along in one query: the parts that are found already, tickets, and the logs.

Open it to change what a worker need not ask for. It knows no leases and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct, field

from convo.conversation.model import Finding, PartName
from convo.store.jobs.parts import finding
from convo.store.postgres import Connection

LOG_BYTES = 64 << 10
"""A longer packed log does not come along: its worker reads it when it begins, so that few are in memory at once."""


class Brought(Struct, frozen=True, kw_only=True):
    """What is stored of one job: ``parts`` and ``tickets`` by part, and its packed ``log`` where that came along."""

    parts: dict[PartName, Finding] = field(default_factory=dict)
    tickets: dict[PartName, str] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)


async def bring(connection: Connection, seqs: Sequence[int], *, logs_of: Collection[int]) -> dict[int, Brought]:
    """Read what is stored of these jobs, by ``seq``, with the logs of ``logs_of`` as far as they are short."""
    found = {seq: Brought() for seq in seqs}
    for row in await connection.fetch(_BRING, list(seqs), list(logs_of), LOG_BYTES):
        one = found[row["seq"]]
        if row["body"] is not None:
            one.log.append(row["body"])
        elif row["ticket"] is not None:
            one.tickets[row["name"]] = row["ticket"]
        else:
            one.parts[row["name"]] = finding(row["name"], row["result"])
    return found


# The sizes of logs are known without reading them (octet_length of what is stored out of line).
_BRING = """
SELECT seq, name, result::text AS result, NULL::text AS ticket, NULL::bytea AS body
FROM part WHERE seq = ANY($1::bigint[]) AND state = 'done'
UNION ALL SELECT seq, name, NULL, ticket, NULL FROM part_ticket WHERE seq = ANY($1::bigint[])
UNION ALL SELECT seq, NULL, NULL, NULL, body FROM conversation_log
WHERE seq = ANY($2::bigint[]) AND octet_length(body) <= $3
"""
