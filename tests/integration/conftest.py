"""What the tests of the web share: one real convo on a database of its own, for as many of them as it can serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import _database
from tests.support.running import Running, running


@pytest.fixture(scope="session")
def convo(postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running convo; every test takes ids of its own."""
    folder: Path = tmp_path_factory.mktemp("convo")
    with _database(postgres_url, template) as url, running(folder, url) as started:
        yield started


@pytest.fixture(scope="session")
def client(convo: Running) -> Iterator[httpx.Client]:
    """A client of the running convo."""
    with httpx.Client(base_url=convo.url, timeout=30.0) as client:
        yield client
