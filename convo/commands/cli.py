"""The command line of ``convo``: parse it, call the function of the command, return the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec import to_builtins

from convo import __version__, config, handbook
from convo.commands import help_topics
from convo.commands.api_commands import add_api_commands
from convo.commands.later import import_later
from convo.commands.options import add_command, add_settings, arguments_of, settings_of
from convo.commands.parsing import Parser
from convo.commands.reruns import add_reruns
from convo.commands.sessions import add_sessions
from convo.commands.upkeep import add_keys, add_upkeep
from convo.errors import ConvoError
from convo.observe import standard_files
from convo.observe.log import open_log

if TYPE_CHECKING:
    from convo import service
    from convo.commands import check, duty, output
    from convo.commands.options import Commands
    from convo.startup import Started
else:
    # What one command needs is imported when that command runs.
    service = import_later("convo.service")
    check = import_later("convo.commands.check")
    duty = import_later("convo.commands.duty")
    output = import_later("convo.commands.output")

_Command = Callable[[argparse.Namespace], int]
SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")
"""Those that ``shtab`` knows."""

_EXAMPLE = """curl -i {url}/v1/conversations/end -H 'Content-Type: application/json' -d '{{
  "conversation_id": "hello-1", "user_id": "user-1", "bot_id": "pika",
  "conversation_log": [
    {{"character": "BOT_RESPONSE_CONVERSATION", "content": "Hello! What did you do today?"}},
    {{"character": "USER_RESPONSE_CONVERSATION", "content": "I have a dog named Rex. Why do dogs bark?"}}]}}'
curl -s '{url}/v1/conversations/hello-1?wait=5'"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, 0 for success."""
    standard_files.hold_standard_files()
    asked = _parser().parse_args(arguments)
    command: _Command = asked.command
    exit_code = 1
    try:
        exit_code = command(asked)
    except* ConvoError as errors:
        for error in _flat(errors):
            standard_files.write_last(f"convo: {error}\n")
    except* KeyboardInterrupt:
        exit_code = 130
    return exit_code


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _flat(error) if isinstance(error, BaseExceptionGroup) else [error]


_VARIABLES = """variables:
  CONVO_URL   the server that show, list, user and the like call, in the place of --url
  CONVO_KEY   the key that they send, where the server wants one
  CONVO_SECTION__KEY   any setting: CONVO_SERVER__PORT=8080"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="convo",
        description="Accepts finished conversations, stores them safely, and analyses them.",
        epilog=_VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"convo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_service(commands)
    add_upkeep(commands)
    add_reruns(commands)
    add_keys(commands)
    add_sessions(commands)
    add_api_commands(commands)
    topics = add_command(commands, "help", "list the topics of the handbook, or print the page of one", _help)
    topics.add_argument("topic", nargs="?", metavar="TOPIC")
    text = "print a script for a shell that completes what is typed"
    completion = commands.add_parser("completion", help=text, description=text)
    completion.set_defaults(command=_complete)
    completion.add_argument("shell", choices=SHELLS)
    completion.epilog = "For bash: convo completion bash > ~/.local/share/bash-completion/completions/convo"
    return parser


def _complete(asked: argparse.Namespace) -> int:
    import shtab  # noqa: PLC0415  (no other command needs it)

    print(shtab.complete(_parser(), asked.shell))
    return 0


def _help(asked: argparse.Namespace) -> int:
    if asked.json and (not asked.topic or asked.topic in handbook.topics()):
        output.print_json({topic: handbook.page(topic) for topic in handbook.topics() if asked.topic in (None, topic)})
        return 0
    return help_topics.show_topic(asked.topic) if asked.topic else help_topics.list_topics()


# --- the server


def _add_service(commands: Commands) -> None:
    serve = add_command(commands, "serve", "serve until SIGTERM", _serve)
    add_settings(serve)
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", help="TCP port to listen on; 0 picks a free one")
    checks = add_command(commands, "check", "show the ladder of deadlines, and call each dependency once", _check)
    checks.epilog = (
        "Needs no running server, writes nothing and starts nothing. The exit code is 1 when a rung of the ladder is"
        " broken (serve would refuse to start) or a dependency fails, 0 otherwise."
    )
    add_settings(checks)
    oncall = add_command(commands, "oncall", "show who is on call now, and who is next", _oncall)
    oncall.add_argument(
        "--at", metavar="TIME", help="at another time: 2027-03-28T09:00:00, in the rotation's time zone"
    )
    oncall.epilog = (
        "Reads the settings of this machine, and asks no server. The exit code is 1 where nobody is on call."
    )
    add_settings(oncall)


def _serve(asked: argparse.Namespace) -> int:
    settings = settings_of(asked)
    announce = _announce_as_json if asked.json else _announce
    import trio  # noqa: PLC0415  (what asks a server, and `help`, need none of it)

    with open_log(settings.observe), standard_files.open_output() as write:
        trio.run(service.serve, settings, partial(announce, write), strict_exception_groups=True)
    return 0


def _oncall(asked: argparse.Namespace) -> int:
    return duty.show_duty(settings_of(asked).oncall, asked.at, as_json=asked.json)


def _check(asked: argparse.Namespace) -> int:
    # Not load_settings(): the command shows a broken ladder, it does not refuse it.
    return check.run_checks(config.read_settings(asked.config, arguments=arguments_of(asked)), as_json=asked.json)


# Nothing is printed: this is the loop, and a pipe that nobody reads would hold it.
def _announce_as_json(write: standard_files.WriteText, started: Started) -> None:
    # One line: whoever reads it has all of it at once.
    write(msgspec.json.encode(to_builtins(started, enc_hook=str)).decode() + "\n")


def _announce(write: standard_files.WriteText, started: Started) -> None:
    lines = [
        f"convo serves on {started.url}",
        f"  database: {started.database}",
        f"  data:     {started.data_dir}",
        *(f"  warning:  {warning}" for warning in started.warnings),
        f"  docs:     {started.url}/docs\n\nTry:\n{_EXAMPLE.format(url=started.url)}\n",
    ]
    write("\n".join(lines))
