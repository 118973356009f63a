"""The receipts that this process gave lately: by them it is known what a database that went back has lost.

Open it to change how long they are kept. They are in memory only: those of a process that has ended are not known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import trio

from convo.conversation.tenant import hash_of_own
from convo.store.erasures import erased_among
from convo.store.installation_key import read_installation_key
from convo.store.postgres import RELAXED, Connection, Postgres

_KEPT_SECONDS = 600.0
_KEPT_MAX = 100_000
_CHUNK = 1_000


class GivenReceipts:
    """The ids of what was acknowledged in the last ten minutes, at most 100,000 of them, each as ``Tenant.own`` has it.

    ``contradicted`` is called when the database gives a ``seq`` again that it gave to this process before.
    """

    def __init__(self, contradicted: Callable[[], None] = lambda: None) -> None:
        self._contradicted: Final = contradicted
        self._batches: deque[tuple[float, tuple[str, ...]]] = deque()
        self._count = 0
        self._newest_seq = 0

    def note(self, own_ids: Collection[str], new_seqs: Sequence[int]) -> None:
        """Note the conversations of one batch, and the numbers that the new ones among them were given.

        One committer inserts its batches one after the other, so the numbers of the next batch are higher.
        """
        now = trio.current_time()
        self._batches.append((now, tuple(own_ids)))
        self._count += len(own_ids)
        while self._count > _KEPT_MAX or self._batches[0][0] < now - _KEPT_SECONDS:
            self._count -= len(self._batches.popleft()[1])
            if not self._batches:
                break
        if new_seqs:
            if min(new_seqs) <= self._newest_seq:
                self._contradicted()
            self._newest_seq = max(new_seqs)

    def start_over(self, reported: Iterable[str] = ()) -> None:
        """Let the numbers begin anew: the database counts from an earlier one on. Forget what was reported missing."""
        gone = set(reported)
        kept = [(at, tuple(one for one in ids if one not in gone)) for at, ids in self._batches]
        self._batches = deque(batch for batch in kept if batch[1])
        self._count = sum(len(ids) for _, ids in self._batches)
        self._newest_seq = 0

    async def missing(self, postgres: Postgres) -> tuple[int, list[str]]:
        """Ask the database for each of them; return how many were asked for, and the ids that it does not know.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it does not answer.
        """
        given = {own_id: None for _, ids in self._batches for own_id in ids}
        unknown: list[str] = []
        for chunk in _chunks(given):
            unknown += await postgres.run("db.receipts", partial(_unknown, ids=chunk), begin=RELAXED)
        return len(given), unknown


def _chunks(ids: Iterable[str]) -> Iterable[list[str]]:
    rest = iter(ids)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


async def _unknown(connection: Connection, ids: list[str]) -> list[str]:
    hashes = {one: hash_of_own(one) for one in ids}
    rows = await connection.fetch("SELECT id_hash FROM receipt WHERE id_hash = ANY($1)", list(hashes.values()))
    known = {row["id_hash"] for row in rows}
    unknown = [one for one, hashed in hashes.items() if hashed not in known]
    if not unknown:
        return []
    key = await read_installation_key(connection)
    hmacs = {own: (key.hmac_of("conversation", own), key.hmac_of_hash(hashes[own])) for own in unknown}
    erased = await erased_among(connection, [hmac for pair in hmacs.values() for hmac in pair])
    return [own for own, pair in hmacs.items() if erased.isdisjoint(pair)]
