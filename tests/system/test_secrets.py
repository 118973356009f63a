"""No text of a conversation and no key may appear in logs, metrics or error answers."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from convo.web.description.routes import ROUTES
from tests.support.running import ended, query, running
from tests.system.test_main_job import fake_model

TEXT = "canary-text-4711"
MODEL_KEY = "sk-canary-model-4712"
FALLBACK_KEY = "sk-canary-fallback-4716"
FALLBACK_HEADER = "sk-canary-header-4717"
MEMORY_KEY = "sk-canary-memory-4713"
SINK = "canary-sink-4714"
WEBHOOK_SECRET = "whsec_" + "Y2FuYXJ5LXdlYmhvb2stNDcxNS1zZWNyZXQtbG9uZw=="
LOG = [
    {"character": "USER", "content": f"My name is {TEXT}. Is {TEXT} a secret?"},
    {"character": "BOT", "content": TEXT},
]
# The endpoints that may show it: the conversation itself, and what was found in it. The page's stream has no end.
NOT_READ = {"read_conversation", "read_log", "list_memories", "stream_live"}


@pytest.mark.parametrize(
    "fault", ["garbage", *(pytest.param(fault, marks=pytest.mark.long) for fault in ("stuck", "reset"))]
)
def test_no_text_of_a_conversation_and_no_key_is_told_anywhere(database: str, tmp_path: Path, fault: str) -> None:
    with fake_model(fault) as model:
        settings = {
            "llm.base_url": model,
            "llm.model": "m",
            "llm.api_key": MODEL_KEY,
            "llm.attempt_seconds": "0.3",
            "llm.fallbacks.backup.base_url": model,
            "llm.fallbacks.backup.api_key": FALLBACK_KEY,
            "llm.fallbacks.backup.headers": f'{{"x-token": "{FALLBACK_HEADER}"}}',
            "memory.url": model,
            "memory.api_key": MEMORY_KEY,
            "memory.attempt_seconds": "0.3",
            "alerts.slack_url": f"http://127.0.0.1:1/{SINK}",
            "alerts.webhook_url": f"http://127.0.0.1:1/{SINK}/2",
            "alerts.webhook_secret": WEBHOOK_SECRET,
            "observe.log_level": "debug",
            "observe.log_format": "json",
            "observe.access_log": "true",
            "llm.attempts": "1",
            "memory.attempts": "1",
            "jobs.attempts_max": "2",
        }
        with running(tmp_path, database, settings) as convo, httpx.Client(base_url=convo.url, timeout=30) as client:
            told = [_provoked(client, number) for number in range(4)]
            client.post("/v1/alerts/test")
            time.sleep(2.0)
            told += [_read(client, name) for name in sorted({one.name for one in ROUTES} - NOT_READ)]
            convo.signal(signal.SIGUSR1)
            time.sleep(0.5)
            convo.stop()
            told.append(convo.output)
    told += [str(row[0]) for row in query(database, "SELECT last_error FROM job UNION ALL SELECT error FROM part")]
    told += [str(row[0]) for row in query(database, "SELECT reason FROM run")]
    everything = "\n".join(told)
    assert "job_" in everything  # something was logged
    for secret in (TEXT, MODEL_KEY, FALLBACK_KEY, FALLBACK_HEADER, MEMORY_KEY, SINK, WEBHOOK_SECRET):
        assert secret not in everything, secret


def _provoked(client: httpx.Client, number: int) -> str:
    """Post conversations, a conflict and broken bodies; return the answers."""
    good = ended(f"canary-{number}", LOG)
    # A problem names the wrong value where that is a label, never where it is text.
    broken = [
        ended(f"canary-{number}", [{"character": "NOBODY", "content": TEXT}, {"x": 1}]),
        ended(f"canary-{number}", [{"character": "USER", "spoken_words": TEXT}]),
        ended(f"canary-{number}", []) | {"conversation_log": {"said": TEXT}},
    ]
    answers = [
        client.post("/v1/conversations/end", json=good),
        client.post("/v1/conversations/end", json=ended(f"canary-{number}", LOG[:1])),
        *(client.post("/v1/conversations/end", json=one) for one in broken),
        client.post("/v1/conversations/end", content=f'{{"conversation_id": "{TEXT}'.encode()),
        client.post("/v1/conversations/end", json=good, headers={"Authorization": f"Bearer {MODEL_KEY}"}),
    ]
    assert [answer.status_code for answer in answers[2:5]] == [422, 422, 422]
    return "\n".join(answer.text for answer in answers)


def _read(client: httpx.Client, name: str) -> str:
    operation = next(one for one in ROUTES if one.name == name)
    path = (
        operation.path.replace("{conversation_id}", "canary-0")
        .replace("{user_id}", "user-1")
        .replace("{webhook_id}", "wh_1")
        .replace("{topic}", "operating")
    )
    if operation.takes_conversation or operation.takes_batch:
        return ""
    return client.request(operation.method.upper(), path).text
