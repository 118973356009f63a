from __future__ import annotations

import argparse

import pytest

from convo.commands.parsing import Parser, row_count


def made() -> Parser:
    parser = Parser(prog="tool")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pack = commands.add_parser("pack")
    pack.add_argument("file")
    pack.add_argument("--level", choices=("low", "high"))
    pack.add_argument("--count", type=row_count, default=50)
    commands.add_parser("unpack")
    return parser


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pakc"], "tool: error: there is no 'pakc' here; did you mean pack?"),
        (["pack", "a", "--cuont", "3"], "tool pack: error: there is no option --cuont; did you mean --count?"),
        (["pack", "a", "--cuont=3"], "tool pack: error: there is no option --cuont; did you mean --count?"),
        (["pack", "a", "--zzz"], "there is no option --zzz; choose from --help, --level, --count"),
        (["pack", "a", "b"], "'b' is one word too many"),
        (["pack", "a", "--level", "hihg"], "--level: there is no 'hihg' here; did you mean high?"),
        (["pack", "a", "--level", "zzz"], "--level: there is no 'zzz' here; choose from"),
        (["pack", "a", "--count", "0"], "--count: '0': must be a whole number from 1, e.g. 50"),
        (["unpack", "--count", "3"], "tool unpack: error: there is no option --count; choose from --help"),
    ],
)
def test_what_was_probably_meant_is_said_by_the_parser_of_the_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        made().parse_args(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_right_is_taken() -> None:
    found = made().parse_args(["pack", "a", "--level", "high", "--count", "7"])
    assert (found.file, found.level, found.count) == ("a", "high", 7)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "ten", "", "9999999999", "٣"])
def test_a_number_of_rows_is_a_whole_number_from_1(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number from 1"):
        row_count(text)
