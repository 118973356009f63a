"""Replace this process by a program that ends when its starter ends; it is run as a script and imports no convo.

``python -I -S launcher.py STARTER_PID UID GID PROGRAM ARGUMENT...`` (uid -1: keep the user). It is a script and not
a ``preexec_fn`` for two reasons. Python code between fork and exec is unsafe beside threads. And the user that
PostgreSQL runs as may have no access to this Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _change_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _end_with(starter: int) -> None:
    # The kernel drops this request at a change of user, so it comes after that. SIGINT is PostgreSQL's fast shutdown.
    # Only Linux has it. On other systems the next start ends the orphan.
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != starter:
        raise SystemExit("the starter is gone already")


def main(starter: str, uid: str, gid: str, *command: str) -> None:
    """Change the user, make this process end with its starter, and run ``command`` in its place."""
    os.umask(0o077)
    if int(uid) >= 0:
        _change_user(int(uid), int(gid))
    _end_with(int(starter))
    os.execv(command[0], command)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main(*sys.argv[1:])
