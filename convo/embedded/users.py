"""Which user PostgreSQL runs as when convo runs as root: one that no other process has, where that is possible."""

from __future__ import annotations

import hashlib
import os
import pwd
import sys
from pathlib import Path

from convo.embedded.programs import User

NOBODY = 65534
"""The user that all programs without one of their own share."""

# Neither distributions nor systemd give these numbers to anybody (systemd.io/UIDS-GIDS), and a user namespace of the
# usual 65,536 numbers has them.
_OWN_FIRST, _OWN_LAST = 60706, 61183
_SYSTEM_LAST = 999


def user_for(folder: Path, owner: os.stat_result | None) -> User:
    """Return the user for the data in ``folder``, whose owner now is ``owner``; None where there are no data yet.

    Data that an administrator gave to somebody stay theirs. Those of root (a copy) and of nobody (an earlier version)
    get a user of their own.
    """
    if owner is not None and owner.st_uid not in (0, NOBODY):
        return User(owner.st_uid, owner.st_gid or NOBODY)
    number = _own_number(folder)
    return User(number, number)


def maker(user: User) -> User:
    """Return the user that initdb runs as: it needs one with a name, and the server needs none.

    It is one that no process has at the moment: the folder is given to ``user`` once it is made.
    """
    if _has_name(user.uid):
        return user
    busy = _numbers_in_use()
    named = [one for one in pwd.getpwall() if 0 < one.pw_uid <= _SYSTEM_LAST and one.pw_uid not in busy and one.pw_gid]
    return User(named[-1].pw_uid, named[-1].pw_gid) if named else User(NOBODY, NOBODY)


def _own_number(folder: Path) -> int:
    """Return a number that is no user's and no process's, the same one each time for ``folder``, or nobody's."""
    if sys.platform != "linux":
        return NOBODY
    count = _OWN_LAST - _OWN_FIRST + 1
    begin = int.from_bytes(hashlib.sha256(os.fsencode(folder)).digest()[:4]) % count
    busy = _numbers_in_use()
    for step in range(count):
        number = _OWN_FIRST + (begin + step) % count
        if number not in busy and not _has_name(number) and _is_mapped(number):
            return number
    return NOBODY


def _has_name(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


def _numbers_in_use() -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        # Processes end while we look.
        try:
            found.add(entry.stat().st_uid)
        except OSError:
            continue
    return found


def _is_mapped(number: int) -> bool:
    """Return whether this container has the number at all, as a user and as a group."""
    return all(
        any(first <= number < first + length for first, length in _mapped(kind)) for kind in ("uid_map", "gid_map")
    )


def _mapped(kind: str) -> list[tuple[int, int]]:
    lines = [line.split() for line in Path("/proc/self", kind).read_text("ascii").splitlines()]
    return [(int(first), int(length)) for first, _, length in lines]
