from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # msgspec looks the types up there
    spec.loader.exec_module(module)
    return module


mutate = load()
MUTANTS = mutate.mutants()


def test_there_are_enough_of_them_and_each_is_another() -> None:
    assert len(MUTANTS) >= 25
    assert len({one.what for one in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.what)
def test_its_place_is_in_the_code_and_its_tests_exist(one: Any) -> None:
    text = (ROOT / one.file).read_text("utf-8")
    assert mutate.planted(text, one) != text
    assert all((ROOT / test).exists() for test in one.tests)


CODE = """
LIMIT = (
    3
)


class Door:
    def open(self) -> int:
        return 3

    async def shut(self) -> int:
        return 3
"""


def mutant(inside: str, old: str = "3") -> Any:
    return mutate.Mutant(what="x", file="convo/runtime/bell.py", inside=inside, old=old, new="4", tests=[])


@pytest.mark.parametrize(("inside", "line"), [("LIMIT", 3), ("Door.open", 9), ("Door.shut", 12)])
def test_a_defect_is_planted_inside_the_definition_that_it_names(inside: str, line: int) -> None:
    lines = mutate.planted(CODE, mutant(inside)).splitlines()
    changed = [number for number, (now, was) in enumerate(zip(lines, CODE.splitlines(), strict=True), 1) if now != was]
    assert changed == [line]


@pytest.mark.parametrize(
    ("inside", "old", "says"),
    [
        ("", "gone", r"0 times in convo/runtime/bell\.py"),
        ("", "3", r"3 times in convo/runtime/bell\.py"),
        ("Door", "3", r"2 times in Door of convo/runtime/bell\.py"),
        ("Door.lock", "3", r"defines Door\.lock 0 times"),
    ],
)
def test_a_place_that_the_code_does_not_have_once_is_reported(inside: str, old: str, says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        mutate.planted(CODE, mutant(inside, old))
