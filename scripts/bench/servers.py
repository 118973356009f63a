"""The servers that are measured: how each is started and stopped, and the environments of those that are not ours."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
from msgspec import Struct

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = HERE / "peers"
_ENVIRONMENTS = ROOT / ".bench"
# Below the range from which Linux takes the ports of outgoing connections.
_PORTS = range(19_000, 20_000)
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0


class Server(Struct, frozen=True, kw_only=True):
    """A server that answers: its URL, its process, and the file with what it said."""

    url: str
    process: subprocess.Popen[bytes]
    said: Path

    @property
    def pid(self) -> int:
        """Return the process's id."""
        return self.process.pid

    @property
    def port(self) -> int:
        """Return the port it listens on."""
        return int(self.url.rpartition(":")[2])


def free_port(host: str = "127.0.0.1") -> int:
    """Find a port of the benchmarks' own range that nobody listens on."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise SystemExit(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free")


@contextlib.contextmanager
def serving(  # noqa: PLR0913  (one process, with all that it needs)
    command: Sequence[str],
    url: str,
    said: Path,
    *,
    environment: Mapping[str, str] | None = None,
    ready: str = "/",
    folder: Path = ROOT,
) -> Iterator[Server]:
    """Run a server until the block ends; it is there once ``url`` + ``ready`` answers anything but 503."""
    with said.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=_environment(environment or {}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        _await(url + ready, process, said)
        yield Server(url=url, process=process, said=said)
    finally:
        stop(process)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONVO_", "PYTHONPATH"))}
    return {**kept, **given}


def stop(process: subprocess.Popen[bytes], seconds: float = _STOP_SECONDS) -> float | None:
    """Ask a process to stop, and see to it; return how many seconds it took, or None where it had to be killed."""
    started = time.monotonic()
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    return time.monotonic() - started


def _await(url: str, process: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5.0).status_code != 503:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} does not answer; the end of what it said:\n{said.read_text('utf-8', 'replace')[-2000:]}")


# --- ours


def convo(  # noqa: PLR0913  (one process, with all that it needs)
    folder: Path,
    database_url: str,
    settings: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    program: Sequence[str] = ("-m", "convo"),
    tree: Path = ROOT,
) -> contextlib.AbstractContextManager[Server]:
    """Run ``convo serve`` of a tree on a database of its own; ``settings`` are by name: "jobs.workers"."""
    port = free_port(host)
    given = {"database.url": database_url, "observe.log_level": "warning", **settings}
    variables = {f"CONVO_{name.replace('.', '__').upper()}": value for name, value in given.items()}
    arguments = ["serve", "--data-dir", str(folder / "convo"), "--host", host, "--port", str(port)]
    return serving(
        [sys.executable, *program, *arguments],
        f"http://{host}:{port}",
        folder / "convo.log",
        environment={**variables, "PYTHONPATH": str(tree)},
        ready="/readyz",
        folder=tree,
    )


def own(
    script: str, folder: Path, *arguments: str, host: str = "127.0.0.1"
) -> contextlib.AbstractContextManager[Server]:
    """Run one of the yardsticks beside this file, in our own environment: ``script HOST PORT …``."""
    port = free_port(host)
    command = [sys.executable, str(HERE / script), host, str(port), *arguments]
    return serving(command, f"http://{host}:{port}", folder / f"{script}.log", environment={"PYTHONPATH": str(ROOT)})


# --- peers


def peer(
    name: str,
    folder: Path,
    *arguments: str,
    host: str = "127.0.0.1",
    variables: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[Server]:
    """Run a peer's application in the environment of that peer: ``name.py PORT …``."""
    port = free_port(host)
    command = [str(python_of(name)), str(PEERS / f"{name}.py"), str(port), *arguments]
    said = folder / f"{'-'.join([name, *arguments[1:]])}.log"
    environment = {"PYTHONPATH": str(ROOT), **(variables or {})}
    return serving(command, f"http://{host}:{port}", said, environment=environment, ready="/openapi.json")


def python_of(name: str) -> Path:
    """Return the Python of a peer's own environment, made when it is not there as its requirements say."""
    wanted = (PEERS / f"{name}.txt").read_text()
    place = _ENVIRONMENTS / name
    stamp = place / "requirements"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the environment of {name} ...", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", "-r", str(PEERS / f"{name}.txt")], check=True)
        stamp.write_text(wanted)
    return place / "bin/python"


@contextlib.contextmanager
def peer_working(name: str, said: Path, *arguments: str) -> Iterator[None]:
    """Run the workers of a peer until the block ends."""
    command = [str(python_of(name)), str(PEERS / f"{name}.py"), "0", *arguments]
    with said.open("ab") as log:
        process = subprocess.Popen(
            command, env=_environment({"PYTHONPATH": str(ROOT)}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        stop(process)
