from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import trio
from rich.console import Console

from scripts import seed
from scripts.seed_bodies import SAMPLES, read_bodies
from tests.support.faulty_server import FaultyServer, serving

SCRIPT = Path(seed.__file__)


async def run(server: FaultyServer, *arguments: str) -> tuple[int, str]:
    screen = StringIO()
    code = await seed.run(["--url", server.url, *arguments], Console(file=screen, width=160))
    return code, screen.getvalue()


def row(text: str, name: str) -> str:
    """Find what a row of the final table says, its cells joined by single spaces."""
    (line,) = [line for line in text.splitlines() if re.search(rf"│ {re.escape(name)} +│", line)]
    return " ".join(line.replace("│", " ").split()).removeprefix(name).strip()


async def test_all_samples_are_taken_and_a_second_run_replays_them() -> None:
    async with serving() as server:
        first = await run(server)
        again = await run(server)

    total = str(len(read_bodies(SAMPLES)))
    assert (first[0], row(first[1], "accepted"), row(first[1], "replayed")) == (0, total, "0")
    assert (again[0], row(again[1], "accepted"), row(again[1], "replayed")) == (0, "0", total)
    assert row(first[1], "analysed: done") == total
    assert re.fullmatch(r"\d+\.\d ms", row(first[1], "latency p99"))


async def test_a_fresh_run_makes_new_conversations_of_the_same_users() -> None:
    async with serving() as server:
        await run(server, "--count", "3")
        code, text = await run(server, "--count", "3", "--fresh")

    assert (code, row(text, "accepted")) == (0, "3")
    assert len(server.stored) == 6
    assert len({json.loads(body)["user_id"] for body in server.stored.values()}) <= 3


async def test_faults_that_pass_are_outlived_with_the_same_id() -> None:
    async with serving() as server:
        server.faults = ["busy", "away", "reset", "away"]
        code, text = await run(server, "--count", "8", "--concurrency", "2")

    assert code == 0
    # The one whose answer was cut off had been stored: its second try is a replay.
    assert (row(text, "accepted"), row(text, "replayed"), row(text, "lost")) == ("7", "1", "0")
    assert len(server.stored) == 8
    assert len(server.posts) == 12
    assert max(Counter(server.posts).values()) >= 2
    assert row(text, "tried again").startswith("4 503 database_unavailable × 2")


async def test_a_conflict_is_refused_at_once_and_says_why() -> None:
    async with serving() as server:
        server.stored["sample-en-new-puppy"] = b"other content"
        code, text = await run(server)

    assert code == 1
    assert row(text, "refused") == "1 409 conflict × 1"
    assert server.posts.count("sample-en-new-puppy") == 1
    assert row(text, "accepted") == str(len(read_bodies(SAMPLES)) - 1)


async def test_there_are_never_more_connections_than_asked_for() -> None:
    async with serving() as server:
        code, _ = await run(server, "--concurrency", "3", "--count", "200")

    assert code == 0
    assert server.connections_most == 3


async def test_what_is_dead_or_pending_after_the_wait_is_told_apart_and_not_a_success() -> None:
    async with serving() as server:
        names = [body["conversation_id"] for body in read_bodies(SAMPLES)]
        server.states = {names[0]: "dead", names[1]: "leased"}
        code, text = await run(server, "--count", "4", "--wait", "0.1")

    assert code == 3
    assert [row(text, f"analysed: {state}") for state in ("done", "dead", "pending")] == ["2", "1", "1"]


async def test_an_accepted_one_that_is_gone_later_is_a_loss() -> None:
    async with serving() as server:
        server.states = {read_bodies(SAMPLES)[0]["conversation_id"]: "gone"}
        code, text = await run(server, "--count", "2")

    assert (code, row(text, "lost")) == (1, "1 404 after its 202 × 1")


async def test_nothing_is_awaited_when_not_asked_to() -> None:
    async with serving() as server:
        code, text = await run(server, "--wait", "0", "--count", "2")

    assert (code, row(text, "analysed: done")) == (0, "not awaited")


async def test_the_key_is_sent_with_every_request_and_shown_nowhere() -> None:
    async with serving() as server:
        _, text = await run(server, "--key", "s3cret", "--count", "2")

    assert server.keys == {"Bearer s3cret"}
    assert "s3cret" not in text


async def test_big_bodies_of_one_file_are_all_different(tmp_path: Path) -> None:
    async with serving() as server:
        code, _ = await run(server, "--size-kb", "20", "--count", "10", "--user-prefix", "load-")

    assert code == 0
    assert min(map(len, server.stored.values())) >= 20_000
    assert len(set(server.stored.values())) == 10
    assert all(name.startswith("load-sample-") for name in server.stored)


def test_markup_and_control_characters_of_an_answer_are_shown_as_text() -> None:
    tally = seed.Tally()
    tally.note("refused", "418 [red]tea\x1b[2J")
    screen = StringIO()
    Console(file=screen, width=100).print(seed.report(tally, 1, 1.0))

    assert "418 [red]tea\N{REPLACEMENT CHARACTER}[2J × 1" in screen.getvalue()


async def test_without_a_server_or_a_file_nothing_is_posted_and_one_line_says_so(tmp_path: Path) -> None:
    screen = StringIO()
    console = Console(file=screen, width=40)
    # Bound and not listening: nobody can take this port from under the test.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert await seed.run(["--url", url], console) == 2
    assert await seed.run(["--from", str(tmp_path / "absent")], console) == 2
    assert await seed.run(["--url", "ftp://nowhere"], console) == 2

    no_server, no_file, no_url = screen.getvalue().splitlines()
    assert (
        no_server == f"seed.py: no server answers at {url} (ConnectError): start scripts/serve, or name one with --url"
    )
    assert no_file == f"seed.py: {tmp_path / 'absent'}: No such file or directory"
    assert no_url == "seed.py: the URL ftp://nowhere is neither http:// nor https://"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "0"], "--count: '0': must be a whole number from 1, e.g. 50"),
        (["--concurrency", "x"], "--concurrency: 'x': must be a whole number from 1"),
        (["--rate", "-1"], "--rate: '-1': must be a number above 0, e.g. 10"),
        (["--rate", "fast"], "--rate: 'fast': must be a number above 0"),
        (["--conut", "3"], "there is no option --conut; did you mean --count?"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_right(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        seed.options_of(arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


async def test_the_server_and_the_key_are_those_of_convos_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        monkeypatch.setenv("CONVO_URL", server.url.removeprefix("http://"))
        monkeypatch.setenv("CONVO_KEY", "of-the-environment")
        screen = StringIO()
        assert await seed.run(["--count", "1"], Console(file=screen, width=160)) == 0
        assert server.keys == {"Bearer of-the-environment"}
        assert await seed.run(["--count", "1", "--key", "typed"], Console(file=screen, width=160)) == 0
        assert server.keys == {"Bearer of-the-environment", "Bearer typed"}


async def test_a_setting_that_cannot_be_used_is_said_before_anything_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVO_URL", raising=False)
    monkeypatch.setenv("CONVO_SERVER__PORT", "abc")
    screen = StringIO()
    assert await seed.run([], Console(file=screen, width=160)) == 2
    assert screen.getvalue().startswith("seed.py: CONVO_SERVER__PORT='abc': must be a whole number")


async def test_a_missing_key_is_said_with_the_variable_that_holds_one() -> None:
    async with serving() as server:
        server.faults = ["locked"]
        code, text = await run(server, "--count", "1")
    assert code == 1
    assert "set CONVO_KEY (`scripts/convo key new NAME` makes one)" in text


async def test_as_a_program_it_posts_and_a_ctrl_c_still_shows_the_table() -> None:
    async with serving() as server, trio.open_nursery() as nursery:
        server.faults = ["", "", "stuck"]
        command = [sys.executable, str(SCRIPT), "--url", server.url, "--count", "3", "--concurrency", "1"]
        program = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
        await server.stuck.wait()
        program.send_signal(signal.SIGINT)
        text = (await _read_all(program)).decode()
        await program.wait()

    assert program.returncode == 130
    assert row(text, "accepted") == "2"
    assert row(text, "not posted") == "1"


async def _read_all(program: trio.Process) -> bytes:
    assert program.stdout is not None
    return b"".join([chunk async for chunk in program.stdout])


def test_percentiles_are_values_that_were_seen() -> None:
    assert seed.percentile([5.0, 1.0, 3.0], 50) == 3.0
    assert seed.percentile([float(number) for number in range(1, 201)], 99) == 198.0
    assert seed.percentile([], 99) == 0.0


def test_with_another_python_it_runs_itself_again_in_the_environment(tmp_path: Path) -> None:
    # -S hides all that is installed, so the first run cannot import httpx.
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), "--from", str(tmp_path / "absent")],
        capture_output=True,
        text=True,
        check=False,
    )

    if (SCRIPT.parents[1] / ".venv/bin/python").exists():
        assert (done.returncode, done.stderr) == (2, "")
    else:
        assert "Run scripts/serve first" in done.stderr
