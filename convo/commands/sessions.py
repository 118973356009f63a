"""The commands of ``session``: list the sessions of browsers, and end one. They work on the database itself."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from convo.commands.later import import_later
from convo.commands.options import add_command, add_settings, settings_of
from convo.observe.log import open_log

if TYPE_CHECKING:
    from convo.commands import database, output, session_drawing
    from convo.commands.options import Commands
    from convo.settings import Settings
    from convo.store.page_sessions import PageSession
else:
    # Not before a command runs that needs them.
    database = import_later("convo.commands.database")
    output = import_later("convo.commands.output")
    session_drawing = import_later("convo.commands.session_drawing")


T = TypeVar("T")


def add_sessions(commands: Commands) -> None:
    """Add the commands of ``session``."""
    session = commands.add_parser("session", help="list and end the sessions of browsers that are signed in")
    actions = session.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listed = add_command(actions, "list", "list the sessions that are valid", _list_sessions)
    revoke = add_command(actions, "revoke", "end a session: its browser has to sign in again", _revoke_session)
    revoke.add_argument("session_id", metavar="ID", help="as `convo session list` shows it")
    for parser in (listed, revoke):
        add_settings(parser)


def _run(settings: Settings, command: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    import trio  # noqa: PLC0415  (not before a command runs that needs it)

    with open_log(settings.observe):
        return trio.run(command, settings, *arguments)


def _list_sessions(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    found = _run(settings, database.list_sessions)
    if asked.json:
        output.print_json(list(map(_shown, found)))
    else:
        session_drawing.show_sessions(found)
    return 0


def _shown(session: PageSession) -> dict[str, Any]:
    key = session.key
    whose = {"key_id": key.key_id, "key": key.name, "tenant": key.reach.tenant.name, "bots": key.reach.bots}
    times = {"made_at": session.made_at, "expires_at": session.expires_at}
    return {"session_id": session.session_id, **whose, **times}


def _revoke_session(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    _run(settings, database.revoke_session, asked.session_id)
    seconds = settings.auth.refresh_seconds
    if asked.json:
        output.print_json({"session_id": asked.session_id, "refused_within_seconds": seconds})
    else:
        print(f"{asked.session_id} is ended; servers refuse it within {seconds:g} s")
    return 0
