"""A real nginx or HAProxy in front of a server, with our sample configuration: only the addresses are other ones."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.running import ROOT

SAMPLES = ROOT / "scripts/deploy"
_STOP_SECONDS = 5.0


@contextmanager
def nginx(folder: Path, address: str) -> Iterator[str]:
    """Run nginx in front of the server at ``address`` (host and port); yield its URL."""
    program = _program("nginx")
    port = free_port()
    own = _sample("nginx.conf", {"127.0.0.1:30020": address, "listen 8080": f"listen 127.0.0.1:{port}"})
    folder.mkdir()
    (folder / "convo.conf").write_text(own)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        # Started by root, its workers run as a user who may not write here.
        f"{'user root;' if os.getuid() == 0 else ''}\n"
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{ access_log off;\n{paths} include {folder}/convo.conf; }}\n"
    )
    with _started([program, "-p", str(folder), "-c", str(main)], port) as url:
        yield url


@contextmanager
def haproxy(folder: Path, address: str) -> Iterator[str]:
    """Run HAProxy in front of the server at ``address`` (host and port); yield its URL."""
    program = _program("haproxy")
    port = free_port()
    folder.mkdir()
    main = folder / "haproxy.cfg"
    main.write_text(_sample("haproxy.cfg", {"127.0.0.1:30020": address, "bind :8080": f"bind 127.0.0.1:{port}"}))
    # -db: in the foreground, one process.
    with _started([program, "-db", "-f", str(main)], port) as url:
        yield url


def _program(name: str) -> str:
    # Debian keeps them where only root looks.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return found or pytest.skip(f"needs {name}")


def _sample(name: str, changes: dict[str, str]) -> str:
    text = (SAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@contextmanager
def _started(command: Sequence[str], port: int) -> Iterator[str]:
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _await_port(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            # HAProxy was once seen to wait for its connections for ever.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()


def _await_port(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    pytest.fail("the gateway does not listen")
