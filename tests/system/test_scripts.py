from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("lock.txt", "lock-rabbitmq.txt", "lock-s3.txt", "lock-otel.txt", "lock-dev.txt")
_FOR_TRACES = "is set: convo needs opentelemetry-proto for it."
# A Python that notes each venv it makes and each installation, and does neither; $PIP is what installing comes to. As
# on a fresh Debian 12, pip stands only in an environment: the machine's own Python has none.
FAKE_PYTHON = f"""#!/bin/sh
case "$*" in
*"-m venv"*) echo venv >>"$CALLS"; for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"
    : >"$folder/bin/pip" ;;
*"-m pip --version"*) [ -e "${{0%/*}}/pip" ] ;;
*"-m pip"*install*) echo pip >>"$CALLS"; echo Collecting one; echo Installing collected packages: one; exec $PIP ;;
*sys.executable*) echo "$0" ;;
*) exec {os.path.realpath(sys.executable)} "$@" ;;
esac
"""


class Tree:
    """A copy of what scripts/setup needs, in a folder with a space in its name, and a PATH with one Python on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.path = folder / "bin"
        self.calls = folder / "calls"
        (self.root / "scripts").mkdir(parents=True)
        self.path.mkdir()
        for name in ("setup", "serve", *LOCKS):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        for tool in (
            "bash",
            "env",
            "dirname",
            "mkdir",
            "rm",
            "mv",
            "grep",
            "tee",
            "tail",
            "basename",
            "sh",
            "sleep",
            "true",
            "false",
            "cp",
        ):
            (self.path / tool).symlink_to(shutil.which(tool) or pytest.fail(tool))
        self.script(self.path / "python3", FAKE_PYTHON)

    def script(self, path: Path, text: str) -> None:
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, pip: str = "true") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "scripts" / "setup"), *arguments],
            env={"PATH": str(self.path), "CALLS": str(self.calls), "PIP": pip},
            cwd="/",
            process_group=0,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def setup(self, *arguments: str, pip: str = "true") -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, pip=pip)
        out, error = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def serve(self, **variables: str) -> str:
        """Run scripts/serve up to the point where it would start convo, which is not here; return what it says."""
        done = subprocess.run(
            [str(self.root / "scripts" / "serve")],
            env={"PATH": str(self.path), "CALLS": str(self.calls), "PIP": "true", **variables},
            cwd="/",
            text=True,
            capture_output=True,
            check=False,
        )
        return done.stderr.partition("No module named convo")[0].rpartition("\n")[0]

    def count(self, what: str) -> int:
        return self.calls.read_text().split().count(what) if self.calls.exists() else 0

    def installs(self) -> int:
        return self.count("pip")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_second_start_installs_nothing_and_says_nothing(tree: Tree) -> None:
    first = tree.setup()
    assert (first.returncode, tree.installs()) == (0, 1), first.stderr
    assert "Installing what lock.txt names" in first.stderr
    second = tree.setup()
    assert (second.returncode, second.stderr, tree.installs()) == (0, "", 1)


def test_it_ends_where_whoever_started_it_ignores_sigterm(tree: Tree) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a child inherits it
    made = tree.setup()
    assert (made.returncode, tree.installs()) == (0, 1), made.stderr
    assert "Killed" not in made.stderr


def test_a_changed_lock_is_installed(tree: Tree) -> None:
    tree.setup()
    (tree.root / "scripts" / "lock.txt").write_text("other==1.0\n")
    assert tree.setup().returncode == 0
    assert (tree.count("venv"), tree.count("pip")) == (1, 2)


@pytest.mark.parametrize("gone", ["pip", "python"])
def test_an_environment_that_cannot_install_is_made_anew(tree: Tree, gone: str) -> None:
    tree.setup()
    (tree.root / ".venv" / "bin" / gone).unlink()
    (tree.root / "scripts" / "lock.txt").write_text("other==1.0\n")
    assert tree.setup().returncode == 0
    assert (tree.count("venv"), tree.count("pip")) == (2, 2)


def test_the_tests_set_up_is_good_for_serving_but_not_the_other_way(tree: Tree) -> None:
    tree.setup("dev")
    tree.setup()
    assert tree.installs() == 1
    (tree.root / ".venv" / ".convo-dev").unlink()
    tree.setup()
    assert tree.installs() == 1
    tree.setup("dev")
    assert tree.installs() == 2


@pytest.mark.parametrize(
    ("name", "value", "why", "lock"),
    [
        ("CONVO_RABBITMQ__URL", "amqp://localhost/", "is set: convo needs aio-pika for it.", "lock-rabbitmq.txt"),
        ("CONVO_LOGS__STORE", "s3", "is s3: convo needs obstore and botocore for it.", "lock-s3.txt"),
        ("CONVO_OTEL__ENDPOINT", "http://c", f"or OTEL_EXPORTER_OTLP_ENDPOINT {_FOR_TRACES}", "lock-otel.txt"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c", _FOR_TRACES, "lock-otel.txt"),
    ],
)
def test_an_extra_is_installed_where_its_setting_needs_it_and_is_good_for_serving_without(
    tree: Tree, name: str, value: str, why: str, lock: str
) -> None:
    served = tree.serve(**{name: value})
    assert f"{name} {why}\nInstalling what {lock} names" in served
    assert tree.installs() == 1
    assert tree.serve(**{name: value}) == ""
    assert tree.serve() == ""
    assert tree.installs() == 1


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "CONVO_OTEL__LOGS_ENDPOINT"])
def test_the_address_of_one_signal_is_enough_for_its_extra(tree: Tree, name: str) -> None:
    assert "lock-otel.txt names" in tree.serve(**{name: "http://c/v1"})


def test_two_extras_are_installed_one_after_the_other(tree: Tree) -> None:
    both = {"CONVO_RABBITMQ__URL": "amqp://localhost/", "CONVO_LOGS__STORE": "s3"}
    served = tree.serve(**both)
    assert "lock-rabbitmq.txt names" in served
    assert "lock-s3.txt names" in served
    assert tree.installs() == 2
    assert tree.serve(**both) == ""


def test_without_its_setting_an_extra_is_not_installed(tree: Tree) -> None:
    assert "Installing what lock.txt names" in tree.serve()
    assert tree.serve() == ""
    assert tree.installs() == 1


def test_a_failed_installation_shows_why_and_is_tried_again(tree: Tree) -> None:
    failed = tree.setup(pip="false")
    assert failed.returncode == 1
    assert "The installation failed" in failed.stderr
    assert tree.installs() == 1
    assert not (tree.root / ".venv" / ".convo-run").exists()


def test_an_installation_that_was_cut_short_is_made_anew(tree: Tree) -> None:
    with tree.start(pip="sleep 600") as process:
        while tree.installs() == 0:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tree.root / ".venv" / ".convo-run").exists()
    assert tree.setup().returncode == 0
    assert (tree.count("venv"), tree.count("pip")) == (2, 2)


def test_two_at_once_install_once(tree: Tree) -> None:
    both = [tree.start(pip="sleep 0.5") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert tree.installs() == 1
    assert sum("waiting for it" in text for text in said) == 1


@pytest.mark.parametrize(
    ("python", "says"),
    [
        (
            'case "$*" in *version_info*) exit 1 ;; --version) echo Python 3.9.2 ;; esac',
            "this machine has Python 3.9.2",
        ),
        (
            'case "$*" in *version_info*) exit 1 ;; --version) echo Python 3.14.0 ;; esac',
            "this machine has Python 3.14.0",
        ),
        (
            'case "$*" in *ensurepip*) exit 1 ;; *executable*) echo "$0" ;; *print*) echo 3.12 ;; esac',
            "bin/python3 has no venv or no ensurepip",
        ),
    ],
)
def test_a_python_that_does_not_serve_is_named_with_what_to_install_and_nothing_is_changed(
    tree: Tree, python: str, says: str
) -> None:
    tree.script(tree.path / "python3", f"#!/bin/sh\n{python}\n")
    refused = tree.setup()
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "sudo apt-get install python3" in refused.stderr
    assert "sudo dnf install" in refused.stderr
    assert "brew install" in refused.stderr
    assert sorted(path.name for path in tree.root.iterdir()) == ["scripts"]


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tree: Tree) -> None:
    # A file in the place of the folder: root may write anywhere else.
    (tree.root / ".venv").write_text("")
    refused = tree.setup()
    assert refused.returncode == 1
    assert f"{tree.root}/.venv, and that folder" in refused.stderr
    assert "Copy this checkout" in refused.stderr
    assert (tree.root / ".venv").read_text() == ""


def test_a_pip_that_is_broken_is_named_with_what_to_install(tree: Tree) -> None:
    broken = FAKE_PYTHON.replace('echo venv >>"$CALLS";', "echo 'ensurepip: no wheel'; exit 1;")
    tree.script(tree.path / "python3", broken)
    refused = tree.setup()
    assert refused.returncode == 1
    assert "could not make an environment" in refused.stderr
    assert "--reinstall python3." in refused.stderr


def test_an_installation_that_takes_long_shows_that_it_goes_on(tree: Tree) -> None:
    done = tree.setup(pip="sleep 5")
    assert done.returncode == 0
    assert ".." in done.stderr.replace("...", "")


def test_a_machine_without_python_is_told_so(tree: Tree) -> None:
    (tree.path / "python3").unlink()
    refused = tree.setup()
    assert refused.returncode == 1
    assert "convo needs Python 3.11, 3.12 or 3.13; this machine has no python3.\n" in refused.stderr


def test_the_locks_pin_every_package_with_hashes_and_agree() -> None:
    pins: list[dict[str, str]] = []
    for name in LOCKS:
        entries = (ROOT / "scripts" / name).read_text().replace("\\\n", " ").splitlines()
        named = [entry for entry in entries if entry and not entry.startswith((" ", "#"))]
        assert all("==" in entry and "--hash=sha256:" in entry for entry in named)
        pins.append(dict(entry.split()[0].split("==") for entry in named))
    run, *extras, dev = (pin.items() for pin in pins)
    assert all(run <= extra <= dev for extra in extras)
