"""The identity of a process: a name made of its data folder's id and of this start, under a lock that ends with it.

Open it to change how a process is told from others. Whether another living process works under a copy of the folder
is only known to the database (``convo.sign_in``).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from convo.errors import Refused


def short_name(name: str) -> str:
    """Shorten the name of a process for a person: as long as is needed to tell a few hundred apart."""
    return ".".join(part[:8] for part in name.split("."))


class Identity:
    """Who this process is.

    ``folder`` is the random id of the data folder, the same at every start. ``incarnation`` is new at every start.
    ``host`` is for people to read: in a container it is another one after each restart.
    """

    def __init__(self, file: TextIO, folder: str) -> None:
        self._file = file
        self.folder = folder or uuid.uuid4().hex
        self.incarnation = secrets.token_hex(8)
        self.host = socket.gethostname()
        self._write()

    @property
    def name(self) -> str:
        """The name of this process on its database: no other process ever had it."""
        return f"{self.folder}.{self.incarnation}"

    @property
    def label(self) -> str:
        """What a person recognises the process by."""
        return f"{self.host}/{self.folder}"

    def take_new_folder_id(self) -> None:
        """Give the folder another id: a living process has the one that was copied into it."""
        self.folder = uuid.uuid4().hex
        self._write()

    def _write(self) -> None:
        self._file.truncate(0)
        self._file.write(f"{self.folder} {os.getpid()} {self.incarnation}\n")
        self._file.flush()


@contextmanager
def claim(data_dir: Path) -> Iterator[Identity]:
    """Lock ``data_dir/instance`` and yield the identity: while the lock is held, no other process has this folder.

    Raises:
        Refused: another process holds the folder, or it cannot be written.
    """
    path = data_dir / "instance"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise Refused(
            f"server.data_dir {str(data_dir)!r} cannot be used: {error.strerror}; choose another with --data-dir"
        ) from error
    with file:
        file.seek(0)
        # Until 0.1 the file held no incarnation: ``folder pid``.
        folder, pid, *_ = [*file.read().split(), "", ""]
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"server.data_dir {str(data_dir)!r} is in use by the convo with pid {pid or 'unknown'}:"
                " stop that process, or give this one another --data-dir"
            ) from None
        yield Identity(file, folder)
