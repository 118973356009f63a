"""Become another program that cannot outlive its starter; run as a file of its own, it knows nothing of convo.

``python -I -S launcher.py STARTER_PID UID GID PROGRAM ARGUMENT...`` (uid -1: stay who you are). It is a program and
not a ``preexec_fn`` because Python code between fork and exec is unsafe beside threads, and because the user whom
PostgreSQL is to run as need not be able to reach this Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _die_with(starter: int) -> None:
    # The kernel forgets this wish at a change of user, so it comes after that. SIGINT is PostgreSQL's fast shutdown.
    # Other systems than Linux have no such wish: there the next start finds the orphan.
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != starter:
        raise SystemExit("the starter is gone already")


def main(starter: str, uid: str, gid: str, *command: str) -> None:
    """Change to the user, tie this process to its starter, and become ``command``."""
    os.umask(0o077)
    if int(uid) >= 0:
        _become(int(uid), int(gid))
    _die_with(int(starter))
    os.execv(command[0], command)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main(*sys.argv[1:])
