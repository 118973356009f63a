"""What a database server's own settings mean for convo; it asks the server nothing."""

from __future__ import annotations

from collections.abc import Mapping

from convo.errors import Refused

_LINES = 3
"""The connections of the committer, of the books and of the alerts; the settler and all others go through the pool."""

_RISKS = {
    "fsync": "a crash of its machine can lose or corrupt everything",
    "full_page_writes": "a crash of its machine can corrupt everything",
    "synchronous_commit": "convo overrides it for what it accepts and settles; what others store there may be lost",
}


def risks(found: Mapping[str, str]) -> dict[str, str]:
    """Say of each setting that is off and that a receipt stands on what may come of it."""
    return {
        setting: f"the database runs with {setting} = off: {risk}"
        for setting, risk in _RISKS.items()
        if found[setting] == "off"
    }


def connections_wanted(pool_max: int) -> int:
    """Count the connections that one process may open."""
    return pool_max + _LINES


def connections_spare(found: Mapping[str, str]) -> int:
    """Count the connections that the server has for all who are not its superuser."""
    return int(found["max_connections"]) - int(found["superuser_reserved_connections"])


def check_room(found: Mapping[str, str], pool_max: int) -> None:
    """See whether the server takes all connections that one process may open.

    Raises:
        Refused: it takes fewer; both numbers are named.
    """
    if connections_wanted(pool_max) > connections_spare(found):
        raise Refused(
            f"database.pool_max = {pool_max} and {_LINES} connections besides are more than the"
            f" {connections_spare(found)} that the database takes (max_connections {found['max_connections']}): under"
            " load it would turn connections away; lower the one or raise the other"
        )
