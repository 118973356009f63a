"""Who this process is: a name kept in its data folder, under a lock that its death gives back."""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convo.errors import Refused


@contextmanager
def claim(data_dir: Path) -> Iterator[str]:
    """Hold ``data_dir/instance`` and yield the name in it; whoever holds it knows its predecessor dead.

    The host is part of the name: a copied folder on another machine is another process.

    Raises:
        Refused: another process holds the folder, or it cannot be written.
    """
    path = data_dir / "instance"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise Refused(f"server.data_dir {str(data_dir)!r} cannot be used: {error.strerror}") from error
    with file:
        file.seek(0)
        name, _, pid = file.read().partition(" ")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"server.data_dir {str(data_dir)!r} is in use by the convo with pid {pid.strip() or 'unknown'}:"
                " stop that one, or give this one another --data-dir"
            ) from None
        name = name or uuid.uuid4().hex
        file.truncate(0)
        file.write(f"{name} {os.getpid()}\n")
        file.flush()
        yield f"{socket.gethostname()}/{name}"
