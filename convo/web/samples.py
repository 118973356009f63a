"""One sample of each answer and of each shape of log, for the description; it is no data of anybody."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from convo.alerts.formats import AlertView, EvidenceView, do
from convo.conversation.cause import Cause
from convo.conversation.model import Receipt, Turn
from convo.conversation.score import Weights, score
from convo.tasks import TaskView
from convo.web import answers

_ID = "c-by-character"
_USER = "user-17"
_BOT = "bot-pika"
_STARTED = datetime(2026, 3, 2, 8, 0, 0, tzinfo=UTC)
_ENDED = datetime(2026, 3, 2, 8, 4, 23, tzinfo=UTC)
_RECEIVED = datetime(2026, 3, 2, 8, 4, 24, 118000, tzinfo=UTC)
_DONE = datetime(2026, 3, 2, 8, 4, 24, 562000, tzinfo=UTC)
_DIGEST = "1:5f0c9a7e3b1d4286a0c7e9f21b3d58647a90cbe1f2348d5567b8091a2c3d4e5f"
_SCORE = score(exchanges=1, questions=1, new_memories=1, emotion="interesting", weights=Weights())

_LOGS: dict[str, list[dict[str, Any]]] = {
    "character": [
        {"character": "BOT_RESPONSE_CONVERSATION", "content": "Hi! What did you do today?"},
        {"character": "USER_RESPONSE_CONVERSATION", "content": "I walked my dog Bruno. Why do dogs dig holes?"},
    ],
    "speaker": [
        {"speaker": "pika", "turn_id": 1, "text": "Hi!", "timestamp": "2026-03-02T08:00:00Z"},
        {"speaker": "user", "turn_id": 2, "text": "Hello, my name is Lan.", "timestamp": "2026-03-02T08:00:04Z"},
    ],
    "role": [
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": [{"type": "text", "text": "Con chó nhà mình tên là Bruno."}]},
    ],
    "from": [{"from": "gpt", "value": "Hi!"}, {"from": "human", "value": "Hello."}],
}

SENT: dict[str, dict[str, Any]] = {
    name: {
        "conversation_id": f"c-by-{name}",
        "user_id": _USER,
        "bot_id": _BOT,
        "bot_name": "Pika",
        "bot_type": "TALK",
        "start_time": "2026-03-02T08:00:00Z",
        "end_time": "2026-03-02T08:04:23Z",
        "conversation_log": log,
    }
    for name, log in _LOGS.items()
}
"""A request of each accepted shape of log, by the key that tells the shapes apart."""

RECEIPT = Receipt(conversation_id=_ID, digest=_DIGEST, turns=2, received_at=_RECEIVED, links=answers.links(_ID))

CONVERSATION = answers.ConversationView(
    conversation_id=_ID,
    user_id=_USER,
    bot_id=_BOT,
    bot_name="Pika",
    bot_type="TALK",
    agent_tag=None,
    started_at=_STARTED,
    ended_at=_ENDED,
    received_at=_RECEIVED,
    digest=_DIGEST,
    turns=2,
    state="done",
    attempts=1,
    parts=answers.PartsView(
        questions=answers.QuestionsView(
            state="done", by="local/1", questions=("Why do dogs dig holes?",), updated_at=_DONE
        ),
        emotion=answers.EmotionView(state="done", by="local/1", emotion="interesting", updated_at=_DONE),
        memories=answers.FoundMemoriesView(
            state="done",
            by="local/1",
            memories=(answers.FoundMemory(text="has a dog called Bruno", kind="pet", operation="ADD"),),
            new=1,
            updated_at=_DONE,
        ),
    ),
    score=_SCORE,
    waits_for=None,
    parked_since=None,
    last_error=None,
    links=answers.links(_ID),
)

EXPLAINED = answers.ExplainView(
    conversation_id=_ID,
    state="ready",
    cause=Cause(
        kind="parked",
        sentence="parked: llm is out since 2026-03-02 08:04:25 (questions: llm: answered 503); no attempt is spent",
        since=_DONE,
    ),
    here="llm: its breaker is open in this process, the next probe is due in 42 s",
    ahead=None,
    done_per_second=0.0,
    seconds_left=None,
    attempts=0,
    crashes=0,
    runs=(
        answers.RunView(
            began_at=_RECEIVED,
            ended_at=_DONE,
            ending="park",
            by="host-1/5f0c",
            reason="questions: llm: answered 503",
            waits={"llm.questions": 0.031, "job.part": 0.002},
        ),
    ),
    links=answers.links(_ID),
)

LOG = answers.LogView(
    conversation_id=_ID,
    turns=(
        Turn(speaker="bot", text="Hi! What did you do today?", at=_STARTED),
        Turn(speaker="user", text="I walked my dog Bruno. Why do dogs dig holes?", at=_ENDED),
    ),
)

LIST = answers.ListView(
    conversations=(
        answers.ConversationSummary(
            conversation_id=_ID,
            user_id=_USER,
            bot_id=_BOT,
            started_at=_STARTED,
            ended_at=_ENDED,
            received_at=_RECEIVED,
            turns=2,
            state="done",
            attempts=1,
            score=_SCORE.value,
            last_error=None,
            links=answers.links(_ID),
        ),
    ),
    next_cursor=None,
)

RETRY = answers.RetryView(conversation_id=_ID, state="ready", attempts=0, links=answers.links(_ID))

ACKNOWLEDGED = answers.AcknowledgedView(conversation_id=_ID, state="dead", attempts=5, links=answers.links(_ID))

ALERTS = answers.AlertsView(
    active=(
        AlertView(
            type="DEAD_LETTER",
            component="jobs",
            level="CRITICAL",
            trigger="there are dead letters that nobody has reviewed",
            do=do("DEAD_LETTER"),
            raised_at=_DONE,
            count=1,
            told=1,
            evidence=EvidenceView(figures={"unreviewed": 1}, ids=(_ID,), explain=(f"/v1/conversations/{_ID}/explain",)),
            process="host/4f1c",
        ),
    ),
    recent=(),
    leads=True,
    sinks=("log", "webhook"),
)

ALERTS_TEST = answers.AlertsTestView(
    sinks=(
        answers.SinkTestView(sink="log", ok=True),
        answers.SinkTestView(sink="webhook", ok=False, detail="webhook: it answered 401"),
    )
)

RELATIONSHIP = answers.RelationshipView(
    user_id=_USER,
    score=_SCORE.value,
    level="stranger",
    conversations=1,
    last_emotion="interesting",
    bots=(
        answers.BotRelationship(
            bot_id=_BOT, score=_SCORE.value, level="stranger", conversations=1, last_emotion="interesting"
        ),
    ),
)

MEMORIES = answers.MemoriesView(
    user_id=_USER,
    memories=(answers.MemoryView(text="has a dog called Bruno", kind="pet", conversation_id=_ID, first_seen_at=_DONE),),
    next_cursor=None,
)

READY = answers.ReadyView(
    status="ready", dependencies={"database": answers.DependencyView(ok=True, seconds=0.0012, detail=None)}
)

TASKS = answers.TasksView(
    pid=4711,
    tasks=1,
    root=TaskView(
        name="convo.service.Service._keep_books",
        waits_in="trio/_timeouts.py:112 sleep",
        ours="convo/store/postgres.py:214 run",
        wait="db.ledger",
        wait_seconds=0.42,
        deadline="db.ledger",
        deadline_seconds=2.58,
        conversation_id=None,
        nurseries=(),
    ),
)

NOT_READY = answers.ReadyView(
    status="unavailable",
    dependencies={"database": answers.DependencyView(ok=False, seconds=None, detail="connection refused")},
    warnings=("fsync is off: a receipt may not outlive a crash of the database's machine",),
)
