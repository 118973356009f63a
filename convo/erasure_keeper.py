"""Keeps the list of erasures in this process's data folder too, and has erasures finished that were broken off.

Open it to change when the list is read, or what is done where file and database differ. The form of the file stands in
``store/erasure_file``. A database that went back knows less than the file: what is missing there is erased again,
before requests are served. A file that was away knows less than the database: it is brought up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import trio

from convo.erase_again import erase_again, note_broken_off
from convo.errors import ConvoError, DatabaseUnavailable, Refused, Unavailable
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.runtime.deadline import deadline
from convo.store import erasure_file, erasure_list
from convo.store.erasure_file import ErasureFileDamaged, ErasureFileNewer, Listed, in_chunks
from convo.store.outbox import NO_EVENTS, Outbox
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.untold import Telling

_LOOK_SECONDS = 5.0
_FILE_SECONDS = 60.0
_RETRY_SECONDS = 1.0
# A request that erases has ended by then.
BROKEN_OFF_SECONDS = 60.0
_CHUNK_ROWS = 1000


class ErasureKeeper:
    """The list of this process; ``erased`` is called with the ``seq`` of what goes, and ``leads`` says who finishes."""

    def __init__(  # noqa: PLR0913  (what it follows, and whom it reports to)
        self,
        postgres: Postgres,
        folder: Path,
        *,
        erased: Callable[[Sequence[int]], None],
        telling: Telling | None = None,
        outbox: Outbox = NO_EVENTS,
        in_objects: bool = False,
        leads: Callable[[], bool] = lambda: False,
    ) -> None:
        self._postgres = postgres
        self._folder = folder
        self._erased = erased
        self._telling = telling
        self._outbox = outbox
        self._in_objects = in_objects
        self._leads = leads
        self._bell = Bell()
        self._file: Path | None = None
        # A file of a later version of convo is left as it is.
        self._is_newer = False
        self._position = ""
        self._seen: frozenset[Listed] = frozenset()
        self.warning = ""
        """Why the file does not hold all of the list; empty while it does."""

    def ring(self) -> None:
        """Have the list read now: something was erased."""
        self._bell.ring()

    # --- before requests are served

    async def settle(self) -> None:
        """Bring the file and the database to the same list, and erase again what a database that went back has stored.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        while True:
            try:
                await self._settle()
                await self._finish()
            except DatabaseUnavailable:
                raise
            except Unavailable as error:
                log_records.erasures_not_finished(reason=error.detail)
                await trio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _settle(self) -> None:
        installation = await self._postgres.run("db.erasures", erasure_list.read_installation, begin=RELAXED)
        file = erasure_file.path_of(self._folder, installation)
        # Before the pages: what is noted while they are read is found by the next look.
        position = await self._postgres.run("db.erasures", erasure_list.read_position, begin=RELAXED)
        kept, anew = await self._read(file)
        only_here, missing = dict(kept), list[Listed]()
        # no deadline: each page is a unit of work, which has one
        async for page in erasure_list.read_pages(self._postgres):
            for one in page:
                here = kept.get(one.key)
                if here is None or here.number < one.number:
                    missing.append(one)
                if here is None or here.number <= one.number:
                    only_here.pop(one.key, None)
        await self._note_again(only_here.values())
        self._position, self._seen = position, frozenset()
        whole = [*kept.values(), *missing] if anew else None
        if not self._is_newer and await self._write(file, installation, missing, whole):
            self._file = file

    async def _read(self, file: Path) -> tuple[dict[tuple[str, bytes, bytes], Listed], bool]:
        """Read the file; return what it holds, and whether it is to be written anew."""
        if not file.exists():
            return {}, True
        try:
            with deadline("erasures.file", _FILE_SECONDS):
                found = await trio.to_thread.run_sync(erasure_file.read_file, file)
        except ErasureFileDamaged as error:
            # What is lost of it is in the database, unless that went back.
            log_records.erasures_not_kept(path=str(file), reason=error.detail)
            return dict(error.good.listed) if error.good else {}, True
        except ErasureFileNewer as error:
            self._is_newer = True
            self._warn(file, error.detail)
            return {}, False
        except Refused as error:
            self._warn(file, error.detail)
            return {}, True
        return dict(found.listed), False

    async def _note_again(self, listed: Iterable[Listed]) -> None:
        for chunk in in_chunks(listed, _CHUNK_ROWS):

            async def note(connection: Connection, chunk: list[Listed] = chunk) -> None:
                await erasure_list.note_again(connection, chunk)

            await self._postgres.run("db.erasures", note)

    # --- from then on

    async def run(self) -> None:
        """Follow the list until cancelled; in the process that leads, finish what was broken off."""
        while True:
            with trio.move_on_after(_LOOK_SECONDS):
                await self._bell.rung()
            try:
                await self.look()
                if self._leads():
                    await note_broken_off(self._postgres, BROKEN_OFF_SECONDS)
                    await self._finish()
            except ConvoError as error:
                log_records.erasures_not_finished(reason=error.detail)
                await trio.sleep(_RETRY_SECONDS)

    async def look(self) -> None:
        """Read what was erased since the last look, and add it to the file."""
        if self._is_newer:
            return
        if self._file is None:
            await self._settle()
            return

        async def body(connection: Connection) -> erasure_list.Followed:
            return await erasure_list.read_since(connection, self._position)

        followed = await self._postgres.run("db.erasures", body, begin=RELAXED)
        # While a long transaction is open, what came with the last look comes again.
        fresh = [one for one in followed.listed if one not in self._seen]
        if await self._write(self._file, "", fresh, None):
            self._position, self._seen = followed.position, frozenset(followed.listed)

    async def _finish(self) -> None:
        done = await erase_again(
            self._postgres,
            erased=self._erased,
            telling=self._telling,
            outbox=self._outbox,
            in_objects=self._in_objects,
        )
        if done:
            log_records.erased_again(conversations=done.conversations, users=done.users, memories=done.memories)
            self.ring()

    async def _write(
        self, file: Path, installation: str, added: Sequence[Listed], anew: Sequence[Listed] | None
    ) -> bool:
        """Add to the file, or write it ``anew``; return whether it is on the disk."""

        def write() -> None:
            if anew is not None:
                erasure_file.write_file(file, installation, anew)
            elif added:
                erasure_file.append_listed(file, added)

        try:
            if anew is not None or added:
                with deadline("erasures.file", _FILE_SECONDS):
                    await trio.to_thread.run_sync(write)
        except OSError as error:
            # It is written anew with all of the list, once it can be.
            self._file = None
            self._warn(file, str(error.strerror))
            return False
        self.warning = ""
        return True

    def _warn(self, file: Path, reason: str) -> None:
        self.warning = f"ERASURES_NOT_KEPT: {file}: {reason}; a restore on this host would bring back what was erased"
        log_records.erasures_not_kept(path=str(file), reason=reason)
