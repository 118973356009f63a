#!/usr/bin/env python3
"""Plant defects in a copy of the tree, one in each, and show which test notices each; a test must notice each.

    .venv/bin/python scripts/mutate.py [WORD …]      # only those whose description holds a WORD
    .venv/bin/python scripts/mutate.py --jobs 2      # two at a time, each in a copy of its own

The defects stand in ``mutants.toml``. Their tests must pass on the unchanged tree.
Exit code 1: no test noticed one of them; 2: there is none with such a WORD.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
_TEST_SECONDS, _ALL_TESTS_SECONDS = 400.0, 3600.0
# Those marked long, too: what only they notice is noticed.
_OPTIONS = ("-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-m", "long or not long")
_COPIED = ("convo", "tests", "scripts", "config.toml", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
console = Console(width=150)


class Mutant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A defect: what it is, where it is planted, and the tests that should notice it.

    ``inside`` names the function, method or constant of the file that holds the ``old`` text: "Breaker.failed". Without
    it the whole file is looked through. Either way the text must stand there once.
    """

    what: str
    file: str
    inside: str = ""
    old: str
    new: str
    tests: list[str]


class Book(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``mutants.toml`` holds."""

    mutant: list[Mutant]


def main(words: Sequence[str], jobs: int = 1) -> int:
    """Plant the chosen ones, print the test that noticed each; return 1 when one survived."""
    chosen = [one for one in mutants() if not words or any(word in one.what for word in words)]
    if not chosen:
        console.print(f"no defect's description holds {' or '.join(words)}; they stand in scripts/mutants.toml")
        return 2
    with tempfile.TemporaryDirectory(prefix="convo-mutants-") as folder:
        trees = [_copied(Path(folder) / f"tree-{number}") for number in range(jobs)]
        tests = sorted({test for one in chosen for test in one.tests})
        failed = _failing(trees[0], tests, jobs)
        # On a busy machine one of many may fail once.
        if failed and (failed := _failing(trees[0], failed, 1) if all("::" in one for one in failed) else failed):
            console.print(f"[red]without any defect this does not pass: {', '.join(failed)}")
            return 1
        free: Queue[Path] = Queue()
        for tree in trees:
            free.put(tree)
        with ThreadPoolExecutor(jobs) as pool:
            killers = dict(zip([one.what for one in chosen], pool.map(partial(_killer, free), chosen), strict=True))
    table = Table("planted", "in", "noticed by")
    for one in chosen:
        table.add_row(one.what, one.file, killers[one.what] or "[red]nobody: it survived")
    console.print(table)
    survivors = sum(killer is None for killer in killers.values())
    console.print(f"{len(chosen)} planted, {len(chosen) - survivors} noticed, {survivors} survived")
    return 1 if survivors else 0


def mutants() -> list[Mutant]:
    """Read ``mutants.toml``."""
    book = tomllib.loads((ROOT / "scripts" / "mutants.toml").read_text("utf-8"))
    return msgspec.convert(book, Book).mutant


def planted(text: str, one: Mutant) -> str:
    """Put the defect into a file's text, in which its place must be the only one.

    Raises:
        SystemExit: the code has changed, and ``mutants.toml`` must follow.
    """
    first, last = _place(text, one) if one.inside else (0, len(text))
    found = text.count(one.old, first, last)
    if found != 1:
        place = f"{one.inside} of {one.file}" if one.inside else one.file
        raise SystemExit(f"{one.what!r}: its text stands {found} times in {place}; mend mutants.toml")
    return text[:first] + text[first:last].replace(one.old, one.new) + text[last:]


def _place(text: str, one: Mutant) -> tuple[int, int]:
    """Return where the definition that the defect names begins and ends in the file's text."""
    nodes: list[ast.stmt] = ast.parse(text).body
    found: list[ast.stmt] = []
    for name in one.inside.split("."):
        found = [node for node in nodes if name in _defined(node)]
        nodes = [inner for node in found for inner in getattr(node, "body", [])]
    if len(found) != 1:
        raise SystemExit(f"{one.what!r}: {one.file} defines {one.inside} {len(found)} times; mend mutants.toml")
    lines = text.splitlines(keepends=True)
    first, last = found[0].lineno - 1, found[0].end_lineno
    return len("".join(lines[:first])), len("".join(lines[:last]))


def _defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {ast.unparse(target) for target in targets}
        case ast.AnnAssign(target=target):
            return {ast.unparse(target)}
        case _:
            return set()


def _copied(tree: Path) -> Path:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def _killer(free: Queue[Path], one: Mutant) -> str | None:
    tree = free.get()
    path = tree / one.file
    text = path.read_text("utf-8")
    began = time.monotonic()
    try:
        path.write_text(planted(text, one), "utf-8")
        killer = _run(tree, one.tests)
    finally:
        path.write_text(text, "utf-8")
        free.put(tree)
    console.print(f"[dim]{time.monotonic() - began:5.1f} s  {one.what}: {killer or 'SURVIVED'}")
    return killer


def _failing(tree: Path, tests: Iterable[str], jobs: int) -> list[str]:
    """Run tests to their end; return those that fail."""
    options = [option for option in _OPTIONS if option != "-x"] + (
        ["-n", str(jobs), "--dist=loadfile"] if jobs > 1 else []
    )
    line = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        ran = subprocess.run(line, cwd=tree, capture_output=True, text=True, check=False, timeout=_ALL_TESTS_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"the tests hang ({_ALL_TESTS_SECONDS:g} s)"]
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
    return failed if failed or ran.returncode == 0 else [f"the run breaks off ({ran.returncode})"]


def _run(tree: Path, tests: Iterable[str]) -> str | None:
    """Run tests until one fails; return which one did, None when all pass."""
    line = [sys.executable, "-m", "pytest", *_OPTIONS, *tests]
    try:
        ran = subprocess.run(line, cwd=tree, capture_output=True, text=True, check=False, timeout=_TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the tests hang ({_TEST_SECONDS:g} s)"
    if ran.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+?)(?:::(\S+?))?(?:\[.*)?(?: - .*)?$", ran.stdout, re.MULTILINE)
    return f"{failed[1]} {failed[2] or ''}".strip() if failed else f"the run breaks off ({ran.returncode})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--jobs", type=int, default=1, choices=range(1, 9), metavar="N")
    asked = parser.parse_args()
    sys.exit(main(asked.words, asked.jobs))
