"""What was erased does not come back with a backup, on the same host and on another one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import roomy_folder
from tests.support.running import ROOT, ended, environment, running

END = "/v1/conversations/end"


def convo(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "convo", *arguments]
    return subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def states(url: str, *conversation_ids: str) -> dict[str, int]:
    return {one: httpx.get(f"{url}/v1/conversations/{one}", timeout=10).status_code for one in conversation_ids}


def test_what_was_erased_after_the_backup_is_gone_from_what_is_restored(tmp_path: Path) -> None:
    backup = str(tmp_path / "convo.backup")
    with roomy_folder() as one, roomy_folder() as other:
        with running(one) as server:
            for talk, user in (("talk-1", "mia"), ("talk-2", "mia"), ("talk-3", "tom"), ("talk-4", "ada")):
                httpx.post(f"{server.url}{END}", json=ended(talk, user_id=user), timeout=10)
            assert convo("backup", backup, "--data-dir", str(one)).returncode == 0
            for path in ("/v1/conversations/talk-1", "/v1/users/tom"):
                assert httpx.delete(f"{server.url}{path}", timeout=10).status_code == 200
            (listed,) = one.glob("erasures-*")
            wait_for_lines(listed, 4)
            server.kill()
        restored = convo("restore", "--yes", "--json", backup, "--data-dir", str(one))
        assert restored.returncode == 0, restored.stderr
        assert json.loads(restored.stdout)["erased_again"] == {"conversations": 1, "users": 1, "memories": 0}
        with running(one) as server:
            assert states(server.url, "talk-1", "talk-2", "talk-3", "talk-4") == {
                "talk-1": 410,
                "talk-2": 200,
                "talk-3": 410,
                "talk-4": 200,
            }
            assert erased_in_audit_log(server.url) == ["conversation", "user"]
        # Another host has no list.
        refused = convo("restore", "--yes", backup, "--data-dir", str(other))
        assert refused.returncode != 0
        assert f"Copy the file {listed.name}" in refused.stderr
        shutil.copy(listed, other)
        assert convo("restore", "--yes", backup, "--data-dir", str(other)).returncode == 0
        with running(other) as server:
            assert states(server.url, "talk-1", "talk-2") == {"talk-1": 410, "talk-2": 200}
            again = httpx.post(f"{server.url}{END}", json=ended("talk-3", user_id="tom"), timeout=10)
            assert again.status_code == 410


def erased_in_audit_log(url: str) -> list[str]:
    entries: list[dict[str, Any]] = httpx.get(f"{url}/v1/audit-log?action=erase", timeout=10).json()["entries"]
    return sorted({entry["target_kind"] for entry in entries})


def wait_for_lines(file: Path, least: int) -> None:
    for _ in range(100):
        if len(file.read_text().splitlines()) >= least:
            return
        time.sleep(0.05)
    raise AssertionError(file.read_text())
