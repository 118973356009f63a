from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trio

from convo.commands import cli
from tests.support.faulty_server import serving
from tests.support.running import Running, ended


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(convo: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVO_URL", convo.url)


def lines(*bodies: object) -> str:
    return "".join(f"{json.dumps(body)}\n" for body in bodies)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object], str]:
    code = cli.main(["import", "--json", *arguments])
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


def test_files_are_imported_once_and_each_line_that_is_refused_is_named(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [ended(f"import-{number}", user_id="import-user") for number in range(1200)]
    (tmp_path / "a.jsonl").write_text(lines(*many))
    (tmp_path / "b.jsonl").write_text("\n" + lines({"conversation_id": "x"}, ended("import-b")) + "{\n")

    code, report, said = run(capsys, "a.jsonl", "b.jsonl")
    assert (code, report["accepted"], report["replayed"], report["refused"]) == (1, 1201, 0, 2)
    assert said.splitlines()[0] == ("b.jsonl:2: 422 invalid: Object missing required field `user_id` at $.user_id")
    assert said.splitlines()[1].startswith("b.jsonl:4: 400 bad_request")
    assert client.get("/v1/conversations/import-1199").json()["user_id"] == "import-user"

    # The same command again has nothing left to do; without its state, all are replays.
    assert run(capsys, "a.jsonl", "b.jsonl")[1] == {**report, "accepted": 0, "refused": 0, "lines": []}
    Path("convo-import.json").unlink()
    assert run(capsys, "a.jsonl")[1]["replayed"] == 1200


def test_it_goes_on_where_it_ended_and_at_its_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.jsonl").write_text(lines(*(ended(f"more-{number}") for number in range(30))))
    state = tmp_path / "state.json"
    assert run(capsys, "c.jsonl", "--state", str(state), "--rate", "20")[1]["accepted"] == 30
    noted = json.loads(state.read_text())
    ((server, files),) = noted.items()
    ((name, done),) = files.items()
    assert (name, done["lines"]) == (str(tmp_path / "c.jsonl"), 30)
    state.write_text(json.dumps({server: {name: {**done, "lines": 20}}}))
    assert run(capsys, "c.jsonl", "--state", str(state))[1]["replayed"] == 10
    # Another file of that name is read from its beginning.
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(lines(ended("more-30")))
    again = run(capsys, "c.jsonl", "--state", str(state))[1]
    assert (again["accepted"], again["replayed"]) == (1, 30)
    state.write_text("{")
    assert cli.main(["import", "c.jsonl", "--state", str(state)]) == 1
    assert "is no state of an import" in capsys.readouterr().err


def test_without_a_server_nothing_is_noted_and_the_command_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.jsonl").write_text(lines(ended("nowhere")))
    monkeypatch.setenv("CONVO_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("convo.commands.importing.IMPORT_CALL_SECONDS", 0.3)
    code, report, said = run(capsys, "d.jsonl")
    assert (code, report["accepted"]) == (3, 0)
    assert "the same command goes on where this one ended" in said
    assert not Path("convo-import.json").exists()


async def test_what_the_server_cannot_take_in_time_stops_the_import_and_is_not_noted_as_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.commands.importing.IMPORT_CALL_SECONDS", 0.5)
    (tmp_path / "f.jsonl").write_text(lines(ended("late-1"), ended("late-2")))
    async with serving() as server:
        server.refused_lines = {"late-2"}
        monkeypatch.setenv("CONVO_URL", server.url)
        code, report, said = await trio.to_thread.run_sync(run, capsys, "f.jsonl")
    assert (code, report["refused"]) == (1, 0)
    assert "503 deadline_exceeded" in said
    assert "the same command goes on where this one ended" in said
    assert not Path("convo-import.json").exists()


def test_a_dry_run_says_what_would_be_refused_and_sends_nothing(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = [{"character": "USER", "content": "Hello"}]
    row = {"conversation_id": "dry-row", "user_id": "u", "bot_id": "b", "conversation_log": json.dumps(log)}
    bad = [ended("dry-1", log=[{"character": "NOBODY KNOWN", "x": 1}]), ended("dry-2", user_id="convo:canary")]
    (tmp_path / "e.jsonl").write_text(lines(row, *bad, ended("dry-3"), ended("dry-3", user_id="other")) + "nothing\n")

    code, report, said = run(capsys, "e.jsonl", "--dry-run")
    assert (code, report["dry_run"], report["accepted"], report["refused"]) == (1, True, 2, 4)
    assert [line.split(" ", 2)[:2] for line in said.splitlines()] == [
        ["e.jsonl:2:", "422"],
        ["e.jsonl:3:", "422"],
        ["e.jsonl:5:", "409"],
        ["e.jsonl:6:", "400"],
    ]
    assert client.get("/v1/conversations/dry-3").status_code == 404
    # What it would take is taken.
    assert run(capsys, "e.jsonl")[1]["accepted"] == 2
    assert client.get("/v1/conversations/dry-row").json()["turns"] == 1


def test_a_wrong_rate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "x.jsonl", "--rate", "0"]) == 1
    assert "--rate 0: a number of conversations a second above 0" in capsys.readouterr().err
    assert cli.main(["import", "absent.jsonl"]) == 1
    assert "absent.jsonl cannot be read: No such file or directory" in capsys.readouterr().err


# --- totals


@pytest.fixture
def of_the_server(convo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = dict(
        pair.split(b"=", 1) for pair in Path(f"/proc/{convo.pid}/environ").read_bytes().split(b"\0") if b"=" in pair
    )
    monkeypatch.setenv("CONVO_DATABASE__URL", environment[b"CONVO_DATABASE__URL"].decode())


@pytest.mark.usefixtures("of_the_server")
def test_totals_are_added_once_beside_a_server_that_serves(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = [{"user_id": f"old-{number}", "bot_id": "pika", "score": 600} for number in range(450)]
    (tmp_path / "t.jsonl").write_text(lines(*totals))

    assert run(capsys, "--relationships", "t.jsonl", "--dry-run")[1] == {
        "dry_run": True,
        "totals": 450,
        "added": 0,
        "before": 0,
        "erased": 0,
    }
    assert client.get("/v1/users/old-0/relationship").status_code == 404
    assert run(capsys, "--relationships", "t.jsonl")[1]["added"] == 450
    assert run(capsys, "--relationships", "t.jsonl")[1]["before"] == 450
    relationship = client.get("/v1/users/old-449/relationship").json()
    assert (relationship["score"], relationship["level"]) == (600, "acquaintance")


@pytest.mark.usefixtures("of_the_server")
def test_where_a_total_is_wrong_none_is_added(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {"user_id": "right", "bot_id": "pika", "score": 600}
    (tmp_path / "w.jsonl").write_text(lines(right, {"user_id": "wrong"}, {**right, "score": 1}))
    assert cli.main(["import", "--relationships", "w.jsonl"]) == 1
    said = capsys.readouterr().err
    assert "w.jsonl:2: Object missing required field `bot_id`" in said
    assert "w.jsonl:3: right and pika stand in an earlier line, too" in said
    assert "w.jsonl: 2 lines are wrong, and nothing was added" in said
    assert client.get("/v1/users/right/relationship").status_code == 404
    assert cli.main(["import", "x.jsonl", "--relationships", "w.jsonl"]) == 1
    assert cli.main(["import"]) == 1
    assert "name the files of conversations, or those of totals" in capsys.readouterr().err
