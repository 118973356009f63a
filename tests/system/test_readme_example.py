from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

from tests.support.running import ROOT, running

README = (ROOT / "README.md").read_text("utf-8")


def shown(pattern: str) -> str:
    found = re.search(pattern, README, re.DOTALL)
    assert found is not None, pattern
    return found[1]


def test_the_readme_s_example_is_answered_as_it_shows(database: str, tmp_path: Path) -> None:
    body = json.loads(shown(r"-d '(\{.*?\})'"))
    with running(tmp_path, database) as convo, httpx.Client(base_url=convo.url, timeout=30) as client:
        receipt = client.post("/v1/conversations/end", json=body)
        found = client.get(shown(r"curl -s 'http://127\.0\.0\.1:30020(\S+)'")).json()
    assert f"{receipt.status_code} {receipt.reason_phrase}" == shown(r"\nHTTP/1\.1 (.*?)\n")
    assert receipt.headers["location"] == shown(r"\nLocation: (\S+)\n")
    told = receipt.json()
    assert told["digest"].startswith(shown(r'"digest":"([^…"]+)…"'))
    assert told["turns"] == int(shown(r'"turns":(\d+)'))
    assert told["links"] == json.loads(shown(r'"links":(\{.*?\})'))
    assert found["state"] == shown(r'"state":"(\w+)"')
    assert found["parts"]["questions"]["questions"] == json.loads(shown(r'"questions":(\["[^\]]*\])'))
    assert found["parts"]["questions"]["by"] == shown(r'"by":"([^"]+)"')
    assert found["score"]["value"] == int(shown(r'"value":(\d+)'))
    assert found["score"]["final"] is True
    assert found["score"]["weights_version"] == shown(r'"weights_version":"([^"]+)"')
