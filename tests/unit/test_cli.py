from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from convo import __version__, checkup, cli, config, service, terminal, upkeep
from convo.config import Settings
from convo.errors import ConfigError, Refused


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVO_URL", raising=False)
    monkeypatch.delenv("CONVO_KEY", raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of every service that was asked for; none is run."""
    asked: list[Settings] = []

    async def serve(settings: Settings, announce: Callable[[service.Started], None]) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(settings)
        started = service.Started(url="http://127.0.0.1:7", database="a database", data_dir=Path("/data"), warnings=())
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

    for name in ("show", "retry", "list_conversations", "dead", "acknowledge", "alerts", "test_alerts"):
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
        (["--port", "many"], "CONVO_SERVER__PORT='many'"),
        (["--port", "70000"], "<= 65535"),
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

    def check(settings: Settings) -> int:
        asked.append(settings)
        return 1

    monkeypatch.setattr(checkup, "check", check)
    file = tmp_path / "other.toml"
    file.write_text("[web]\nrequest_seconds = 11.0\n")
    assert cli.main(["check", "--config", str(file), "--data-dir", "/elsewhere"]) == 1
    (settings,) = asked
    assert (settings.web.request_seconds, settings.server.data_dir) == (11.0, "/elsewhere")


# --- upkeep


def test_backup_and_restore_say_what_they_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[str, str, Path]] = []

    async def backup(settings: Settings, file: Path) -> int:
        await trio.lowlevel.checkpoint()
        asked.append(("backup", settings.server.data_dir, file))
        return 12345

    async def restore(settings: Settings, file: Path) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(("restore", settings.server.data_dir, file))

    monkeypatch.setattr(upkeep, "backup", backup)
    monkeypatch.setattr(upkeep, "restore", restore)
    file = tmp_path / "copy"
    assert cli.main(["backup", str(file), "--data-dir", "/data"]) == 0
    assert capsys.readouterr().out == f"{file}: 12,345 bytes\n"
    assert cli.main(["restore", str(file), "--data-dir", "/data"]) == 0
    assert "start convo again" in capsys.readouterr().out
    assert asked == [("backup", "/data", file), ("restore", "/data", file)]


# --- the terminal

URL = "http://127.0.0.1:30020"


def test_the_terminal_commands_ask_the_server_at_its_usual_place(called: list[tuple[Any, ...]]) -> None:
    nothing = terminal.Filters(user_id=None, bot_id=None, state=None)
    assert cli.main(["show", "c 1/#"]) == 3
    assert cli.main(["retry", "c-1"]) == 3
    assert cli.main(["list"]) == 3
    assert cli.main(["dead"]) == 3
    assert cli.main(["acknowledge", "c-1"]) == 3
    assert cli.main(["alerts"]) == 3
    assert cli.main(["alerts", "test"]) == 3
    assert called == [
        ("show", URL, "", "c 1/#"),
        ("retry", URL, "", "c-1"),
        ("list_conversations", URL, "", nothing, 50),
        ("dead", URL, "", nothing, 50),
        ("acknowledge", URL, "", "c-1"),
        ("alerts", URL, ""),
        ("test_alerts", URL, ""),
    ]


def test_the_terminal_commands_ask_what_they_are_told_where_they_are_told(
    called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVO_URL", "http://there:1")
    monkeypatch.setenv("CONVO_KEY", "a key")
    wanted = terminal.Filters(user_id="u-1", bot_id="b-1", state="dead")
    cli.main(["list", "--state", "dead", "--user", "u-1", "--bot", "b-1", "--limit", "7"])
    cli.main(["dead", "--user", "u-1", "--url", "http://elsewhere:2"])
    assert called == [
        ("list_conversations", "http://there:1", "a key", wanted, 7),
        ("dead", "http://elsewhere:2", "a key", terminal.Filters(user_id="u-1", bot_id=None, state=None), 50),
    ]


def test_the_terminal_commands_ask_where_the_same_settings_let_a_server_listen(
    called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVO_SERVER__PORT", "31020")
    cli.main(["show", "c-1"])
    assert called == [("show", "http://127.0.0.1:31020", "", "c-1")]
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
    assert called == [("show", "http://there:1", "", "c-1")]


def test_the_usual_place_is_the_usual_port() -> None:
    assert config.client_address({})[0] == f"http://{Settings().server.host}:{Settings().server.port}"
