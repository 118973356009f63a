"""Reading the files of ``../shared/cases`` as what ``cases.py`` runs: bodies, settings, answers of the fakes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from scripts.case_expectations import EXPECTED, Expected

_BYTES_BEFORE = re.compile(r"bytes ((?:[0-9A-F]{2} )+)before")


class Trial(Struct, frozen=True, kw_only=True):
    """One case as it is run: its name, the bodies to post, and the answer of its fake, if that is a second one."""

    name: str
    case: Mapping[str, Any]
    requests: tuple[Any, ...]
    answer: Any = None

    @property
    def expected(self) -> Expected:
        """Return what it should come to."""
        found = EXPECTED.get(self.name.partition(" ")[0], Expected())
        # Another answer of the memory service may hold the facts at once.
        return structs.replace(found, posts_max=None) if self.answer is not None else found


def read(folder: Path) -> list[Trial]:
    """Read all cases of a folder; a case with several answers is several trials."""
    trials: list[Trial] = []
    for path in sorted(folder.glob("*.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(case, list):
            trials += [
                Trial(
                    name=f"{path.stem} {sample['case']}",
                    case={"source": "IETF vCon", "expected": f"415 or 422 (once read: {sample['want']})"},
                    requests=(sample["vcon"],),
                )
                for sample in case
            ]
            continue
        also = case.get("also", [])
        requests = tuple(case["requests"] if "requests" in case else [case["request"]] if "request" in case else [])
        trials.append(Trial(name=case["name"], case=case, requests=requests))
        trials += [
            Trial(name=f"{case['name']} also {number}", case=case, requests=requests, answer=answer)
            for number, answer in enumerate(also if isinstance(also, list) else [also], 1)
        ]
    return trials


def body_of(request: Any, case: Mapping[str, Any]) -> bytes:
    """Write a body as its case says: as JSON, or as the very bytes that stand there."""
    if isinstance(request, str):
        return request.encode()
    if isinstance(request, dict) and "raw_base64" in request:
        return base64.b64decode(request["raw_base64"])
    if isinstance(request, dict) and "raw" in request:
        return str(request["raw"]).encode()
    before = _BYTES_BEFORE.search(case.get("request_note", ""))
    return bytes.fromhex(before[1] if before else "") + json.dumps(request, ensure_ascii=False).encode()


def settings_of(case: Mapping[str, Any], port: str) -> dict[str, str]:
    """Return a case's settings by name, ``PORT`` being the port of its fake."""
    return {
        name.removeprefix("CONVO_").lower().replace("__", "."): str(value).replace("PORT", port)
        for name, value in case.get("settings", {}).items()
    }
