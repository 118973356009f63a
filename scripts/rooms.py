#!/usr/bin/env python3
"""Print the rooms of a tree: what each holds, and which others it imports.

    scripts/rooms.py [FOLDER]      # the folder that holds convo/; without one, this tree

A room is a folder of ``convo/``, or a module at its top. Nothing is installed or run: the source is read with ``ast``.
An import runs upwards where its target has a higher rank, or another room of the same rank, in the table ``RANKS`` of
the tree's own ``tests/test_layers.py``. Exit code 1: there is a cycle, or an import that runs upwards.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.source_tree import is_package, modules, own_imports, public_names, sources  # noqa: E402

Graph = Mapping[str, set[str]]


def main(arguments: Sequence[str]) -> int:
    """Print the sheet; return 1 where the order of the rooms is broken."""
    root = Path(arguments[0]).resolve() if arguments else ROOT
    members: dict[str, list[str]] = defaultdict(list)
    for module in modules(root):
        members[_room(module, root)].append(module)
    graph = {room: _imported_rooms(room, inside, root) for room, inside in members.items()}
    _print_table(members, graph, root)
    broken = {
        "cycles of rooms": [" <-> ".join(cycle) for cycle in _cycles(graph)],
        "cycles of modules": [" <-> ".join(cycle) for cycle in _cycles(_module_graph(root))],
        "imports that run upwards": _upwards(root),
    }
    for what, found in broken.items():
        print(f"{what}: {len(found) or 'none'}", *found, sep="\n  ")
    return 1 if any(broken.values()) else 0


def _room(module: str, root: Path) -> str:
    if is_package(module, root) and module != "convo":
        return module
    folder = module.rpartition(".")[0]
    return module if folder in ("", "convo") else folder


def _imported_rooms(room: str, inside: Iterable[str], root: Path) -> set[str]:
    return {_room(name, root) for module in inside for name in own_imports(module, root)} - {room, "convo"}


def _module_graph(root: Path) -> dict[str, set[str]]:
    # A package's own __init__ is loaded before each of its modules, which is no cycle.
    return {
        module: {name for name in own_imports(module, root) if not module.startswith(f"{name}.")}
        for module in modules(root)
    }


def _print_table(members: Mapping[str, list[str]], graph: Graph, root: Path) -> None:
    print(f"{'room':24} {'files':>5} {'lines':>6} {'names':>6}  imports")
    totals = [0, 0, 0]
    for room, inside in sorted(members.items()):
        counts = [
            len(inside),
            sum(sources(root)[module].count("\n") for module in inside),
            sum(len(public_names(module, root)) for module in inside),
        ]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        imported = " ".join(sorted(name.removeprefix("convo.") for name in graph[room]))
        print(f"{room:24} {counts[0]:5} {counts[1]:6} {counts[2]:6}  {imported}".rstrip())
    print(f"{f'{len(members)} rooms':24} {totals[0]:5} {totals[1]:6} {totals[2]:6}\n")


def _cycles(graph: Graph) -> list[list[str]]:
    """Return the groups whose members all import each other, directly or by way of others."""
    reached = {start: _reachable(graph, start) for start in graph}
    groups = {frozenset(other for other in reached[one] if one in reached[other]) for one in graph}
    return sorted(sorted(group) for group in groups if group)


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen


def _upwards(root: Path) -> list[str]:
    ranks = _ranks(root)
    found = []
    for module in modules(root):
        for name in own_imports(module, root):
            mine, theirs = (_rank(one, ranks) for one in (module, name))
            if theirs > mine or (theirs == mine and _house(name) != _house(module)):
                found.append(f"{module} (rank {mine}) -> {name} (rank {theirs})")
    return found


def _house(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _ranks(root: Path) -> dict[str, int]:
    tree = ast.parse((root / "tests" / "test_layers.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == ["RANKS"]:
                return dict(ast.literal_eval(node.value))
    raise SystemExit(f"{root}/tests/test_layers.py has no table RANKS")


def _rank(module: str, ranks: Mapping[str, int]) -> int:
    name = module
    while name not in ranks:
        name = name.rpartition(".")[0]
    return ranks[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
