"""Suspects: jobs whose process died with them, and the claim that lets one process at a time work on one of them.

Open it to change when a suspect is leased. A suspect's process must have nothing else leased: when it dies, all that it
has leased counts a crash. Other processes go on meanwhile.

The claim is a row and not a lock, for it must outlast many transactions without a connection of its own. It stands
while the process makes itself quiet, and is good for one lease. Afterwards the leased suspect itself keeps others out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convo.store.job_sql import SUSPECT, SUSPECT_AT
from convo.store.jobs.fair_lease import LEASED, TAKEN
from convo.store.postgres import Connection


async def has_suspects(connection: Connection, allowed: Sequence[str]) -> bool:
    """Find out whether a suspect is due whose ``waits_for`` is allowed."""
    found: bool = await connection.fetchval(_HAS_SUSPECTS, allowed)
    return found


async def claim_suspects(connection: Connection, owner: str, seconds: float) -> bool:
    """Let ``owner`` be the one process that works on suspects, for so long; return whether it is."""
    return bool(await connection.fetchval(_CLAIM, owner, seconds))


async def take_suspect(
    connection: Connection, *, owner: str, lease_seconds: float, allowed: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """Lease the suspect that is due longest, if this process may: it has the claim, and nothing else leased."""
    # Nothing for this process: it leaves the claim to one that has what the suspect waits for.
    if not await has_suspects(connection, allowed) or not await claim_suspects(connection, owner, lease_seconds):
        return []
    return await connection.fetch(_LEASE_SUSPECT, 1, owner, lease_seconds, allowed)


_HAS_SUSPECTS = f"SELECT EXISTS (SELECT FROM job WHERE {SUSPECT} AND waits_for = ANY($1::text[]))"
# A claim from the future is good too, up to its length: another transaction that began later can have committed first.
# Further away it is none, for the clock was set back.
_CLAIM = f"""
INSERT INTO suspect_claim AS held (owner, claimed_at, seconds)
SELECT $1, convo_now(), $2 WHERE NOT EXISTS (SELECT FROM job WHERE state = 'leased' AND crashes >= {SUSPECT_AT})
ON CONFLICT (one) DO UPDATE SET owner = $1, claimed_at = convo_now(), seconds = $2
WHERE held.owner = $1 OR abs(extract(epoch FROM convo_now() - held.claimed_at)) > held.seconds
RETURNING true
"""
RELEASE_CLAIM = "DELETE FROM suspect_claim WHERE owner = ANY($1::text[])"
"""For processes that stop, or are dead."""
_LEASE_SUSPECT = f"""
WITH due AS (
    SELECT seq FROM job WHERE {SUSPECT} AND waits_for = ANY($4::text[])
      AND NOT EXISTS (SELECT FROM job AS mine WHERE mine.state = 'leased' AND mine.leased_by = $2)
    ORDER BY available_at, seq LIMIT $1 FOR UPDATE SKIP LOCKED
), taken AS ({TAKEN})
SELECT {LEASED} FROM taken JOIN conversation c USING (seq)
"""
