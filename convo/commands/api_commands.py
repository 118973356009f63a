"""The commands that call a running server: their options, and the function of ``terminal`` that each of them calls."""

from __future__ import annotations

import argparse
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from convo import config
from convo.audit_actions import AUDIT_ACTIONS
from convo.commands.later import import_later
from convo.commands.options import add_command, add_settings, arguments_of, settings_of
from convo.commands.parsing import row_count, row_number
from convo.conversation.model import StateFilter
from convo.conversation.times import instant
from convo.errors import Refused
from convo.event_types import EVENT_TYPES

if TYPE_CHECKING:
    from convo.commands import erasing, hooks, importing, scrubbing, terminal
    from convo.commands.options import Commands
else:
    erasing = import_later("convo.commands.erasing")
    hooks = import_later("convo.commands.hooks")
    importing = import_later("convo.commands.importing")
    scrubbing = import_later("convo.commands.scrubbing")
    terminal = import_later("convo.commands.terminal")


def add_api_commands(commands: Commands) -> None:
    """Add every command that calls a server."""
    show = add_command(commands, "show", "show one conversation and its analysis", _show)
    retry = add_command(commands, "retry", "make a dead letter ready again, or many with --all", _retry)
    _add_retry_options(retry)
    explain = add_command(commands, "explain", "show why a conversation has its state", _explain)
    for parser in (show, explain):
        parser.add_argument("conversation_id", metavar="ID")
    user = add_command(commands, "user", "show a user's relationship and memories", _user)
    user.add_argument("user_id", metavar="ID")
    user.add_argument("--limit", type=row_count, default=50, help="how many bots and how many memories (default: 50)")
    listed = add_command(commands, "list", "list conversations, newest first", _list)
    listed.add_argument("--state", choices=get_args(StateFilter))
    listed.add_argument("--user-prefix", metavar="TEXT", help="of users whose id begins so")
    dead = add_command(commands, "dead", "count dead letters by their reason, and list the newest", _dead)
    for parser in (listed, dead):
        parser.add_argument("--user", metavar="ID")
        parser.add_argument("--bot", metavar="ID")
        parser.add_argument("--limit", type=row_count, default=50)
    acknowledge = add_command(commands, "acknowledge", "mark a dead letter as reviewed; it stays dead", _acknowledge)
    acknowledge.add_argument("conversation_id", metavar="ID")
    erase = add_command(commands, "erase", "erase a conversation or a user, and print what that removed", _erase)
    erase.add_argument("kind", choices=("conversation", "user"), nargs="?", help="what is erased")
    erase.add_argument("id", metavar="ID", nargs="?")
    erase.add_argument("--dry-run", action="store_true", help="count the rows, and erase nothing")
    erase.add_argument("--yes", action="store_true", help="do not ask before it is erased, or the tables are written")
    erase.add_argument(
        "--scrub",
        action="store_true",
        help="write the tables of the database anew, so that no file holds what was erased; it locks them meanwhile",
    )
    audit_log = add_command(commands, "audit-log", "show who did what, newest first", _audit_log)
    _add_audit_options(audit_log)
    _add_webhooks(commands)
    alerts = add_command(commands, "alerts", "show the active and the recent alerts", _alerts)
    alerts.add_argument(
        "what",
        nargs="?",
        choices=("show", "test", "ack"),
        default="show",
        help="test: send one test to every sink; ack TYPE: note that you have taken it up",
    )
    alerts.add_argument("type", nargs="?", metavar="TYPE", help="the type of the alert, for ack")
    alerts.add_argument("--component", metavar="NAME", help="of this component alone, for ack")
    alerts.add_argument("--by", metavar="NAME", default="", help="who takes it up (default: the name of the key)")
    capacity = add_command(
        commands, "capacity", "show what this installation can do, from its own measured figures", _capacity
    )
    capacity.add_argument("--target", metavar="RATE", help="what a rate needs: 500/s, 30000/min or 5000000/day")
    capacity.add_argument("--conversations", type=row_count, metavar="N", help="how long so many conversations take")
    imported = add_command(commands, "import", "import conversations from files, or check them first", _import)
    _add_import_options(imported)
    for parser in (imported, show, explain, retry, user, listed, dead, acknowledge, erase, audit_log, alerts, capacity):
        _add_server(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the server (default: CONVO_URL, else the one of the data folder)")
    parser.epilog = "CONVO_KEY is the key that is sent, where the server wants one."
    add_settings(parser)


def _add_webhooks(commands: Commands) -> None:
    webhook = commands.add_parser("webhook", help="register, change and ping endpoints, and send events again")
    actions = webhook.add_subparsers(title="commands", required=True, metavar="COMMAND")
    new = add_command(actions, "new", "register an endpoint, and print its secret, once", _new_webhook, "add")
    new.add_argument("address", metavar="ADDRESS", help="where events are posted: http:// or https://")
    new.add_argument("--secret", default="", help="whsec_…; without it one is made")
    listed = add_command(actions, "list", "list the endpoints", _list_webhooks)
    change = add_command(actions, "change", "change an endpoint, or switch it on or off", _change_webhook)
    delete = add_command(actions, "delete", "remove an endpoint", _delete_webhook)
    ping = add_command(actions, "ping", "ping an endpoint now", _ping_webhook)
    rotate = add_command(actions, "rotate", "give an endpoint another secret; the old one is good for a day", _rotate)
    attempts = add_command(actions, "attempts", "show the newest attempts to deliver", _attempts)
    replay = add_command(actions, "replay", "send events again", _replay)
    for parser in (change, delete, ping, rotate, attempts, replay):
        parser.add_argument("webhook_id", metavar="ID")
    change.add_argument("--address", metavar="ADDRESS", help="another address; it is pinged first")
    for parser in (new, change):
        parser.add_argument("--types", metavar="TYPES", help="only these, with commas between them; all: every one")
        parser.add_argument("--bots", metavar="IDS", help="only these bots, with commas between them; all: every one")
    switch = change.add_mutually_exclusive_group()
    switch.add_argument("--on", dest="active", action="store_true", default=None, help="switch it on, after a ping")
    switch.add_argument("--off", dest="active", action="store_false", default=None, help="switch it off")
    rotate.add_argument("--secret", default="", help="whsec_…; without it one is made")
    attempts.add_argument("--limit", type=row_count, default=20, help="how many (default: 20)")
    replay.add_argument("--event", metavar="ID", help="this event alone")
    replay.add_argument("--type", choices=tuple(EVENT_TYPES), help="only events of this type")
    for name, text in (("--since", "only since"), ("--until", "only before")):
        replay.add_argument(name, metavar="TIME", help=f"{text}: 2026-03-02T08:00:00Z, 2026-03-02, 90m, 2h, 3d")
    for parser in (new, listed, change, delete, ping, rotate, attempts, replay):
        _add_server(parser)


def _new_webhook(asked: argparse.Namespace) -> int:
    return hooks.add_endpoint(
        _call(asked), asked.address, types=_parts(asked.types), bots=_parts(asked.bots), secret=asked.secret
    )


def _list_webhooks(asked: argparse.Namespace) -> int:
    return hooks.list_endpoints(_call(asked))


def _change_webhook(asked: argparse.Namespace) -> int:
    return hooks.change_endpoint(
        _call(asked),
        asked.webhook_id,
        hooks.AskedChange(
            address=asked.address, types=_parts(asked.types), bots=_parts(asked.bots), active=asked.active
        ),
    )


def _delete_webhook(asked: argparse.Namespace) -> int:
    return hooks.remove_endpoint(_call(asked), asked.webhook_id)


def _ping_webhook(asked: argparse.Namespace) -> int:
    return hooks.ping_endpoint(_call(asked), asked.webhook_id)


def _rotate(asked: argparse.Namespace) -> int:
    return hooks.rotate_endpoint(_call(asked), asked.webhook_id, asked.secret)


def _attempts(asked: argparse.Namespace) -> int:
    return hooks.show_attempts(_call(asked), asked.webhook_id, asked.limit)


def _replay(asked: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    filters = hooks.ReplayFilters(
        event=asked.event,
        type=asked.type,
        since=_since(asked.since, now),
        until=_since(asked.until, now, "--until"),
    )
    return hooks.send_again(_call(asked), asked.webhook_id, filters)


def _parts(text: str | None) -> tuple[str, ...] | None:
    """Return what stands between the commas; nothing for "all", None where the option was not typed."""
    if text is None:
        return None
    return () if text == "all" else tuple(part for one in text.split(",") if (part := one.strip()))


def _add_retry_options(retry: argparse.ArgumentParser) -> None:
    retry.add_argument("conversation_id", metavar="ID", nargs="?", help="one dead letter")
    retry.add_argument("--all", action="store_true", help="all dead letters, or those that the next options leave")
    retry.add_argument("--reason", metavar="TEXT", help="only those whose last error holds this text")
    retry.add_argument(
        "--since", metavar="TIME", help="only those buried since: 2026-03-02T08:00:00Z, 2026-03-02, 90m, 2h, 3d"
    )
    retry.add_argument("--user", metavar="ID", help="only those of this user")
    retry.add_argument("--bot", metavar="ID", help="only those of this bot")
    retry.add_argument("--rate", type=float, metavar="N", help="at most so many a second")
    retry.add_argument("--dry-run", action="store_true", help="count them, and change nothing")


def _add_import_options(imported: argparse.ArgumentParser) -> None:
    imported.add_argument(
        "files", nargs="*", metavar="FILE", help="JSON Lines, also .gz and .zst; - is the standard input"
    )
    imported.add_argument(
        "--relationships",
        metavar="FILE",
        help="totals by user and bot, added to the relationships in the database of these settings",
    )
    imported.add_argument(
        "--id", default="cutover", help="each total is added once under this id (default: %(default)s)"
    )
    imported.add_argument(
        "--tenant", default="default", metavar="NAME", help="whose relationships they are (default: %(default)s)"
    )
    imported.add_argument("--rate", type=float, metavar="N", help="at most so many conversations a second")
    imported.add_argument("--dry-run", action="store_true", help="show what would be refused, and send nothing")
    imported.add_argument(
        "--state",
        type=Path,
        default=Path("convo-import.json"),
        metavar="FILE",
        help="where it is noted what is done (default: %(default)s)",
    )


def _add_audit_options(audit_log: argparse.ArgumentParser) -> None:
    audit_log.add_argument("--action", choices=tuple(AUDIT_ACTIONS), help="only this action")
    audit_log.add_argument("--key", metavar="ID", help="only what was done with this key")
    audit_log.add_argument("--conversation", metavar="ID", help="only what was done to this conversation")
    audit_log.add_argument("--user", metavar="ID", help="only what was done to conversations of this user")
    audit_log.add_argument("--since", metavar="TIME", help="only since: 2026-03-02T08:00:00Z, 2026-03-02, 90m, 2h, 3d")
    audit_log.add_argument("--before", type=row_number, metavar="NUMBER", help="only rows of a smaller number")
    audit_log.add_argument("--limit", type=row_count, default=50, help="how many rows (default: 50)")


def _call(asked: argparse.Namespace) -> terminal.ServerCall:
    url, key = config.client_address(url=asked.url or "", file=asked.config, arguments=arguments_of(asked))
    return terminal.ServerCall(url=url, key=key, as_json=asked.json)


def _filters(asked: argparse.Namespace) -> terminal.Filters:
    return terminal.Filters(
        user_id=asked.user,
        user_prefix=getattr(asked, "user_prefix", None),
        bot_id=asked.bot,
        state=getattr(asked, "state", None),
    )


def _show(asked: argparse.Namespace) -> int:
    return terminal.show(_call(asked), asked.conversation_id)


def _explain(asked: argparse.Namespace) -> int:
    return terminal.show_explanation(_call(asked), asked.conversation_id)


def _user(asked: argparse.Namespace) -> int:
    return terminal.show_user(_call(asked), asked.user_id, asked.limit)


def _retry(asked: argparse.Namespace) -> int:
    narrowing = [name for name in ("reason", "since", "user", "bot", "rate") if getattr(asked, name) is not None]
    narrowing += ["dry-run"] if asked.dry_run else []
    if asked.all == (asked.conversation_id is not None):
        raise Refused("name one dead letter, or give --all: `convo retry ID`, `convo retry --all --dry-run`")
    if not asked.all:
        if narrowing:
            raise Refused(f"--{narrowing[0]} narrows --all; to retry one dead letter give its id alone")
        return terminal.retry(_call(asked), asked.conversation_id)
    if asked.rate is not None and not 0 < asked.rate < math.inf:
        raise Refused(f"--rate {asked.rate:g}: a number of dead letters a second above 0, e.g. 5")
    which = terminal.DeadLetters(
        reason=asked.reason, since=_since(asked.since, datetime.now(UTC)), user_id=asked.user, bot_id=asked.bot
    )
    return terminal.retry_many(_call(asked), which, per_second=asked.rate or 0.0, dry_run=asked.dry_run)


_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _since(text: str | None, now: datetime, option: str = "--since") -> str | None:
    """Return the time that an option names, in RFC 3339."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            at = now - timedelta(seconds=int(ago[1]) * _UNIT_SECONDS[ago[2]])
        else:
            at = instant(text if ":" in text else f"{text}T00:00:00Z")
    except (ValueError, OverflowError):
        raise Refused(
            f"{option} {text}: a time such as 2026-03-02T08:00:00Z or 2026-03-02, or 90m, 2h, 3d ago"
        ) from None
    return at.isoformat().replace("+00:00", "Z")


def _import(asked: argparse.Namespace) -> int:
    if asked.rate is not None and not 0 < asked.rate < math.inf:
        raise Refused(f"--rate {asked.rate:g}: a number of conversations a second above 0, e.g. 100")
    if bool(asked.files) == (asked.relationships is not None):
        raise Refused("name the files of conversations, or those of totals with --relationships")
    if asked.relationships is not None:
        settings = config.load_settings(asked.config, arguments=arguments_of(asked))
        return importing.import_relationships(
            settings,
            asked.relationships,
            asked.id,
            tenant=asked.tenant,
            dry_run=asked.dry_run,
            as_json=asked.json,
        )
    if asked.dry_run:
        settings = config.read_settings(asked.config, arguments=arguments_of(asked))
        return importing.check_files(settings, asked.files, as_json=asked.json)
    plan = importing.ImportPlan(files=asked.files, state=asked.state, per_second=asked.rate or 0.0)
    return importing.import_files(_call(asked), plan)


def _acknowledge(asked: argparse.Namespace) -> int:
    return terminal.acknowledge(_call(asked), asked.conversation_id)


def _erase(asked: argparse.Namespace) -> int:
    if asked.scrub:
        if asked.kind or asked.dry_run:
            raise Refused(
                "--scrub stands alone: `convo erase --scrub` works on the database, and erases nothing itself"
            )
        return scrubbing.run_scrub(settings_of(asked), ask=not asked.yes, as_json=asked.json)
    if asked.id is None:
        raise Refused("name what is erased: `convo erase conversation ID`, `convo erase user ID`; or give --scrub")
    return erasing.erase(_call(asked), asked.kind, asked.id, dry_run=asked.dry_run, ask=not asked.yes)


def _audit_log(asked: argparse.Namespace) -> int:
    filters = terminal.AuditFilters(
        action=asked.action,
        key_id=asked.key,
        conversation_id=asked.conversation,
        user_id=asked.user,
        since=_since(asked.since, datetime.now(UTC)),
    )
    return terminal.audit_log(_call(asked), filters, asked.limit, asked.before)


def _alerts(asked: argparse.Namespace) -> int:
    if asked.what == "ack":
        if asked.type is None:
            raise Refused("name the type of the alert: `convo alerts ack TYPE`; `convo alerts` lists what lasts")
        return terminal.post_acknowledgement(_call(asked), asked.type.upper(), asked.component, asked.by)
    if asked.type is not None or asked.component is not None or asked.by:
        raise Refused(f"TYPE, --component and --by are for `convo alerts ack`, not for `convo alerts {asked.what}`")
    command = terminal.test_alerts if asked.what == "test" else terminal.alerts
    return command(_call(asked))


def _capacity(asked: argparse.Namespace) -> int:
    return terminal.capacity(_call(asked), target=asked.target, conversations=asked.conversations)


def _list(asked: argparse.Namespace) -> int:
    return terminal.list_conversations(_call(asked), _filters(asked), asked.limit)


def _dead(asked: argparse.Namespace) -> int:
    return terminal.dead(_call(asked), _filters(asked), asked.limit)
