"""``convo serve``, ``show``, ``list``, …: parses the command line, calls, and returns the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from convo import __version__, checkup, config, service, terminal, upkeep
from convo.config import Settings
from convo.errors import ConvoError, Refused
from convo.observe.log import open_log
from convo.store.keys import SCOPES

_Command = Callable[[argparse.Namespace], int]
# What `serve` takes on its command line, and the setting it stands for.
_OVERRIDES = {"host": ("server", "host"), "port": ("server", "port"), "data_dir": ("server", "data_dir")}
_EXAMPLE = """curl -i {url}/v1/conversations/end -H 'Content-Type: application/json' -d '{{
  "conversation_id": "hello-1", "user_id": "user-1", "bot_id": "pika",
  "conversation_log": [
    {{"character": "BOT_RESPONSE_CONVERSATION", "content": "Hello! What did you do today?"}},
    {{"character": "USER_RESPONSE_CONVERSATION", "content": "I have a dog named Rex. Why do dogs bark?"}}]}}'
curl -s '{url}/v1/conversations/hello-1?wait=5'"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when it did its work."""
    asked = _parser().parse_args(arguments)
    command: _Command = asked.command
    exit_code = 1
    try:
        exit_code = command(asked)
    except* ConvoError as errors:
        for error in _flat(errors):
            print(f"convo: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        exit_code = 130
    return exit_code


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _flat(error) if isinstance(error, BaseExceptionGroup) else [error]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convo", description="Takes in finished conversations, keeps them safe, finds out what was said in them."
    )
    parser.add_argument("--version", action="version", version=f"convo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_service(commands)
    _add_upkeep(commands)
    _add_keys(commands)
    _add_terminal(commands)
    return parser


if TYPE_CHECKING:
    # The type of what add_subparsers() returns has no public name.
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001


def _add(
    commands: _Commands, name: str, text: str, command: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: the repository's config.toml)")
    parser.add_argument("--data-dir", metavar="FOLDER", help="folder of the identity and of the embedded PostgreSQL")


def _settings(asked: argparse.Namespace) -> Settings:
    return config.load(asked.config, arguments=_arguments(asked))


def _arguments(asked: argparse.Namespace) -> dict[tuple[str, str], str]:
    given = {path: getattr(asked, name, None) for name, path in _OVERRIDES.items()}
    return {path: str(value) for path, value in given.items() if value is not None}


# --- the server


def _add_service(commands: _Commands) -> None:
    serve = _add(commands, "serve", "serve until SIGTERM", _serve)
    _add_settings(serve)
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", help="TCP port to listen on; 0 picks a free one")
    check = _add(commands, "check", "show the ladder of deadlines, and ask each dependency once", _check)
    check.epilog = (
        "Needs no running server, writes nothing and starts nothing. The exit code is 1 when a rung of the ladder is"
        " broken (serve would refuse to start) or a dependency fails, 0 otherwise."
    )
    _add_settings(check)


def _serve(asked: argparse.Namespace) -> int:
    settings = _settings(asked)
    with open_log(settings.observe):
        trio.run(service.serve, settings, _announce, strict_exception_groups=True)
    return 0


def _check(asked: argparse.Namespace) -> int:
    # Not load(): a broken ladder is to be seen whole.
    return checkup.check(config.read(asked.config, arguments=_arguments(asked)))


def _announce(started: service.Started) -> None:
    print(f"convo serves on {started.url}")
    print(f"  database: {started.database}")
    print(f"  data:     {started.data_dir}")
    for warning in started.warnings:
        print(f"  warning:  {warning}")
    print(f"  docs:     {started.url}/docs\n\nTry:\n{_EXAMPLE.format(url=started.url)}", flush=True)


# --- upkeep


def _add_upkeep(commands: _Commands) -> None:
    for name, text, command in (
        ("backup", "write a copy of the database to a file, while it is in use", _backup),
        ("restore", "put the database back to what a backup holds; no convo may be serving it", _restore),
    ):
        parser = _add(commands, name, text, command)
        parser.add_argument("file", type=Path, metavar="FILE")
        _add_settings(parser)
    _add_settings(_add(commands, "audit", "compare the database with its books; exit 1 where they differ", _audit))


def _backup(asked: argparse.Namespace) -> int:
    settings = _settings(asked)
    with open_log(settings.observe):
        size = trio.run(upkeep.backup, settings, asked.file)
    print(f"{asked.file}: {size:,} bytes")
    return 0


def _restore(asked: argparse.Namespace) -> int:
    settings = _settings(asked)
    with open_log(settings.observe):
        trio.run(upkeep.restore, settings, asked.file)
    print(f"restored from {asked.file}; start convo again")
    return 0


def _add_keys(commands: _Commands) -> None:
    key = commands.add_parser("key", help="make, list and revoke the keys of clients")
    actions = key.add_subparsers(title="commands", required=True, metavar="COMMAND")
    new = _add(actions, "new", "make a key and print it; it is nowhere to be read again", _new_key)
    new.add_argument("name", metavar="NAME", help="whose key it is")
    new.add_argument("--scopes", default="write,read", help="what it is good for: write, read, admin (write,read)")
    new.add_argument("--requests-per-second", type=float, default=0.0, help="a limit of its own (0: none)")
    _add_settings(_add(actions, "list", "list the keys that are good", _list_keys))
    revoke = _add(actions, "revoke", "let a key be good no longer", _revoke_key)
    revoke.add_argument("key_id", metavar="ID", help="the part between the first two underscores")
    for parser in (new, revoke):
        _add_settings(parser)


def _new_key(asked: argparse.Namespace) -> int:
    asked_for = [scope.strip() for scope in asked.scopes.split(",")]
    scopes = [scope for scope in SCOPES if scope in asked_for]
    if len(scopes) != len(asked_for):
        raise Refused(f"--scopes {asked.scopes!r} holds what is no scope; there are {', '.join(SCOPES)}")
    settings = _settings(asked)
    with open_log(settings.observe):
        key = trio.run(upkeep.new_key, settings, asked.name, scopes, asked.requests_per_second)
    print(key)
    return 0


def _list_keys(asked: argparse.Namespace) -> int:
    settings = _settings(asked)
    with open_log(settings.observe):
        found = trio.run(upkeep.list_keys, settings)
    terminal.show_keys(found)
    return 0


def _revoke_key(asked: argparse.Namespace) -> int:
    settings = _settings(asked)
    with open_log(settings.observe):
        trio.run(upkeep.revoke_key, settings, asked.key_id)
    print(f"{asked.key_id} is revoked; servers refuse it within {settings.auth.refresh_seconds:g} s")
    return 0


def _audit(asked: argparse.Namespace) -> int:
    found = trio.run(upkeep.audit, _settings(asked))
    print("\n".join(found) or "the books balance")
    return 1 if found else 0


# --- a running server's API


def _add_terminal(commands: _Commands) -> None:
    show = _add(commands, "show", "show one conversation and what was found in it", _show)
    retry = _add(commands, "retry", "make a dead letter ready again", _retry)
    explain = _add(commands, "explain", "say why a conversation stands as it does", _explain)
    for parser in (show, explain, retry):
        parser.add_argument("conversation_id", metavar="ID")
    listed = _add(commands, "list", "list conversations, newest first", _list)
    listed.add_argument("--state", choices=("ready", "leased", "done", "dead"))
    dead = _add(commands, "dead", "list dead letters with what they died of", _dead)
    for parser in (listed, dead):
        parser.add_argument("--user", metavar="ID")
        parser.add_argument("--bot", metavar="ID")
        parser.add_argument("--limit", type=int, default=50)
    acknowledge = _add(commands, "acknowledge", "say that a dead letter is reviewed and stays dead", _acknowledge)
    acknowledge.add_argument("conversation_id", metavar="ID")
    alerts = _add(commands, "alerts", "show what is wrong now, and what was lately", _alerts)
    alerts.add_argument("what", nargs="?", choices=("show", "test"), default="show", help="test: tell every sink once")
    for parser in (show, explain, retry, listed, dead, acknowledge, alerts):
        parser.add_argument("--url", help="the server (default: CONVO_URL, else where convo serve would listen)")


def _server(asked: argparse.Namespace) -> tuple[str, str]:
    return config.client_address(url=asked.url or "")


def _filters(asked: argparse.Namespace) -> terminal.Filters:
    return terminal.Filters(user_id=asked.user, bot_id=asked.bot, state=getattr(asked, "state", None))


def _show(asked: argparse.Namespace) -> int:
    return terminal.show(*_server(asked), asked.conversation_id)


def _explain(asked: argparse.Namespace) -> int:
    return terminal.explain(*_server(asked), asked.conversation_id)


def _retry(asked: argparse.Namespace) -> int:
    return terminal.retry(*_server(asked), asked.conversation_id)


def _acknowledge(asked: argparse.Namespace) -> int:
    return terminal.acknowledge(*_server(asked), asked.conversation_id)


def _alerts(asked: argparse.Namespace) -> int:
    command = terminal.test_alerts if asked.what == "test" else terminal.alerts
    return command(*_server(asked))


def _list(asked: argparse.Namespace) -> int:
    return terminal.list_conversations(*_server(asked), _filters(asked), asked.limit)


def _dead(asked: argparse.Namespace) -> int:
    return terminal.dead(*_server(asked), _filters(asked), asked.limit)
