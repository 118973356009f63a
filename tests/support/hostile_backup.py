"""A backup that somebody has changed, so that a restore runs statements and commands of theirs."""

from __future__ import annotations

from pathlib import Path

import zstandard

from convo.store.backup import write_backup
from tests.support.asking import ask

_LENGTH = 400


async def hostile_backup(url: str, folder: Path, hidden: str) -> Path:
    """Make a table ``kept``, back it up with ``hidden`` inside the text of a view, and change the table from 7 to 8.

    The hidden text begins inside a literal, and ends inside one.
    """
    place = "A" * _LENGTH
    await ask(
        url,
        "CREATE TABLE kept AS SELECT 7 AS n",
        f"CREATE VIEW seen AS SELECT '{place}' AS t FROM kept",
    )
    file = folder / "hostile.backup"
    await write_backup(url, file)
    content = zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes())
    # The lengths of texts stand in the file, so they must stay.
    assert content.count(place.encode()) == 1
    changed = content.replace(place.encode(), hidden.ljust(_LENGTH).encode())
    file.write_bytes(zstandard.ZstdCompressor().compress(changed))
    await ask(url, "DROP VIEW seen", "UPDATE kept SET n = 8")
    return file
