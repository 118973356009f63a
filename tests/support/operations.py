"""Counts what a call costs, without a clock: the lines of convo that run, and the characters that C functions get.

A line counts one. A method in C of a text or of bytes counts as many as these are long, unless it looks at an end only.
Normalising counts the square of each run of combining marks besides, for that is how Python sorts them. What patterns
cost in ``re`` is counted in ``regex_steps``. What msgspec, hashing and slices cost is not counted: one call of them is
linear, and a line for each call is counted.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from itertools import groupby
from types import CodeType, FrameType
from typing import Any

import pytest

_AT_AN_END = {
    "startswith",
    "endswith",
    "removeprefix",
    "removesuffix",
    "rfind",
    "append",
    "pop",
    "get",
    "keys",
    "extend",
}
_SIZED = (str, bytes, list)


class Operations:
    """Counts while a function runs."""

    def __init__(self) -> None:
        self.count = 0
        self._ours: dict[CodeType, bool] = {}

    def of(self, function: Callable[[], object]) -> int:
        """Return what a call costs, however it ends."""
        self.count = 0
        before = sys.gettrace(), sys.getprofile()
        sys.setprofile(self._called)
        sys.settrace(self._entered)
        try:
            function()
        except Exception:  # noqa: BLE001  (a refusal costs, too)
            pass
        finally:
            sys.settrace(before[0])
            sys.setprofile(before[1])
        return self.count

    def _entered(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = "/convo/" in code.co_filename and "/site-packages/" not in code.co_filename
        return self._line if ours else None

    def _line(self, _frame: FrameType, _event: str, _argument: Any) -> Any:
        self.count += 1
        return self._line

    def _called(self, _frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            owner = getattr(function, "__self__", None)
            self.count += len(owner) if isinstance(owner, _SIZED) and function.__name__ not in _AT_AN_END else 1


def count_normalizing(monkeypatch: pytest.MonkeyPatch, operations: Operations) -> None:
    """Have every call of ``unicodedata.normalize`` count what it costs."""
    real = unicodedata.normalize

    def counted(form: Any, text: str) -> str:
        runs = groupby(text, key=lambda character: unicodedata.combining(character) > 0)
        operations.count += len(text) + sum(len(list(run)) ** 2 for marked, run in runs if marked)
        return real(form, text)

    monkeypatch.setattr(unicodedata, "normalize", counted)


class WatchedText(str):
    """A text that counts when it is copied as a whole, as an operator does and no call shows."""

    __slots__ = ()
    copied = 0

    def __format__(self, spec: str) -> str:
        WatchedText.copied += len(self)
        return str.__format__(self, spec)


class WatchedBytes(bytes):
    """Bytes that count when something is looked for in all of them by an operator."""

    searched = 0

    def __contains__(self, wanted: Any) -> bool:
        WatchedBytes.searched += len(self)
        return bytes.__contains__(self, wanted)
