#!/usr/bin/env python3
"""Compares how long two trees take to decode, check and digest a body, in one process, turn by turn.

    scripts/bench/decode.py --other PATH      # a worktree of v0.1.0 or of any later version

Open it before and after a change of the accept path: accept.py shows no less than 5 %, because PostgreSQL is in it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
ROUNDS = 60
# So many bytes are decoded without a pause: long enough for the clock, short enough for both to see the same machine.
STRETCH_BYTES = 400_000
WORDS = {
    "English": ["hello", "why", "do", "dogs", "dig", "holes", "in", "my", "garden"],
    "Vietnamese": ["hello", "why", "do", "dogs", "dig", "Tôi", "thích"],
}
IDS = {
    "conversation_id": "abc-1",
    "user_id": "usr-1",
    "bot_id": "bot-1",
    "bot_name": "Pika",
    "start_time": "2026-03-02T08:00:00Z",
    "end_time": "2026-03-02T09:00:00Z",
}

Accepts = Callable[[bytes], object]


def main() -> None:
    """Print both trees' times for each body."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--other", type=Path, required=True, help="the tree to compare with")
    other = options.parse_args().other.resolve()
    old, new = accepting(other), accepting(HERE)
    # A process that has run for a while has a heap with holes.
    kept = [bytearray(200 + size % 300) for size in range(20_000)][::2]
    print(f"microseconds of processor time for one body: {other}, {HERE}, their ratio")
    for language, words in WORDS.items():
        for name, body in bodies(words).items():
            before, after = fastest(old, new, body)
            print(f"{language:11}{name:18}{len(body):7}{before:9.1f}{after:9.1f}{after / before:7.3f}")
    del kept


def accepting(tree: Path) -> Accepts:
    """Import a tree's own decoder; return what its accept path does with a body before it is stored."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "convo"]:
        del sys.modules[name]
    sys.path.insert(0, str(tree))
    try:
        decode, transcript, digest = (
            importlib.import_module(f"convo.conversation.{name}") for name in ("decode", "transcript", "digest")
        )
    finally:
        sys.path.pop(0)
    if not Path(str(decode.__file__)).is_relative_to(tree):
        raise SystemExit(f"{tree} has no convo.conversation.decode")
    return _accepting(decode, transcript, digest)


def _accepting(decode: Any, transcript: Any, digest: Any) -> Accepts:
    if hasattr(decode, "Received"):

        def accept(body: bytes) -> object:
            received = decode.decode(body)
            return transcript.check_log(received), digest.digest(received), received.sent.log

        return accept

    def accept_0_1(body: bytes) -> object:
        ended = decode.decode(body)
        checked = transcript.check(ended)
        log = transcript.encode_log(transcript.read_log(ended)[1])
        return checked, digest.digest(ended, log), log

    return accept_0_1


def bodies(words: list[str]) -> dict[str, bytes]:
    """Make bodies of 4 and of 45 KB in the formats that are sent most."""
    dice = random.Random(1)

    def text(_: int) -> str:
        return " ".join(dice.choices(words, k=20))

    def character(n: int) -> dict[str, object]:
        who = "USER" if n % 2 else "BOT"
        return {"character": f"{who}_RESPONSE_CONVERSATION", "content": text(n)}

    def role(n: int) -> dict[str, object]:
        return {"role": "user" if n % 2 else "assistant", "content": text(n)}

    def timed(n: int) -> dict[str, object]:
        at = f"2026-03-02T08:{n // 60 % 60:02}:{n % 60:02}Z"
        return {"speaker": "user" if n % 2 else "pika", "turn_id": n, "text": text(n), "timestamp": at}

    def parts(n: int) -> dict[str, object]:
        return {"role": "user" if n % 2 else "assistant", "content": [{"type": "text", "text": text(n)}]}

    def body(item: Callable[[int], dict[str, object]], items: int, **style: Any) -> bytes:
        sent = {**IDS, "conversation_logs": [item(n) for n in range(items)]}
        return json.dumps(sent, **{"ensure_ascii": False, **style}).encode()

    return {
        "4k": body(character, 26),
        "45k": body(character, 290),
        "4k compact": body(character, 26, separators=(",", ":")),
        "45k compact": body(character, 290, separators=(",", ":")),
        "4k role": body(role, 30),
        "45k role": body(role, 330),
        "4k speaker, time": body(timed, 24),
        "45k speaker, time": body(timed, 260),
        "45k parts": body(parts, 280),
        "45k ASCII": body(character, 280, ensure_ascii=True),
    }


def fastest(old: Accepts, new: Accepts, body: bytes) -> tuple[float, float]:
    """Return the microseconds of each in its fastest round; others on the machine only make a round slower."""
    count = max(1, STRETCH_BYTES // len(body))
    best = {old: float("inf"), new: float("inf")}
    for _ in range(ROUNDS):
        for accept in (old, new):
            began = time.process_time()
            for _ in range(count):
                accept(body)
            best[accept] = min(best[accept], time.process_time() - began)
    return best[old] / count * 1e6, best[new] / count * 1e6


if __name__ == "__main__":
    main()
