"""The house's order, read out of its own source: who may import whom, and what stands in one place only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports from lower ranks, or within its own package. The longest prefix of a module's name decides.
RANKS: dict[str, int] = {
    "convo": 0,  # the package itself: its version
    "convo.errors": 0,
    "convo.conversation": 1,
    "convo.config": 2,
    "convo.identity": 2,
    "convo.bell": 2,
    "convo.threads": 2,
    "convo.waits": 2,
    "convo.observe": 3,
    "convo.bridge": 4,
    "convo.deadline": 4,
    "convo.tasks": 5,
    "convo.resilience": 5,
    "convo.analysis": 6,
    "convo.alerts": 6,
    "convo.store.private": 6,
    "convo.store.embedded": 7,
    "convo.store.postgres": 7,
    "convo.store.backup": 8,
    "convo.store.migrate": 8,
    "convo.store": 8,
    "convo.crash": 9,
    "convo.pipeline": 9,
    "convo.web": 9,
    "convo.canary": 10,
    "convo.service": 11,
    "convo.upkeep": 10,
    "convo.terminal": 10,
    "convo.checkup": 11,
    "convo.cli": 12,
    "convo.__main__": 13,
}
PACKAGES = ("alerts", "conversation", "observe", "resilience", "analysis", "store", "pipeline", "web")

# What stands in these modules and in no other.
MONOPOLIES: dict[str, set[str]] = {
    "asyncio": {"convo.bridge"},
    "trio_asyncio": {"convo.bridge"},
    "asyncpg": {"convo.store.postgres"},
    "httpx": {
        "convo.analysis.remote",
        "convo.analysis.llm",
        "convo.analysis.memory",
        "convo.alerts.delivery",
        "convo.terminal",
    },
    "hypercorn": {"convo.web.server"},
    "httptools": {"convo.web.http1"},
    "quart": {"convo.web.app"},
    "quart_trio": {"convo.web.app"},
    "werkzeug": {"convo.web.app"},
    "tenacity": {"convo.resilience.retry"},
    "prometheus_client": {"convo.observe.metrics"},
    "structlog": {"convo.observe.events", "convo.observe.log"},
    "rich": {"convo.terminal", "convo.checkup"},
    "tomllib": {"convo.config"},
}
PURE = "convo.conversation"
NOT_PURE = {"trio", "os", "io", "time", "socket", "pathlib", "threading", "subprocess", "logging", "random"}
BROAD = {"convo.pipeline.worker", "convo.web.connection", "convo.web.door"}
"""Where one job, one request and one connection end: what nobody foresaw is caught there and nowhere else."""
NURSERIES = {"convo.service", "convo.analysis.analyze", "convo.web.operations"}
"""Long-lived ones in service.py only; the others close before the function that opened them returns."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    return {module_of(path): ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "convo").rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """Name every module that this one imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found |= {_target(node.module, alias.name) for alias in node.names}
    return frozenset(found - {"__future__"})


def _target(package: str, name: str) -> str:
    """Tell a module imported from a package from a name imported from a module."""
    return f"{package}.{name}" if f"{package}.{name}" in modules() else package


def ours(module: str) -> list[str]:
    return sorted(name for name in imports(module) if name.split(".")[0] == "convo")


def rank(module: str) -> int:
    name = module
    while name not in RANKS:
        name = name.rpartition(".")[0]
    assert name != "convo" or module == "convo", f"{module} has no rank: give it one in tests/test_layers.py"
    return RANKS[name]


def package(module: str) -> str:
    return ".".join(module.split(".")[:2]) if module.split(".")[1:2] and module.split(".")[1] in PACKAGES else module


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    taken = function.args
    return [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, *filter(None, (taken.vararg, taken.kwarg))]


ALL = sorted(modules())


@pytest.mark.parametrize("module", ALL)
def test_a_module_imports_from_lower_ranks_or_within_its_package(module: str) -> None:
    upwards = [
        name
        for name in ours(module)
        if rank(name) > rank(module) or (rank(name) == rank(module) and package(name) != package(module))
    ]
    assert not upwards, f"{module} (rank {rank(module)}) imports {upwards}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a cycle: {' -> '.join((*way, module))}"
        if module not in done:
            for name in ours(module):
                if not (name == package(module) and module.startswith(f"{name}.")):  # a package's own __init__
                    follow(name, (*way, module))
            done.add(module)

    for module in ALL:
        follow(module, ())


def test_the_ranks_name_no_module_that_does_not_exist() -> None:
    assert {name for name in RANKS if name not in modules()} == set()


@pytest.mark.parametrize("library", sorted(MONOPOLIES))
def test_a_library_stands_where_it_may_and_nowhere_else(library: str) -> None:
    users = {module for module in ALL if any(name.split(".")[0] == library for name in imports(module))}
    assert users <= MONOPOLIES[library]


def test_conversation_is_pure() -> None:
    for module in ALL:
        if module.startswith(PURE):
            impure = {name for name in imports(module) if name.split(".")[0] in NOT_PURE}
            assert not impure, f"{module} imports {impure}"
            assert all(name == "convo.errors" or name.startswith(PURE) or name == "convo" for name in ours(module))


def test_the_environment_is_read_in_config_only() -> None:
    readers = {
        module
        for module in ALL
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    }
    assert readers == {"convo.config"}


@pytest.mark.parametrize("module", ALL)
def test_no_function_takes_a_nursery_or_a_timeout(module: str) -> None:
    for function in functions(module):
        for parameter in parameters(function):
            note = ast.unparse(parameter.annotation) if parameter.annotation else ""
            assert "nursery" not in parameter.arg.lower(), f"{module}.{function.name}"
            assert "Nursery" not in note, f"{module}.{function.name}"
            assert "timeout" not in parameter.arg.lower(), f"{module}.{function.name}"


def test_nurseries_are_opened_where_somebody_answers_for_them() -> None:
    opened = {
        module
        for module in ALL
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.Attribute) and node.attr == "open_nursery"
    }
    assert opened <= NURSERIES


def test_what_nobody_foresaw_is_caught_where_a_request_a_connection_or_a_job_ends() -> None:
    broad = [
        module
        for module in ALL
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not _raises_again(node)
    ]
    assert sorted(broad) == sorted(BROAD)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


@pytest.mark.parametrize("module", ALL)
def test_a_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(modules()[module])


def test_the_top_of_the_repository_holds_what_it_may() -> None:
    allowed = {"convo", "tests", "scripts", "config.toml", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    left_by_tools = {"build", "dist", "convo.egg-info"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - left_by_tools <= allowed
