from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convo.commands.later import import_later
from tests.support.running import ROOT

LIBRARIES_OF_A_SERVER = ("quart", "hypercorn", "asyncpg", "trio_asyncio", "httptools", "markdown_it", "shtab", "pytest")
SERVER = ("convo.service", "convo.startup", "convo.store.postgres", "convo.web.app", "convo.web.description.openapi")
ASKS = """
import sys
from convo.commands import cli
code = cli.main(sys.argv[1:])
waiting = {name for name, module in sys.modules.items() if type(module).__name__ == "_LazyModule"}
print("\\n" + " ".join(sys.modules.keys() - waiting))
sys.exit(code)
"""


def loaded(arguments: list[str], folder: Path, code: int) -> set[str]:
    """Run a command in a process of its own; return the modules that it has run, not those that wait for a use."""
    command = [sys.executable, "-c", ASKS, *arguments]
    ran = subprocess.run(
        command, cwd=ROOT, env={"CONVO_SERVER__DATA_DIR": str(folder)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code, ran.stderr
    return set(ran.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "code", "needless"),
    [
        (["help"], 0, ("trio", "httpx", "convo.web", "convo.commands.terminal", "convo.handbook.tables")),
        (["help", "operating"], 0, ("trio", "httpx", "convo.commands.terminal", "convo.web.description.openapi")),
        (["list"], 3, ("convo.handbook.tables",)),
        (["alerts"], 3, ("convo.handbook.tables",)),
    ],
)
def test_a_command_loads_nothing_that_only_others_need(
    arguments: list[str], code: int, needless: tuple[str, ...], tmp_path: Path
) -> None:
    modules = loaded(arguments, tmp_path, code)
    assert modules & {*needless, *LIBRARIES_OF_A_SERVER, *SERVER} == set()


def test_a_server_loads_nothing_that_only_commands_or_tests_need() -> None:
    asks = "import sys; from convo import service; from convo.commands import cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(ran.stdout.split())
    assert modules & {"shtab", "convo.handbook.tables", "trio.testing", "pytest"} == set()
    assert modules >= {*SERVER}


def test_a_module_is_run_when_it_is_first_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parcel"
    folder.mkdir()
    (folder / "__init__.py").write_text("runs = []")
    (folder / "slow.py").write_text("import parcel\nparcel.runs.append(1)\nanswer = 42")
    monkeypatch.syspath_prepend(str(tmp_path))
    slow = import_later("parcel.slow")
    parcel = sys.modules["parcel"]
    assert (parcel.runs, parcel.slow) == ([], slow)
    assert (slow.answer, slow.answer, parcel.runs) == (42, 42, [1])
    assert import_later("parcel.slow") is slow is sys.modules["parcel.slow"]
    for name in ("parcel", "parcel.slow"):
        monkeypatch.delitem(sys.modules, name)


def test_a_module_that_does_not_exist_is_missed_at_once() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"convo\.commands\.nothing"):
        import_later("convo.commands.nothing")
