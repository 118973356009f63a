from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import roomy_folder


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's user can reach, also when we are root."""
    with roomy_folder() as folder:
        folder.chmod(0o711)
        yield folder
