from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.buckets import needs_s3, s3_server

pytestmark = needs_s3


@pytest.mark.parametrize("page", [2, 3, 1000])
def test_a_listing_of_several_pages_is_whole(tmp_path: Path, page: int) -> None:
    with s3_server(tmp_path / "s3") as server:
        bucket = server.made(versions=True)
        names = [f"logs/{number}" for number in range(5)]
        for name in names * 2:
            server.ask("PUT", f"/{bucket}/{name}", b"1")
        assert server.keys(bucket, page=page) == names
        versions = server.versions(bucket, page=page)
        assert (len(set(versions)), sorted(key for key, _ in versions)) == (10, sorted(names * 2))
