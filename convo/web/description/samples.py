"""One sample of each answer and of each shape of log, for the description; the data is invented."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from convo.alerts.formats import AlertView, EvidenceView, do
from convo.analysis.part import (
    EmotionView,
    FoundMemoriesView,
    FoundMemory,
    PartsView,
    QuestionsView,
    StoredFinding,
)
from convo.analysis.scoring import score
from convo.capacity.demands import CommitDemands, CpuDemands, Demands, PaceDemands
from convo.capacity.forecast import forecast_capacity
from convo.capacity.planning import StoredBytes, Surroundings
from convo.capacity.resources import Allowance
from convo.conversation.model import Memories, MemoryFact, Mood, Questions, Receipt, Turn
from convo.conversation.score import Weights
from convo.runtime.tasks import TaskView
from convo.store.jobs.cause import Cause
from convo.web.description import (
    batch_views,
    erasure_views,
    figure_views,
    service_views,
    session_views,
    views,
    webhook_views,
)

_ID = "c-by-character"
_USER = "user-17"
_BOT = "bot-pika"
_STARTED = datetime(2026, 3, 2, 8, 0, 0, tzinfo=UTC)
_ENDED = datetime(2026, 3, 2, 8, 4, 23, tzinfo=UTC)
_RECEIVED = datetime(2026, 3, 2, 8, 4, 24, 118000, tzinfo=UTC)
_DONE = datetime(2026, 3, 2, 8, 4, 24, 562000, tzinfo=UTC)
_DIGEST = "1:5f0c9a7e3b1d4286a0c7e9f21b3d58647a90cbe1f2348d5567b8091a2c3d4e5f"
_QUESTION = "Why do dogs dig holes?"
_FACT = MemoryFact(key="has a dog called bruno", text="has a dog called Bruno", kind="pet")
_SCORE = score(
    1,
    {
        "questions": StoredFinding(Questions(questions=(_QUESTION,))),
        "emotion": StoredFinding(Mood(emotion="interesting")),
        "memories": StoredFinding(Memories(facts=(_FACT,)), new_memories=1),
    },
    Weights(),
)

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
"""A request with each accepted shape of log, by the key that identifies the shape."""

BATCH_RECEIPT = batch_views.batch_receipt(
    Receipt(conversation_id=_ID, digest=_DIGEST, turns=2, received_at=_RECEIVED, links=views.links(_ID)), replayed=False
)

RECEIPT = Receipt(conversation_id=_ID, digest=_DIGEST, turns=2, received_at=_RECEIVED, links=views.links(_ID))

CONVERSATION = views.ConversationView(
    conversation_id=_ID,
    user_id=_USER,
    bot_id=_BOT,
    bot_name="Pika",
    bot_type="TALK",
    agent_tag=None,
    language="en-US",
    timezone="Asia/Ho_Chi_Minh",
    metadata={"campaign": "spring"},
    started_at=_STARTED,
    ended_at=_ENDED,
    received_at=_RECEIVED,
    digest=_DIGEST,
    turns=2,
    revision=1,
    state="done",
    attempts=1,
    parts=PartsView(
        questions=QuestionsView(state="done", by="local/2", questions=(_QUESTION,), updated_at=_DONE),
        emotion=EmotionView(state="done", by="local/2", emotion="interesting", updated_at=_DONE),
        memories=FoundMemoriesView(
            state="done",
            by="local/2",
            memories=(FoundMemory(text=_FACT.text, kind=_FACT.kind, operation="ADD"),),
            new=1,
            updated_at=_DONE,
        ),
    ),
    score=_SCORE,
    waits_for=None,
    parked_since=None,
    log_state="stored",
    last_error=None,
    links=views.links(_ID),
)

EXPLAINED = views.ExplainView(
    conversation_id=_ID,
    state="ready",
    cause=Cause(
        kind="parked",
        sentence="parked: it waits for llm since 2026-03-02 08:04:25 (questions: llm: answered 503); no attempt is"
        " spent",
        since=_DONE,
    ),
    here="llm: its breaker is open in this process, the next probe is due in 42 s",
    ahead=None,
    done_per_second=0.0,
    seconds_left=None,
    attempts=0,
    crashes=0,
    runs=(
        views.RunView(
            began_at=_RECEIVED,
            ended_at=_DONE,
            ending="park",
            by="5f0c9a7e3b1d4c2a8e6f0b1c2d3e4f5a.1c2d3e4f5a6b7c8d",
            reason="questions: llm: answered 503",
            waits={"llm.questions": 0.031, "job.part": 0.002},
            timeline=(
                views.WaitView(
                    name="llm.questions",
                    began_at=_RECEIVED + timedelta(seconds=0.012),
                    ended_at=_RECEIVED + timedelta(seconds=0.043),
                ),
            ),
        ),
    ),
    links=views.links(_ID),
)

LOG = views.LogView(
    conversation_id=_ID,
    turns=(
        Turn(speaker="bot", text="Hi! What did you do today?", at=_STARTED),
        Turn(speaker="user", text="I walked my dog Bruno. Why do dogs dig holes?", at=_ENDED),
    ),
    next_cursor=None,
)

LIST = views.ListView(
    conversations=(
        views.ConversationSummary(
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
            links=views.links(_ID),
        ),
    ),
    next_cursor=None,
)

REANALYSIS = views.ReanalysisView(conversation_id=_ID, parts=("emotion",), links=views.links(_ID))
RETRY = views.RetryView(conversation_id=_ID, state="ready", attempts=0, links=views.links(_ID))

DEAD_REASONS = views.DeadReasonsView(
    total=412,
    complete=True,
    reasons=(
        views.DeadReasonView(
            reason="questions: llm: answered 401",
            count=412,
            oldest_at=datetime(2026, 3, 2, 8, 0, tzinfo=UTC),
            newest_at=datetime(2026, 3, 2, 9, 30, tzinfo=UTC),
        ),
    ),
)

RETRIED = views.RetriedView(retried=50, dry_run=False, next_cursor="MTIz")

ACKNOWLEDGED = views.AcknowledgedView(conversation_id=_ID, state="dead", attempts=5, links=views.links(_ID))

ERASURE = erasure_views.ErasureView(
    kind="conversation",
    hmac="86a0c7e9f21b3d58647a90cbe1f2348d",
    begun_at=_DONE,
    ended_at=_DONE,
    dry_run=False,
    repeated=False,
    removed={"relationship": 1, "memory": 1, "conversation_log": 1, "outcome": 1, "conversation": 1},
    changed={"relationship": 1, "receipt": 1},
    told={"memory": 1},
    waiting={"memory": 1},
    remains=(
        erasure_views.RemainsView(
            where="backups",
            what="all of it; a restore erases it again by the list that each process keeps in its data folder",
            until="you delete those that were made before",
        ),
    ),
)
ERASURE_BEGUN = msgspec.structs.replace(ERASURE, kind="user", ended_at=None)

AUDIT_LOG = service_views.AuditLogView(
    entries=(
        service_views.AuditEntryView(
            number=4711,
            at=_DONE,
            action="log_read",
            key_id="5f0c9a7e3b1d",
            address="192.0.2.7",
            target_kind="conversation",
            target="86a0c7e9f21b3d58647a90cbe1f2348d",
            of_user="1a2c3d4e5f9a7e3b1d4286a0c7e9f21b",
            detail={"as": "sent"},
        ),
    ),
    next_cursor="NDcxMQ",
)

ALERTS = service_views.AlertsView(
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
            handbook="/docs/alerts#dead_letter",
            acknowledged_at=_DONE,
            acknowledged_by="anna",
        ),
    ),
    recent=(),
    leads=True,
    sinks=("log", "webhook"),
)

NEW_SESSION = session_views.NewSession(key="convo_5f0c9a7e3b1d_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
SESSION = session_views.SessionView(
    expires_at=_DONE,
    csrf="5f0c9a7e3b1d4286a0c7e9f21b3d58647a90cbe1f2348d5567b8091a2c3d4e5f",
    name="operator",
    key_id="5f0c9a7e3b1d",
    tenant="default",
    bots=None,
    scopes=("read", "write"),
)

FIGURES = figure_views.FiguresView(
    seconds=2.0,
    whole=True,
    process="5f0c9a7e.3b1d4286a0c7e9f2",
    processes=(
        figure_views.ProcessView(
            name="5f0c9a7e.3b1d4286a0c7e9f2",
            host="host",
            version="0.2.0",
            seen_seconds=1.4,
            leads=True,
            workers=8,
            working=3,
        ),
    ),
    dependencies=(
        figure_views.DependencyFigures(name="llm", state="closed", reason="", concurrency=8, in_flight=3, waiting=0),
    ),
    alerts=ALERTS.active,
    waits=(figure_views.WaitFigures(name="db.accept", count=5160, p50_ms=2.4, p99_ms=8.1),),
    forecast=figure_views.ForecastView(drained_in_seconds=42.0),
    queue=figure_views.QueueFigures(ready=120, delayed=2, parked=0, leased=3, dead=1),
    oldest_seconds=3.2,
    shared_age_seconds=0.01,
    samples=(
        figure_views.FigureSample(
            seq=4711,
            at=1772438400.0,
            accepts_per_s=86.0,
            accept_p50_ms=4.1,
            accept_p99_ms=11.5,
            refused_per_s=0.0,
            accepted_per_s=86.5,
            done_per_s=89.0,
            queue=122,
            oldest_s=3.2,
            loop_lag_ms=1.9,
            in_flight_calls=3,
        ),
    ),
)

ALERTS_TEST = service_views.AlertsTestView(
    sinks=(
        service_views.SinkTestView(sink="log", ok=True),
        service_views.SinkTestView(sink="webhook", ok=False, detail="webhook: answered 401"),
    )
)

ALERT_TO_ACKNOWLEDGE = service_views.AlertToAcknowledge(type="DEAD_LETTER", component="jobs", by="anna")

ALERTS_ACKNOWLEDGED = service_views.AcknowledgedAlertsView(
    alerts=(
        service_views.AcknowledgedAlertView(
            type="DEAD_LETTER", component="jobs", acknowledged_by="anna", acknowledged_at=_DONE
        ),
    )
)

RELATIONSHIP = views.RelationshipView(
    user_id=_USER,
    score=_SCORE.value,
    level="stranger",
    conversations=1,
    last_emotion="interesting",
    bots=(
        views.BotRelationship(
            bot_id=_BOT, score=_SCORE.value, level="stranger", conversations=1, last_emotion="interesting"
        ),
    ),
    next_cursor=None,
)

HISTORY = views.RelationshipHistoryView(
    user_id=_USER,
    bot_id=None,
    points=(
        views.HistoryPointView(
            at=_DONE,
            conversation_id=_ID,
            bot_id=_BOT,
            emotion="interesting",
            points=_SCORE.value,
            score=_SCORE.value,
            level="stranger",
        ),
    ),
    next_cursor=None,
)

MEMORIES = views.MemoriesView(
    user_id=_USER,
    memories=(views.MemoryView(text="has a dog called Bruno", kind="pet", conversation_id=_ID, first_seen_at=_DONE),),
    next_cursor=None,
)

READY = service_views.ReadyView(
    status="ready",
    dependencies={"database": service_views.DependencyView(ok=True, seconds=0.0012, age_seconds=0.7)},
)

CAPACITY = forecast_capacity(
    Demands(
        seconds=3_600.0,
        readings=721,
        accepted=36_000,
        analysed=36_000,
        process=CpuDemands(idle=0.02, accept=0.0002, commit=0.0006, analysis=0.003),
        machine=None,
        commit=CommitDemands(each=0.002, row=0.00005),
        pace=PaceDemands(analysis=0.003, accept=0.004),
        accepted_most=31.0,
        analysed_most=31.0,
        job_seconds=1.5,
        tokens_in=900.0,
        tokens_out=60.0,
        calls={"llm": 1.02},
        call_seconds={"llm": 1.4},
    ),
    Allowance(cores=2.0, batch_rows=256, workers=64, concurrency={"llm": 64}),
    Surroundings(
        processes=1,
        connections=30,
        connections_spare=97,
        stored=StoredBytes(conversations=2_000_000, bytes=9_800_000_000),
    ),
    load_ratio=0.31,
    conversations=1_000_000,
    target=50.0,
)

INDEX = service_views.IndexView(version="0.1.0", links={"docs": "/docs", "openapi": "/openapi.json"})

TASKS = service_views.TasksView(
    pid=4711,
    tasks=1,
    root=TaskView(
        name="convo.alerts.ledger_watch.watch_ledger",
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

NOT_READY = service_views.ReadyView(
    status="unavailable",
    dependencies={
        "database": service_views.DependencyView(ok=False, seconds=0.0009, age_seconds=1.3, detail="connection refused")
    },
    warnings=("fsync is off: a receipt may not outlive a crash of the database's machine",),
)

_EVENT_ID = "4711-0f3a92c4d5e6b7"
WEBHOOK = webhook_views.WebhookView(
    id="wh_5f0c9a7e3b1d4a20",
    url="https://receiver.example/convo",
    types=("conversation.analysed", "conversation.erased"),
    bots=(),
    state="active",
    reason=None,
    created_at=_DONE,
    failing_since=None,
    old_secret_until=None,
    confirmed=4711,
)
NEW_WEBHOOK = webhook_views.NewWebhook(url=WEBHOOK.url, types=WEBHOOK.types)
NEW_WEBHOOK_MADE = webhook_views.NewWebhookView(
    **msgspec.structs.asdict(WEBHOOK),
    secret="whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",  # noqa: S106  (invented)
)
WEBHOOK_CHANGE = webhook_views.SentChange(bots=("pika",))
WEBHOOKS = webhook_views.WebhooksView(webhooks=(WEBHOOK,))
WEBHOOK_DELETED = webhook_views.WebhookDeletedView(id=WEBHOOK.id)
WEBHOOK_PING = webhook_views.WebhookPingView(id=WEBHOOK.id, good=True, status=204, error=None, answer="", seconds=0.031)
ATTEMPTS = webhook_views.AttemptsView(
    attempts=(
        webhook_views.AttemptView(
            event_id=_EVENT_ID,
            at=_DONE,
            status=500,
            error="answered 500",
            answer="no room",
            seconds=0.031,
        ),
    ),
)
REPLAY = webhook_views.ReplayView(events=12)
