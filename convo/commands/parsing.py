"""A command-line parser that names the nearest command, option or choice where it does not know what was typed."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

# What argparse says of a word that is none of the choices, in all versions of Python.
_INVALID_CHOICE = re.compile(r"invalid choice: '(.*?)' .*?\(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser whose errors say what was probably meant."""

    # Any, as argparse's own stub has overloads here whose second type is private.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as ``argparse``, but let the parser of the command itself refuse what it does not know."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._about(unknown))
        return found, unknown

    def _about(self, unknown: Sequence[str]) -> str:
        option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if option is None:
            return f"{unknown[0]!r} is one word too many; a text with spaces stands in quotes"
        known = [text for text in self._option_string_actions if text.startswith("--")]
        near = difflib.get_close_matches(option, known, 1)
        return f"there is no option {option}; " + (
            f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with the nearest choice to one that is none, and end with 2."""
        wrong = _INVALID_CHOICE.search(message)
        if wrong:
            near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {wrong[2]}"
            option = re.match(r"argument (--[\w-]+): ", message)
            message = f"{option[1]}: " if option else ""
            message += f"there is no {wrong[1]!r} here; {hint}"
        super().error(message)


def row_number(text: str) -> int:
    """Read the number of a row.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be the number of a row, e.g. 4711")
    return int(text)


def row_count(text: str) -> int:
    """Read the value of a ``--limit`` or ``--count``.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1, e.g. 50")
    return int(text)
