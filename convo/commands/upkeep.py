"""The commands that work on the database itself: backup, restore, audit, retention, and the keys of clients."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import asdict

from convo.commands.expiry import read_expiry, read_span
from convo.commands.later import import_later
from convo.commands.options import add_command, add_settings, settings_of
from convo.errors import Refused
from convo.observe.log import open_log
from convo.plural import plural

if TYPE_CHECKING:
    from convo.commands import database, drawing, old_logs, output, retention_drawing
    from convo.commands.options import Commands
    from convo.settings import Settings
    from convo.store import keys
else:
    # Not before a command runs that needs them.
    database = import_later("convo.commands.database")
    drawing = import_later("convo.commands.drawing")
    old_logs = import_later("convo.commands.old_logs")
    output = import_later("convo.commands.output")
    retention_drawing = import_later("convo.commands.retention_drawing")
    keys = import_later("convo.store.keys")

T = TypeVar("T")

_REQUESTS_PER_SECOND_MAX = 1e9


def add_upkeep(commands: Commands) -> None:
    """Add backup, restore, audit and retention."""
    backup = add_command(commands, "backup", "write a copy of the database to a file, while it is in use", _backup)
    backup.add_argument("--force", action="store_true", help="replace a file of this name")
    backup.add_argument(
        "--with-objects", action="store_true", help="copy the objects of logs that it needs beside it, too"
    )
    restore = add_command(
        commands, "restore", "put the database back to what a backup holds; no convo may be serving it", _restore
    )
    restore.add_argument("--yes", action="store_true", help="do not ask before the database is replaced")
    restore.add_argument(
        "--without-erasures",
        action="store_true",
        help="restore although no list of erasures is here: what was erased since the backup comes back",
    )
    restore.add_argument(
        "--without-objects",
        action="store_true",
        help="restore although objects of logs are missing: the logs in them are gone",
    )
    for parser in (backup, restore):
        parser.add_argument("file", type=Path, metavar="FILE")
        add_settings(parser)
    audit = add_command(commands, "audit", "compare the database with its ledger; exit 1 where they differ", _audit)
    audit.add_argument("--objects", action="store_true", help="compare the objects of logs with the database, too")
    add_settings(audit)
    due = add_command(commands, "retention", "show what goes by itself, and when; it removes nothing", _retention)
    due.add_argument("--dry-run", action="store_true", help="count what is over now")
    add_settings(due)


def _run(settings: Settings, command: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    import trio  # noqa: PLC0415  (as above)

    with open_log(settings.observe):
        return trio.run(command, settings, *arguments)


def _backup(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    size = _run(settings, partial(database.backup, replace=asked.force), asked.file)
    objects = None
    if settings.logs.in_objects:
        objects = _run(settings, partial(old_logs.objects_of_backup, copied=asked.with_objects), asked.file)
    if asked.json:
        found = {} if objects is None else {"objects": asdict(objects)}
        output.print_json({"file": str(asked.file), "bytes": size, **found})
        return 0
    print(f"{asked.file}: {size:,} bytes")
    if objects is not None and objects.needed:
        copied = f"; {objects.moved:,} copied beside it" if asked.with_objects else "; --with-objects copies them"
        print(
            f"it needs {objects.needed:,} {plural(objects.needed, 'object')} of logs, {objects.bytes:,} bytes{copied}"
        )
    return 0


def _restore(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    if asked.without_erasures:
        print(
            "warning: what was erased since this backup was made comes back (--without-erasures). A server that has the"
            " list of erasures in its data folder erases it again when it starts",
            file=sys.stderr,
        )
    if settings.logs.in_objects and not asked.without_objects:
        objects = _run(settings, old_logs.check_objects, asked.file)
        if objects.moved:
            back = f"{objects.moved:,} {plural(objects.moved, 'object')} of logs"
            were = "was" if objects.moved == 1 else "were"
            print(f"put back {back} that {were} not in the bucket", file=sys.stderr)
    confirm = _agree if asked.yes else _ask_before_restore
    restore = partial(database.restore, without_erasures=True) if asked.without_erasures else database.restore
    again = _run(settings, restore, asked.file, confirm)
    if asked.json:
        output.print_json({"restored_from": str(asked.file), **({"erased_again": asdict(again)} if again else {})})
    else:
        print(f"restored from {asked.file}; start convo again")
        if again:
            counts = ", ".join(f"{name} {count:,}" for name, count in asdict(again).items() if count)
            print(f"erased again, as since the backup: {counts}")
    return 0


def _agree(_replacement: database.Replacement) -> None:
    return None


def _ask_before_restore(replacement: database.Replacement) -> None:
    # On stderr, with the question: what is printed on stdout is the command's result.
    print(
        f"database: {replacement.database}\n  holds:  {replacement.contents}\nbackup:   {replacement.backup}\n"
        "Everything in the database is replaced by what the backup holds.",
        file=sys.stderr,
    )
    if not sys.stdin.isatty():
        raise Refused("nothing was changed: there is no terminal to ask on; give --yes to replace the database")
    print("Replace it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was changed")


def add_keys(commands: Commands) -> None:
    """Add the commands of ``key``."""
    key = commands.add_parser("key", help="make, list, replace and revoke the keys of clients")
    actions = key.add_subparsers(title="commands", required=True, metavar="COMMAND")
    new = add_command(actions, "new", "make a key and print it; it cannot be shown again", _new_key, "add")
    new.add_argument("name", metavar="NAME", help="the client that gets it")
    new.add_argument(
        "--scopes",
        default="write,read",
        help="what it allows: write, read, erase, webhooks, admin (default: write,read)",
    )
    new.add_argument("--requests-per-second", type=float, default=0.0, help="the limit of this key (0: none)")
    new.add_argument(
        "--tenant", default="default", metavar="NAME", help="whose conversations it reaches; made with its first key"
    )
    new.add_argument("--bots", default="", metavar="IDS", help="the bots it is bound to, by commas (default: all)")
    listed = add_command(actions, "list", "list the keys that are not revoked", _list_keys)
    listed.add_argument("--tenant", metavar="NAME", help="only those of this tenant")
    add_settings(listed)
    rotate = add_command(actions, "rotate", "make a key that replaces another, and print it", _rotate_key)
    rotate.add_argument("--overlap", default="1d", metavar="SPAN", help="how long the old one is valid yet (1d)")
    for parser, default in ((new, "never"), (rotate, "")):
        help_ = "90d, 12h, a date or a time (UTC), or never" + (f" (default: {default})" if default else "")
        parser.add_argument("--expires", default=default, metavar="WHEN", help=help_)
    revoke = add_command(actions, "revoke", "make a key invalid", _revoke_key)
    for parser in (rotate, revoke):
        parser.add_argument("key_id", metavar="ID", help="the part between the first two underscores")
    for parser in (new, rotate, revoke):
        add_settings(parser)


def _new_key(asked: argparse.Namespace) -> int:
    asked_for = [scope.strip() for scope in asked.scopes.split(",")]
    scopes = [scope for scope in keys.SCOPES if scope in asked_for]
    if len(scopes) != len(asked_for):
        raise Refused(f"--scopes {asked.scopes!r}: choose from {', '.join(keys.SCOPES)}, separated by commas")
    if not 0 <= asked.requests_per_second <= _REQUESTS_PER_SECOND_MAX:
        raise Refused(f"--requests-per-second {asked.requests_per_second:g}: choose a number above 0, or 0")
    bots = [bot.strip() for bot in asked.bots.split(",")] if asked.bots else []
    if not all(bots):
        raise Refused(f"--bots {asked.bots!r}: give the ids of bots, separated by commas")
    expires = read_expiry(asked.expires)
    settings = settings_of(asked)
    make = partial(database.new_key, tenant=asked.tenant, bots=bots)
    key = _run(settings, make, asked.name, scopes, asked.requests_per_second, expires)
    if asked.json:
        output.print_json({"key": key})
    else:
        print(key)
    _warn_of_no_effect(settings)
    return 0


def _warn_of_no_effect(settings: Settings) -> None:
    # On stderr: what is printed on stdout is the command's result.
    if not settings.auth.keys:
        print(
            "warning: auth.keys is off in these settings: no server with them asks for a key. Switch it on"
            " (CONVO_AUTH__KEYS=true), and restart the server",
            file=sys.stderr,
        )


def _rotate_key(asked: argparse.Namespace) -> int:
    overlap, expires = read_span(asked.overlap, "--overlap"), read_expiry(asked.expires) if asked.expires else None
    settings = settings_of(asked)
    key = _run(settings, database.rotate_key, asked.key_id, overlap, expires)
    if asked.json:
        output.print_json({"key": key, "replaces": asked.key_id, "overlap_seconds": overlap.total_seconds()})
    else:
        print(key)
        print(f"{asked.key_id} is valid for {asked.overlap.strip()} more, at most", file=sys.stderr)
    _warn_of_no_effect(settings)
    return 0


def _list_keys(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    found = _run(settings, database.list_keys)
    if asked.tenant is not None:
        found = [key for key in found if key.reach.tenant.name == asked.tenant]
    if asked.json:
        output.print_json(list(map(_shown_key, found)))
    else:
        drawing.show_keys(found)
    _warn_of_no_effect(settings)
    return 0


def _shown_key(key: keys.ApiKey) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(key).items() if name not in ("digest", "reach")}
    return {**shown, "tenant": key.reach.tenant.name, "bots": key.reach.bots}


def _revoke_key(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    _run(settings, database.revoke_key, asked.key_id)
    if asked.json:
        output.print_json({"key_id": asked.key_id, "refused_within_seconds": settings.auth.refresh_seconds})
    else:
        print(f"{asked.key_id} is revoked; servers refuse it within {settings.auth.refresh_seconds:g} s")
    _warn_of_no_effect(settings)
    return 0


def _audit(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    found = _run(settings, database.audit)
    if asked.objects:
        found += _run(settings, old_logs.audit_bucket)
    if asked.json:
        output.print_json({"differences": found})
    else:
        agree = "the tables agree with the ledger"
        print("\n".join(found) or (f"{agree}, and the objects with the tables" if asked.objects else agree))
    return 1 if found else 0


def _retention(asked: argparse.Namespace) -> int:
    found = _run(settings_of(asked), partial(database.retention_due, count=asked.dry_run))
    if asked.json:
        output.print_json(found)
    else:
        retention_drawing.show_retention(found)
    return 0
