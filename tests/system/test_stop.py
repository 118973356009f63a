from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.support.running import running


def test_a_storm_of_sigterm_up_to_its_last_moment_is_an_orderly_stop(database: str, tmp_path: Path) -> None:
    with running(tmp_path, database) as convo:
        until = time.monotonic() + 40
        while convo.process.poll() is None and time.monotonic() < until:
            convo.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert convo.ended() == 0
