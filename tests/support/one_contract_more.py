"""A convo that knows one contract step more than today's, and needs it; the arguments are those of ``convo``."""

from __future__ import annotations

import sys
from unittest import mock

from convo.commands import cli
from convo.store import migrate
from convo.store.migrations import Migration, migrations, parse_migration

HEAD = "-- kind: contract\n-- needed: yes\n-- run: transaction\n-- lock: none\n"


def known() -> list[Migration]:
    """Return today's migrations and the one more."""
    return [*migrations(), parse_migration(migrations()[-1].number + 1, f"{HEAD}CREATE TABLE added (n integer);")]


if __name__ == "__main__":
    more = known()
    with mock.patch.object(migrate, "migrations", return_value=more):
        sys.exit(cli.main(sys.argv[1:]))
