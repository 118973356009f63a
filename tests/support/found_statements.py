"""Finds the SQL of the product: every string of ``convo/`` that a pattern matches, by where it stands."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import convo
from tests.support.source_tree import modules


def _modules() -> Iterator[str]:
    for found in pkgutil.walk_packages(convo.__path__, "convo."):
        if not found.name.endswith("__main__"):
            yield found.name


def found_statements(pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Find every string that matches: the values of modules and classes, and the constants in functions."""
    return ((name, text) for name, text in _strings() if pattern.search(text))


@cache
def _strings() -> list[tuple[str, str]]:
    return list(_all_strings())


def _all_strings() -> Iterator[tuple[str, str]]:
    for name in _modules():
        module, tree = vars(importlib.import_module(name)), modules()[name]
        assigned = {
            target.id for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) for target in _names(node)
        }
        own = {key: value for key, value in module.items() if key in assigned}
        for owner, values in ((name, own), *_classes(name, module)):
            for key, value in list(values.items()):
                for text in _texts(value):
                    if isinstance(text, str) and key != "__doc__":
                        yield f"{owner}.{key}", text
        yield from _inline(name, tree)


def _texts(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, tuple) else (value,)


def _names(node: ast.Assign | ast.AnnAssign) -> Iterator[ast.Name]:
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
    yield from (target for target in targets if isinstance(target, ast.Name))


def _classes(module: str, values: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for key, value in list(values.items()):
        if isinstance(value, type) and value.__module__ == module:
            yield f"{module}.{key}", vars(value)


def _inline(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{module}.{function.name}", node.value
