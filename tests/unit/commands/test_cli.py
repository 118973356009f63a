from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import shtab
import trio

from convo import __version__, config, service
from convo.commands import api_commands, check, cli, database, terminal, upkeep
from convo.commands.terminal import ServerCall
from convo.errors import ConfigError, Refused
from convo.retention_report import DueKind
from convo.settings import Settings
from convo.startup import Started


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # No server listens for the folder of the repository's own file.
    monkeypatch.setenv("CONVO_SERVER__DATA_DIR", str(tmp_path / "nobody"))
    monkeypatch.delenv("CONVO_URL", raising=False)
    monkeypatch.delenv("CONVO_KEY", raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of every service that was asked for; none is run."""
    asked: list[Settings] = []

    async def serve(settings: Settings, announce: Callable[[Started], None]) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(settings)
        started = Started(url="http://127.0.0.1:7", database="a database", data_dir=Path("/data"), warnings=())
        announce(started)

    @contextmanager
    def no_log(_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(service, "serve", serve)
    monkeypatch.setattr(cli, "open_log", no_log)
    return asked


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every call of a terminal command, with its name first."""
    calls: list[tuple[Any, ...]] = []

    def record(name: str) -> Callable[..., int]:
        def call(*given: Any) -> int:
            calls.append((name, *given))
            return 3

        return call

    for name in (
        "show",
        "show_user",
        "retry",
        "retry_many",
        "list_conversations",
        "dead",
        "acknowledge",
        "audit_log",
        "alerts",
        "test_alerts",
        "post_acknowledgement",
    ):
        monkeypatch.setattr(terminal, name, record(name))
    return calls


# --- serve


def test_serve_says_where_it_serves_and_what_to_try(served: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("convo serves on http://127.0.0.1:7\n")
    for line in ("database: a database", "data:     /data", "http://127.0.0.1:7/docs"):
        assert line in told
    assert "curl -i http://127.0.0.1:7/v1/conversations/end" in told
    assert '"conversation_id": "hello-1"' in told


def test_the_command_line_lies_over_the_environment_and_that_over_the_file(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "other.toml"
    file.write_text('[server]\nhost = "10.0.0.1"\nport = 1\ndata_dir = "here"\n[jobs]\nworkers = 3\n')
    monkeypatch.setenv("CONVO_SERVER__PORT", "2")
    monkeypatch.setenv("CONVO_SERVER__HOST", "10.0.0.2")
    assert cli.main(["serve", "--config", str(file), "--host", "::1", "--data-dir", "/elsewhere"]) == 0
    (settings,) = served
    assert (settings.server.host, settings.server.port, settings.server.data_dir) == ("::1", 2, "/elsewhere")
    assert settings.jobs.workers == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "many"], "--port='many': must be a whole number from 0 to 65535, e.g. 30020"),
        (["--port", "70000"], "--port='70000': must be a whole number from 0 to 65535"),
        (["--config", "/no/such/file.toml"], "/no/such/file.toml: there is no such file"),
    ],
)
def test_settings_that_cannot_be_used_are_one_clear_line(
    served: list[Settings], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.main(["serve", *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("convo: ")
    assert said in told
    assert "Traceback" not in told
    assert served == []


def test_every_error_of_a_group_is_told_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(asked: object) -> int:
        raise ExceptionGroup("", [Refused("the port is taken"), ExceptionGroup("", [ConfigError("the key is wrong")])])

    monkeypatch.setattr(cli, "_serve", fail)
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == "convo: the port is taken\nconvo: the key is wrong\n"


def test_a_bug_is_no_clear_line_but_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(asked: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_serve", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["serve"])


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(asked: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_serve", fail)
    assert cli.main(["serve"]) == 130


def test_a_broken_ladder_does_not_serve_and_names_every_fault(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVO_DATABASE__ACQUIRE_SECONDS", "30")
    monkeypatch.setenv("CONVO_JOBS__HEARTBEAT_SECONDS", "20")
    assert cli.main(["serve"]) == 1
    told = capsys.readouterr().err
    assert "64 s is not below web.request_seconds = 8 s" in told
    assert "jobs.heartbeat_seconds x 3 = 60 s is above jobs.lease_seconds = 30 s" in told
    assert served == []


# --- check


def test_check_is_asked_with_the_settings_of_the_file_also_when_they_are_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Settings] = []

    def record(settings: Settings, *, as_json: bool) -> int:
        assert not as_json
        asked.append(settings)
        return 1

    monkeypatch.setattr(check, "run_checks", record)
    file = tmp_path / "other.toml"
    file.write_text("[web]\nrequest_seconds = 11.0\n")
    assert cli.main(["check", "--config", str(file), "--data-dir", "/elsewhere"]) == 1
    (settings,) = asked
    assert (settings.web.request_seconds, settings.server.data_dir) == (11.0, "/elsewhere")


# --- upkeep

REPLACEMENT = database.Replacement(
    database="embedded PostgreSQL 18.6 in /data/postgres",
    contents="43 conversations, the newest received at 2026-11-29 10:49:16 UTC; 46 MiB",
    backup="copy: 25,620 bytes, made at 2026-11-29 10:50:00 UTC",
)


def test_backup_and_restore_say_what_they_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[str, str, Path]] = []

    async def backup(settings: Settings, file: Path, *, replace: bool) -> int:
        await trio.lowlevel.checkpoint()
        asked.append((f"backup {replace}", settings.server.data_dir, file))
        return 12345

    async def restore(settings: Settings, file: Path, confirm: Callable[[database.Replacement], None]) -> None:
        await trio.lowlevel.checkpoint()
        confirm(REPLACEMENT)
        asked.append(("restore", settings.server.data_dir, file))

    monkeypatch.setattr(database, "backup", backup)
    monkeypatch.setattr(database, "restore", restore)
    file = tmp_path / "copy"
    assert cli.main(["backup", str(file), "--data-dir", "/data"]) == 0
    assert capsys.readouterr().out == f"{file}: 12,345 bytes\n"
    assert cli.main(["backup", str(file), "--data-dir", "/data", "--force"]) == 0
    capsys.readouterr()
    assert cli.main(["restore", str(file), "--data-dir", "/data", "--yes"]) == 0
    assert capsys.readouterr().out == f"restored from {file}; start convo again\n"
    assert asked == [("backup False", "/data", file), ("backup True", "/data", file), ("restore", "/data", file)]


@pytest.mark.parametrize(
    ("terminal", "answer", "code"),
    [(True, "y\n", 0), (True, "Yes\n", 0), (True, "\n", 1), (True, "n\n", 1), (True, "", 1), (False, "y\n", 1)],
)
def test_a_restore_shows_what_it_replaces_and_goes_on_only_after_a_yes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,  # noqa: FBT001
    answer: str,
    code: int,
) -> None:
    restored: list[Path] = []

    async def restore(_settings: Settings, file: Path, confirm: Callable[[database.Replacement], None]) -> None:
        await trio.lowlevel.checkpoint()
        confirm(REPLACEMENT)
        restored.append(file)

    class Input(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(database, "restore", restore)
    monkeypatch.setattr(sys, "stdin", Input(answer))
    assert cli.main(["restore", "copy"]) == code
    shown = capsys.readouterr()
    assert len(restored) == 1 - code
    assert all(text in shown.err for text in msgspec.structs.astuple(REPLACEMENT))
    assert ("nothing was changed" in shown.err) is bool(code)
    assert ("--yes" in shown.err) is not terminal


# --- the terminal

URL = "http://127.0.0.1:30020"


def test_the_terminal_commands_ask_the_server_at_its_usual_place(called: list[tuple[Any, ...]]) -> None:
    nothing = terminal.Filters(user_id=None, bot_id=None, state=None)
    usual = ServerCall(url=URL)
    assert cli.main(["show", "c 1/#"]) == 3
    assert cli.main(["retry", "c-1"]) == 3
    assert cli.main(["list"]) == 3
    assert cli.main(["dead"]) == 3
    assert cli.main(["acknowledge", "c-1"]) == 3
    assert cli.main(["alerts"]) == 3
    assert cli.main(["alerts", "test"]) == 3
    assert called == [
        ("show", usual, "c 1/#"),
        ("retry", usual, "c-1"),
        ("list_conversations", usual, nothing, 50),
        ("dead", usual, nothing, 50),
        ("acknowledge", usual, "c-1"),
        ("alerts", usual),
        ("test_alerts", usual),
    ]


def test_an_alert_is_acknowledged_by_its_type_of_one_component_or_of_all(called: list[tuple[Any, ...]]) -> None:
    usual = ServerCall(url=URL)
    assert cli.main(["alerts", "ack", "LLM_UNAVAILABLE"]) == 3
    assert cli.main(["alerts", "ack", "dead_letter", "--component", "jobs", "--by", "anna"]) == 3
    assert called == [
        ("post_acknowledgement", usual, "LLM_UNAVAILABLE", None, ""),
        ("post_acknowledgement", usual, "DEAD_LETTER", "jobs", "anna"),
    ]


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["ack"], "name the type of the alert: `convo alerts ack TYPE`"),
        (["show", "DEAD_LETTER"], "TYPE, --component and --by are for `convo alerts ack`"),
        (["--by", "anna"], "not for `convo alerts show`"),
    ],
)
def test_what_only_ack_takes_is_refused_elsewhere(
    typed: list[str], complaint: str, called: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["alerts", *typed]) == 1
    assert complaint in capsys.readouterr().err
    assert called == []


def test_oncall_reads_the_settings_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["oncall"]) == 1
    assert "nobody is on call" in capsys.readouterr().out
    monkeypatch.setenv("CONVO_ONCALL__PEOPLE__ANNA__SLACK_URL", "https://slack.example/x")
    assert cli.main(["oncall", "--at", "2027-03-28T09:00", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["now"]["person"] == "anna"


def test_the_terminal_commands_ask_what_they_are_told_where_they_are_told(
    called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVO_URL", "http://there:1")
    monkeypatch.setenv("CONVO_KEY", "a key")
    wanted = terminal.Filters(user_id="u-1", bot_id="b-1", state="parked")
    cli.main(["list", "--state", "parked", "--user", "u-1", "--bot", "b-1", "--limit", "7"])
    cli.main(["dead", "--user", "u-1", "--url", "http://elsewhere:2"])
    assert called == [
        ("list_conversations", ServerCall(url="http://there:1", key="a key"), wanted, 7),
        ("dead", ServerCall(url="http://elsewhere:2", key="a key"), terminal.Filters(user_id="u-1"), 50),
    ]


def test_the_audit_log_is_asked_for_with_its_filters(
    called: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ServerCall(url=URL)
    every = ["--key", "k", "--conversation", "c-1", "--user", "u-1", "--since", "2026-03-02", "--action", "retry"]
    assert cli.main(["audit-log"]) == 3
    assert cli.main(["audit-log", *every, "--before", "12345678901", "--limit", "7"]) == 3
    wanted = terminal.AuditFilters(
        action="retry", key_id="k", conversation_id="c-1", user_id="u-1", since="2026-03-02T00:00:00Z"
    )
    assert called == [
        ("audit_log", usual, terminal.AuditFilters(), 50, None),
        ("audit_log", usual, wanted, 7, 12345678901),
    ]
    with pytest.raises(SystemExit):
        cli.main(["audit-log", "--before", "0"])
    assert "'0': must be the number of a row, e.g. 4711" in capsys.readouterr().err


def test_the_terminal_commands_ask_where_the_same_settings_let_a_server_listen(
    called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVO_SERVER__PORT", "31020")
    cli.main(["show", "c-1"])
    assert called == [("show", ServerCall(url="http://127.0.0.1:31020"), "c-1")]
    monkeypatch.setenv("CONVO_SERVER__PORT", "abc")
    assert cli.main(["show", "c-1"]) == 1
    assert capsys.readouterr().err.startswith("convo: CONVO_SERVER__PORT='abc'")
    # A server that is named needs no settings of ours.
    assert cli.main(["show", "c-1", "--url", "http://there:1"]) == 3


# --- what it does not understand


@pytest.mark.parametrize(
    "arguments",
    [[], ["nothing"], ["show"], ["list", "--state", "gone"], ["list", "--limit", "x"], ["serve", "now"], ["backup"]],
)
def test_what_is_not_understood_is_exit_code_2_with_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: convo" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"convo {__version__}\n")


def test_without_arguments_of_its_own_it_reads_the_command_line(
    called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["convo", "show", "c-1", "--url", "http://there:1"])
    assert cli.main() == 3
    assert called == [("show", ServerCall(url="http://there:1"), "c-1")]


def test_the_usual_place_is_the_usual_port() -> None:
    assert config.client_address({})[0] == f"http://{Settings().server.host}:{Settings().server.port}"


def test_a_server_without_a_scheme_is_called_by_http(called: list[tuple[Any, ...]]) -> None:
    cli.main(["show", "c-1", "--url", "there:1"])
    assert called == [("show", ServerCall(url="http://there:1"), "c-1")]


def test_the_server_of_the_data_folder_is_called_where_it_listens(
    called: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    (tmp_path / config.ADDRESS_FILE).write_text("http://127.0.0.1:4711\n")
    cli.main(["user", "u-1", "--data-dir", str(tmp_path)])
    # An empty file, as a full disk leaves it, is none.
    (tmp_path / config.ADDRESS_FILE).write_text("")
    cli.main(["user", "u-1", "--data-dir", str(tmp_path), "--json"])
    assert called == [
        ("show_user", ServerCall(url="http://127.0.0.1:4711"), "u-1", 50),
        ("show_user", ServerCall(url=URL, as_json=True), "u-1", 50),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], "there is no 'lst' here; did you mean list?"),
        (["list", "--state", "ded"], "--state: there is no 'ded' here; did you mean dead?"),
        (["serve", "--prot", "80"], "convo serve: error: there is no option --prot; did you mean --port?"),
        (["serve", "--prot=80"], "there is no option --prot; did you mean --port?"),
        (["key", "new", "a", "--scope=read", "--dta-dir", "x"], "convo key new: error: there is no option --dta-dir"),
        (["show", "c-1", "--xyzzy"], "there is no option --xyzzy; choose from --help, --json, --url"),
        (["show", "c-1", "c-2"], "'c-2' is one word too many"),
        (["list", "--limit", "0"], "--limit: '0': must be a whole number from 1, e.g. 50"),
        (["list", "--limit", "-5"], "--limit: '-5': must be a whole number from 1"),
        (["user", "u", "--limit", "ten"], "--limit: 'ten': must be a whole number from 1"),
        (["xyz"], "there is no 'xyz' here; choose from"),
    ],
)
def test_a_word_that_is_not_known_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert said in capsys.readouterr().err


def test_the_variables_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    assert "CONVO_URL" in told
    assert "CONVO_KEY" in told


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Find every command, those of ``key`` too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from list(commands(inner)) or [(name, inner)]


def test_every_command_but_the_script_for_a_shell_can_print_json() -> None:
    for name, parser in commands(cli._parser()):
        assert ("--json" in parser.format_usage()) == (name != "completion"), name


def test_a_shell_completes_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(cli.SHELLS) == shtab.SUPPORTED_SHELLS
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for name, _ in commands(cli._parser()):
        assert name in script


def test_serve_prints_json_on_one_line(served: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"url": "http://127.0.0.1:7", "database": "a database", "data_dir": "/data", "warnings": []}


def test_the_audit_writes_its_log_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[object] = []

    @contextmanager
    def note(observe: object) -> Iterator[None]:
        opened.append(observe)
        yield

    async def audit(_settings: Settings) -> list[str]:
        await trio.lowlevel.checkpoint()
        assert opened
        return []

    monkeypatch.setattr(upkeep, "open_log", note)
    monkeypatch.setattr(database, "audit", audit)
    assert cli.main(["audit"]) == 0
    assert capsys.readouterr().out == "the tables agree with the ledger\n"


def test_retention_is_shown_as_a_table_or_as_json_and_counted_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted: list[bool] = []

    async def retention_due(_settings: Settings, *, count: bool) -> list[DueKind]:
        await trio.lowlevel.checkpoint()
        counted.append(count)
        over = 12 if count else None
        return [DueKind(kind="logs", days=7, days_of_bots={}, oldest_at=None, goes_at=None, over=over)]

    monkeypatch.setattr(database, "retention_due", retention_due)
    assert cli.main(["retention"]) == 0
    assert "12" not in capsys.readouterr().out
    assert cli.main(["retention", "--dry-run"]) == 0
    assert "12" in capsys.readouterr().out
    assert cli.main(["retention", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "kind": "logs",
            "days": 7,
            "days_of_bots": {},
            "oldest_at": None,
            "goes_at": None,
            "over": 12,
            "days_of_tenants": {},
        }
    ]
    assert counted == [False, True, True]


@pytest.mark.parametrize("on", ["true", "false"])
@pytest.mark.parametrize("asked", [["new", "shop"], ["list"], ["rotate", "k1"], ["revoke", "k1"]])
def test_a_key_that_has_no_effect_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[str], on: str
) -> None:
    async def work(*_arguments: object, **_named: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return []

    for name in ("new_key", "list_keys", "rotate_key", "revoke_key"):
        monkeypatch.setattr(database, name, work)
    monkeypatch.setenv("CONVO_AUTH__KEYS", on)
    assert cli.main(["key", *asked, "--json"]) == 0
    told = capsys.readouterr()
    assert ("auth.keys is off" in told.err and "CONVO_AUTH__KEYS=true" in told.err) == (on == "false")
    json.loads(told.out)


# --- many dead letters


def test_retry_of_all_takes_filters_a_rate_and_a_dry_run(
    monkeypatch: pytest.MonkeyPatch, called: list[tuple[Any, ...]]
) -> None:
    given: list[tuple[terminal.DeadLetters, float, bool]] = []

    def retry_many(_call: ServerCall, which: terminal.DeadLetters, *, per_second: float, dry_run: bool) -> int:
        given.append((which, per_second, dry_run))
        return 0

    monkeypatch.setattr(terminal, "retry_many", retry_many)
    assert cli.main(["retry", "--all"]) == 0
    narrow = ["--reason", "401", "--since", "2026-03-02", "--bot", "b", "--user", "u", "--rate", "2.5", "--dry-run"]
    assert cli.main(["retry", "--all", *narrow]) == 0
    which = terminal.DeadLetters(reason="401", since="2026-03-02T00:00:00Z", user_id="u", bot_id="b")
    assert given == [(terminal.DeadLetters(), 0.0, False), (which, 2.5, True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one dead letter, or give --all"),
        (["c-1", "--all"], "name one dead letter, or give --all"),
        (["c-1", "--reason", "x"], "--reason narrows --all"),
        (["c-1", "--dry-run"], "--dry-run narrows --all"),
        (["--all", "--rate", "0"], "--rate 0: a number"),
        (["--all", "--rate", "inf"], "--rate inf: a number"),
        (["--all", "--rate", "nan"], "--rate nan: a number"),
        (["--all", "--since", "yesterday"], "--since yesterday: a time such as"),
        (["--all", "--since", "999999d"], "--since 999999d: a time such as"),
    ],
)
def test_what_could_mean_other_dead_letters_is_refused(
    called: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main(["retry", *arguments]) == 1
    assert words in capsys.readouterr().err
    assert called == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("90m", "2026-03-02T06:30:00Z"),
        ("2h", "2026-03-02T06:00:00Z"),
        ("3d", "2026-02-27T08:00:00Z"),
        ("30s", "2026-03-02T07:59:30Z"),
        ("2026-03-02", "2026-03-02T00:00:00Z"),
        ("2026-03-02T09:00:00+01:00", "2026-03-02T08:00:00Z"),
    ],
)
def test_since_is_a_time_or_how_long_ago(text: str, found: str) -> None:
    assert api_commands._since(text, datetime(2026, 3, 2, 8, tzinfo=UTC)) == found
