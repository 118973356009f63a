"""The sets of parts that conversations are owed: each is stored once, and kept in memory by its number.

Open it to change how a job comes by what it is owed. Sets are few: one for each combination of conditions that holds.
"""

from __future__ import annotations

from collections.abc import Iterable

from convo.conversation.owed import DEFAULT_OWED, Owed, decode_parts, encode_parts
from convo.errors import ConvoError
from convo.store.postgres import Connection


class OwedSets:
    """The sets that this process has met."""

    def __init__(self) -> None:
        self._known: dict[int, Owed] = {0: DEFAULT_OWED}

    def get(self, number: int | None) -> Owed:
        """Return a set that was loaded or stored; the default one for None.

        Raises:
            ConvoError: the database has none of this number.
        """
        found = self._known.get(number or 0)
        if found is None:
            raise ConvoError(f"the set of parts {number} is not in the database: restore the table part_set")
        return found

    async def load(self, connection: Connection, numbers: Iterable[int | None]) -> None:
        """Read the sets of these numbers that are not known yet; no statement where all are."""
        missing = {number for number in numbers if number} - self._known.keys()
        if missing:
            for row in await connection.fetch(_LOAD, list(missing)):
                self._known[row["number"]] = decode_parts(row["number"], row["parts"])

    async def store(self, connection: Connection, sets: Iterable[Owed]) -> None:
        """Store those of these sets that this process has not met; no statement where it has met all."""
        new = {one.number: one for one in sets if one.number not in self._known}
        if new:
            await connection.execute(_STORE, list(new), [encode_parts(one.parts) for one in new.values()])
            self._known |= new

    def forget(self) -> None:
        """Forget all: the database went back, and may not have them any more."""
        self._known = {0: DEFAULT_OWED}


_LOAD = "SELECT number, parts FROM part_set WHERE number = ANY($1::bigint[])"
_STORE = """
INSERT INTO part_set (number, parts) SELECT * FROM unnest($1::bigint[], $2::text[]) ON CONFLICT DO NOTHING
"""
