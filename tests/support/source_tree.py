"""Reads the source of ``convo/`` with ``ast``: its modules, what each imports, its functions and its public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources(root: Path = ROOT) -> dict[str, str]:
    """Return the text of every module, by its name."""
    return {module_of(path, root): path.read_text("utf-8") for path in sorted((root / "convo").rglob("*.py"))}


@cache
def modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by its name."""
    return {module: ast.parse(text) for module, text in sources(root).items()}


def module_of(path: Path, root: Path = ROOT) -> str:
    """Return the name by which the module in this file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def is_package(module: str, root: Path = ROOT) -> bool:
    """Return whether the module is a folder with an ``__init__.py``."""
    return root.joinpath(*module.split("."), "__init__.py").exists()


@cache
def imports(module: str, root: Path = ROOT) -> frozenset[str]:
    """Return every module that this one imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(modules(root)[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found |= {_imported(node.module, alias.name, root) for alias in node.names}
    return frozenset(found - {"__future__"})


def _imported(package: str, name: str, root: Path) -> str:
    """Return the module, whether it is ``name`` or holds it."""
    return f"{package}.{name}" if f"{package}.{name}" in modules(root) else package


def own_imports(module: str, root: Path = ROOT) -> list[str]:
    """Return the modules of ``convo`` that this one imports."""
    return sorted(name for name in imports(module, root) if name.split(".")[0] == "convo")


def functions(module: str) -> Iterator[Function]:
    """Yield every function of the module, methods and nested ones too."""
    for node in ast.walk(modules()[module]):
        if isinstance(node, Function):
            yield node


def names(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names of the classes, functions and constants that these statements define."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case _:
                pass


def public_names(module: str, root: Path = ROOT) -> list[str]:
    """Return the public names that the module defines at its top level."""
    return [name for name in dict.fromkeys(names(modules(root)[module].body)) if not name.startswith("_")]
