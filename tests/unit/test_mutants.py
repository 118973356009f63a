from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


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


def test_a_place_that_the_code_no_longer_has_is_told() -> None:
    with pytest.raises(SystemExit, match=r"0 times in convo/bell\.py"):
        mutate.planted("", mutate.Mutant(what="x", file="convo/bell.py", old="gone", new="", tests=[]))
