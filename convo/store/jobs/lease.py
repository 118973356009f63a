"""A lease, and its fence: the check that every write of a lease's holder makes first, in its own transaction.

Open it to change what a worker knows of its job, or how a late worker is kept from writing. The rules stand in
``store/jobs/table.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec import Struct

from convo.conversation.model import Finding, PartName
from convo.conversation.owed import DEFAULT_OWED, Owed
from convo.conversation.tenant import DEFAULT, Tenant
from convo.errors import LeaseLost
from convo.store.postgres import Connection


class Lease(Struct, frozen=True, kw_only=True):
    """The right to work on one job until the lease ends; ``parts`` are the findings that are stored already.

    ``asked_before``: an earlier lease of the job may have asked the remote services. ``tickets`` are stored ones.
    ``log_hash`` is the ``logs.hash_of`` of its packed log; None where an older program accepted it. ``remote_prefix``
    is what stands before its ids where they are sent to a service that many tenants share. ``replaces`` is there for a
    revision: the ``seq`` whose score it takes the place of, 0 where none counts yet. ``owed`` are its parts, fixed when
    it was accepted. ``trace`` is the stored context of the trace that it came in, None where nothing is recorded of it.
    """

    seq: int
    token: int
    attempts: int
    fair_key: str
    conversation_id: str
    user_id: str
    bot_id: str
    digest: str
    log_hash: bytes | None
    started_at: datetime
    ended_at: datetime
    exchanges: int
    parts: dict[PartName, Finding]
    asked_before: bool = False
    tenant: Tenant = DEFAULT
    remote_prefix: str = ""
    replaces: int | None = None
    tickets: Mapping[PartName, str] = {}
    owed: Owed = DEFAULT_OWED
    trace: str | None = None


class Holder(Struct, frozen=True):
    """Who has a lease, and the database's time."""

    by: str
    now: datetime


async def hold(connection: Connection, leases: Iterable[Lease]) -> dict[int, Holder]:
    """Lock the rows of the leases that are still good, for as long as this transaction lasts; return who has them.

    The key is the token: a batch can hold a lost lease and the good lease of the same job, and only tokens tell them
    apart.
    """
    by_token = {lease.token: lease.seq for lease in leases}
    rows = await connection.fetch(_HOLD, list(by_token.values()), list(by_token))
    return {row["lease_token"]: Holder(row["leased_by"], row["now"]) for row in rows}


def lost(lease: Lease) -> LeaseLost:
    """Return the error for a lease that is no longer ours."""
    return LeaseLost(f"the lease on conversation {lease.conversation_id!r} is lost")


async def hold_one(connection: Connection, lease: Lease) -> None:
    """Lock the row of one lease that is still good, for as long as this transaction lasts.

    Raises:
        LeaseLost: the job is no longer ours.
    """
    if not await hold(connection, [lease]):
        raise lost(lease)


# A lease ends by the row's token, not by its time: past its time it is good until somebody rescues it, and a rescue
# takes the token away.
_HOLD = """
SELECT job.lease_token, job.leased_by, convo_now() AS now FROM job
JOIN unnest($1::bigint[], $2::bigint[]) AS mine (seq, token) ON job.seq = mine.seq AND job.lease_token = mine.token
ORDER BY job.seq FOR UPDATE OF job
"""
