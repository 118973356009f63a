"""The last release: its source out of the history of the repository, and a database as it left one.

``tests/releases/v0.1.0`` holds that database as SQL (``schema.sql``, ``rows.sql``), and what its server answered for
each conversation in it (``answers.json``): all made by that release, and never changed.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from tests.support.running import ROOT

NAMES = ("v0.1.0", "d3cca9b9a738fbb34ffe4e6046c02a5a4a984efa")
"""The tag of the release, and the commit of it for a clone without tags."""
FOLDER = ROOT / "tests" / "releases" / "v0.1.0"


def unpack_last_release(folder: Path) -> Path:
    """Write the release's source into ``folder`` and return it; skip the test where the history is not at hand."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not there to take the last release out of the history")
    for name in NAMES:
        made = subprocess.run([git, "-C", str(ROOT), "archive", name], capture_output=True, check=False)
        if made.returncode == 0:
            # By the program and not by tarfile: before Python 3.11.4 that knows no filter, and without one it warns.
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["tar", "-x", "-C", folder], input=made.stdout, check=True)
            return folder
    pytest.skip(f"the history of the repository does not hold {' or '.join(NAMES)} (a copy, or a shallow clone)")


def load_last_release(url: str) -> dict[str, Any]:
    """Fill an empty database as the release left one; return what its server answered of it."""

    async def load() -> None:
        connection = await asyncpg.connect(url)
        try:
            for name in ("schema.sql", "rows.sql"):
                await connection.execute((FOLDER / name).read_text("utf-8"))
        finally:
            await connection.close()  # noqa: ASYNC102  (asyncio, in a loop of its own)

    asyncio.run(load())
    answers: dict[str, Any] = msgspec.json.decode((FOLDER / "answers.json").read_bytes())
    return answers
