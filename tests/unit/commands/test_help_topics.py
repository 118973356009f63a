from __future__ import annotations

import subprocess
import sys

import pytest

from convo import handbook
from convo.commands import cli
from convo.handbook import pages
from tests.support.running import ROOT

PAGES = {"ladder": "# The ladder of deadlines\n\nText.\n", "operating": "\n# Operating\n\n- a list\n"}


@pytest.fixture(autouse=True)
def _two_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handbook, "topics", lambda: tuple(PAGES))
    monkeypatch.setattr(handbook, "page", PAGES.__getitem__)
    monkeypatch.setattr(pages, "_text", PAGES.__getitem__)


def test_help_lists_each_topic_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["ladder     The ladder of deadlines", "operating  Operating"]


def test_help_of_a_topic_prints_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "ladder"]) == 0
    assert capsys.readouterr().out == PAGES["ladder"]


@pytest.mark.parametrize(
    ("topic", "hint"), [("laddr", "did you mean ladder?"), ("xyz", "choose from ladder, operating")]
)
def test_an_unknown_topic_is_exit_code_2_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str], topic: str, hint: str
) -> None:
    assert cli.main(["help", topic]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"convo: there is no topic '{topic}'; {hint}\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "convo", "help", "operating"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0
