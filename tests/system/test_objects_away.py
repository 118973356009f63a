from __future__ import annotations

import pytest

from scripts.bench.objects_away import measure
from tests.conftest import roomy_folder
from tests.support.buckets import needs_s3


@needs_s3
@pytest.mark.long
def test_nothing_is_lost_and_nothing_erased_stays_where_s3_was_away_and_convo_was_killed() -> None:
    with roomy_folder() as folder:
        facts, found = measure(folder, per_second=20.0, first_seconds=8.0, away_seconds=8.0, kills=2)
    assert [one for one in found if one.count] == []
    assert facts["users erased"] == "9"
