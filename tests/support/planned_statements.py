"""Every statement of the product that reads: with values to run it with, or with the reason why it is not compared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

from convo.audit_actions import AUDIT_ACTIONS
from convo.conversation.identity import id_hash
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import LAST_KEY, WHOLE_DEFAULT, turn_bounds
from convo.store.conversations import Reader
from convo.store.listing import ListFilter
from convo.store.months import MONTH_SEQS
from convo.store.processes import LEAD_LOCK
from tests.support.found_statements import found_statements
from tests.support.many_rows import HEAVY, Sample

READS = re.compile(r"\bSELECT\b|^\s*(?:WITH\b.*?\(\s*)?(?:UPDATE|DELETE FROM)\s+[a-z_]+\s", re.MULTILINE | re.DOTALL)
Values = tuple[object, ...]
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ALLOWED = ["memory", "llm", ""]
FEW = 100
"""What the tests put in the place of a limit of thousands: small databases have fewer rows."""


def statements() -> dict[str, str]:
    """Find every statement that reads, by its name; a second one of a name has its number behind it."""
    found: dict[str, str] = {}
    for name, text in found_statements(READS):
        if text not in found.values():
            number = sum(known.partition(" ")[0] == name for known in found) + 1
            found[name if number == 1 else f"{name} {number}"] = text
    return found


def lists(sample: Sample, limit: int) -> dict[str, tuple[str, Values]]:
    """Return the statements of lists, with their values, as the reader makes them."""
    asked: list[dict[str, Any]] = [
        {},
        *({"user_id": user} for user in (sample.user, HEAVY)),
        *({"bot_id": bot} for bot in ("bot-3", "bot-rare")),
        *({"state": state} for state in ("ready", "leased", "done", "dead", "parked")),
        *({"user_id": HEAVY, "state": state} for state in ("ready", "leased", "done", "dead", "parked")),
        *({"bot_id": "bot-3", "state": state} for state in ("ready", "leased", "done", "dead", "parked")),
        *({"user_prefix": prefix} for prefix in (sample.user, HEAVY, "user-")),
        {"user_prefix": HEAVY, "state": "dead"},
        {"user_prefix": sample.user, "before": sample.done},
        {"user_id": HEAVY, "bot_id": "bot-rare"},
        {"user_id": HEAVY, "bot_id": "bot-nobody"},
        {"user_id": HEAVY, "bot_id": "bot-3", "state": "dead"},
        {"before": sample.done},
        {"user_id": HEAVY, "before": sample.done},
        *({"state": state, "before": sample.done} for state in ("done", "dead", "ready")),
    ]
    found: dict[str, tuple[str, Values]] = {}
    for one in asked:
        name = "list " + " ".join(f"{key}={'deep' if key == 'before' else value}" for key, value in one.items())
        name = name.replace(sample.user, "user-light")
        for number, (query, values) in enumerate(_caught(one, limit)):
            found[f"{name} {number or ''}".strip()] = query, values
    return found


def _caught(asked: Mapping[str, Any], limit: int) -> list[tuple[str, Values]]:
    caught: list[tuple[str, Values]] = []

    class Catching:
        async def fetch(self, query: str, *values: object) -> list[Any]:
            caught.append((query, values))
            # Whose ids begin so: one user, or more than are read one by one.
            begin = asked.get("user_prefix", "")
            users = [f"{begin}{number}" for number in range(20)] if begin.endswith("-") else [begin]
            return [{"user_id": user} for user in users] if "RECURSIVE" in query else []

        async def fetchval(self, query: str, *values: object) -> Any:
            caught.append((query, values))

        async def run(self, _: str, body: Callable[[Any], Any], **__: object) -> Any:
            return await body(self)

    reader = Reader(cast("Any", Catching()), cast("Any", None))

    # Nothing in it waits, so it ends at its first step.
    with suppress(StopIteration):
        reader.many(WHOLE_DEFAULT, ListFilter(**asked), limit).send(None)
    return caught


def hashed(number: int) -> bytes:
    """Return what stands for an HMAC in the audit log of ``many_rows``."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).digest()


CASES: Mapping[str, Values | Callable[[Sample], Values]] = {
    "convo.alerts.shared._VITALS": (CANARY_USER, FEW // 10),
    "convo.alerts.shared._DEAD_IDS": (CANARY_USER,),
    "convo.alerts.shared._WAITS_FOR": (),
    "convo.alerts.shared._WAITING_IDS": (["llm"],),
    "convo.alerts.shared._OLDEST_IDS": (),
    "convo.store.open_alerts._FORGET_OLD": (300.0,),
    "convo.store.open_alerts._MARK": (["DEAD_LETTER"], ["jobs"], [""], [0]),
    "convo.store.open_alerts._CLOSE": (["DEAD_LETTER"], ["jobs"], [""]),
    "convo.store.open_alerts._ACKNOWLEDGE": ("DEAD_LETTER", None, 300.0, "", None),
    "convo.store.open_alerts._OF_TYPE": ("DEAD_LETTER", None, 300.0),
    "convo.store.open_alerts._LIST": (300.0,),
    "convo.store.open_alerts._OPEN": ("DEAD_LETTER", "jobs", "", 300.0),
    **dict.fromkeys(
        [f"convo.store.audit._BY_SEQ{number}" for number in ("", *(f" {n}" for n in range(2, 19)))],
        lambda s: (s.done - 5 * FEW, s.done),
    ),
    "convo.store.audit_pages._ALL": lambda s: (0, s.done, 11),
    "convo.store.audit_pages._ALL_OF_TENANT": (1, 1 << 62, 11),
    "convo.store.audit_pages._BY_VALUE": lambda s: (0, 1 << 62, 11, hashed(s.done)),
    "convo.store.audit_pages._BY_VALUE 2": lambda s: (0, 1 << 62, 11, hashed(s.done % 100)),
    "convo.store.audit_pages._BY_VALUE 3": (0, 1 << 62, 11, "5f0c9a7e3b1d"),
    **{
        f"convo.store.audit_pages._BY_ACTION{number}": (0, 1 << 62, 11)
        for number in ("", *(f" {number}" for number in range(2, len(AUDIT_ACTIONS))))
    },
    **dict.fromkeys([f"convo.store.audit._WHOLE{number}" for number in ("", " 2")], ()),
    "convo.store.event_numbers._LOOK": (),
    "convo.store.event_numbers._NUMBER": lambda s: (s.newest, FEW // 10),
    "convo.store.event_expiry._EXPIRE": (7, FEW // 10),
    "convo.store.event_expiry._EXPIRE_ATTEMPTS": (7, FEW // 10),
    "convo.store.event_expiry._EXPIRING": (1.0,),
    "convo.store.deliveries._PAGE": lambda s: (s.newest // 2, FEW // 10, ["conversation.accepted"], [], 0),
    "convo.store.costs._STORE": lambda s: (
        *([s.done], [1], ["questions"], ["m/1"], [700], [20], [0], [5_000]),
        [s.done],
    ),
    "convo.store.costs._READ_DAY": (),
    "convo.store.costs._OF_CONVERSATION": lambda s: (s.done,),
    "convo.store.costs._OF_RERUN": (1,),
    "convo.store.costs.ERASE_COSTS": lambda s: ([s.done],),
    "convo.store.couriers._PAGE": lambda s: (s.newest // 2, FEW // 10, ["conversation.accepted"]),
    "convo.store.event_stream._OF_TYPES": lambda s: (
        *(s.newest // 2, s.newest // 2 + FEW, ["conversation.accepted"], FEW // 10),
    ),
    "convo.store.event_stream._UNTIL": lambda s: (s.newest // 2, s.newest, 10_000),
    "convo.store.event_stream._COUNTS": lambda s: (s.newest // 2, s.newest // 2 + FEW, [0], ["bot-3"]),
    "convo.store.event_stream._MISSED": lambda s: (s.newest // 2, FEW // 10, 0, ["bot-3"], [], s.user, None),
    "convo.store.deliveries._ASIDE": ("wh_2", [1, 2, 3], FEW // 10),
    "convo.store.deliveries._ERASED": lambda s: ([s.done],),
    "convo.store.deliveries._CONFIRM_ASIDE": lambda s: ("wh_2", [s.done], [_EPOCH]),
    "convo.store.deliveries._TRY_LATER": lambda s: ("wh_2", [s.done], 60.0, 3600.0),
    "convo.store.deliveries._GIVE_UP": lambda s: ("wh_2", [s.done], 10),
    "convo.store.webhooks._ATTEMPTS": lambda s: ("wh_1", s.newest, 11),
    "convo.store.webhooks._RESEND": lambda s: ("wh_1", s.done, s.done, 0),
    "convo.store.webhooks._REPLAY": lambda s: (
        *("wh_1", s.newest // 2, s.newest - 100, FEW // 10, None, None, None),
        *([], [], 0),
    ),
    "convo.store.webhooks._IS_OLD": lambda s: (s.done, _EPOCH),
    "convo.store.outbox._APPEND": lambda s: (["conversation.dead"], [s.done], ["{}"]),
    "convo.store.outbox._APPEND_ERASED": lambda s: ([s.done], ["x"], 0),
    "convo.store.outbox._TOTALS": lambda s: ([0], [s.user]),
    "convo.store.outbox.ERASE_EVENTS": lambda s: ([s.done],),
    "convo.store.outbox.ERASE_USER_EVENTS": lambda s: (s.user, 0, _EPOCH),
    "convo.erasure._POINTS": lambda s: ([s.done],),
    "convo.erasure._STORED_AMONG": lambda s: ([s.done],),
    "convo.erase_again._REVISED": lambda s: ([s.done],),
    "convo.retention._AWAITED_AMONG": lambda s: ([s.done],),
    "convo.store.lookup.receipt_hashes": lambda s: (id_hash(s.conversation_id),),
    "convo.store.lookup.OF_HASHES": lambda s: ([id_hash(s.conversation_id)],),
    "convo.store.intake.ERASE_PREFIXES": lambda s: ([s.done],),
    "convo.store.jobs.settle._TAKE_PLACES": lambda s: ([s.done],),
    "convo.store.jobs.memories._FIRST_SEEN_IN": lambda s: ([s.user], [0], [s.done]),
    "convo.store.jobs.memories._CARRY_OVER": lambda s: ([s.user], [0], [s.done], [s.newest]),
    "convo.store.jobs.part_jobs.ERASE_PART_JOB": lambda s: ([s.done], "tier"),
    "convo.store.jobs.revisions._NEWEST": lambda s: ([id_hash(s.conversation_id)],),
    "convo.store.jobs.revisions._ERASED": lambda s: ([s.done], [hashed(s.done)], [hashed(s.done)]),
    "convo.store.jobs.revisions._RENAME": lambda s: ([s.done], [id_hash(s.conversation_id)], [b"?"]),
    "convo.store.jobs.revisions._JOBS": lambda s: ([s.ready],),
    "convo.store.jobs.revisions._SUPERSEDE": lambda s: ([s.ready],),
    "convo.store.jobs.revisions._MARK": lambda s: ([s.done], [0], [None]),
    "convo.store.jobs.revisions._END_PART_JOBS": lambda s: ([s.done],),
    "convo.store.jobs.revisions._KNOWN_LEAST": (),
    "convo.store.jobs.promotion._SEQS": (1, 0, FEW // 10),
    "convo.store.jobs.promotion._DONE": (1, 0, FEW // 10),
    "convo.store.jobs.promotion._LOCKED": lambda s: (1, [s.done], "tier"),
    "convo.store.jobs.promotion._CHANGE": lambda s: ([s.done], [1], ["happy"], [b"{}"]),
    "convo.store.jobs.promotion._PROMOTED": lambda s: ([s.done], "tier", [1]),
    "convo.store.jobs.promotion._LOCK_RELATIONSHIPS": lambda s: ([s.user], ["bot-3"], [0]),
    "convo.store.jobs.promotion._RELATE": lambda s: ([s.user], ["bot-3"], [0], [1]),
    "convo.store.jobs.promotion._FEEL": lambda s: ([s.done], ["happy"]),
    "convo.store.jobs.reruns._PAGE": lambda s: (s.done, s.newest, FEW // 10, "tier"),
    "convo.store.jobs.reruns._BOUNDS": lambda s: (s.over_at, 10),
    "convo.store.jobs.reruns._LIVE_WAITS": (0.2,),
    "convo.store.jobs.reruns._NEWEST": ("tier",),
    "convo.store.jobs.reruns._COUNTS": (1,),
    "convo.store.jobs.reruns._LOCK": (1,),
    "convo.store.jobs.reruns._SPEND": (1, 1.0),
    "convo.store.jobs.reruns._END": (1,),
    "convo.store.jobs.reruns._END_OTHERS": ("tier", "p1:0"),
    "convo.store.jobs.reruns._GO_ON": ("tier", 0.0),
    "convo.store.jobs.reruns._PAUSE": ("tier",),
    "convo.store.jobs.reruns._LOOKED_AT": (1, 1, 1),
    "convo.store.jobs.reruns._ADOPT": lambda s: ([s.done], "tier"),
    "convo.store.jobs.reruns._TAKE": (1, FEW // 10, 30.0),
    "convo.store.jobs.reruns._ANY_WAITING": (1,),
    "convo.store.jobs.reruns._DROP_ORPHANS": (1,),
    "convo.store.jobs.reruns._RENEW": lambda s: ([s.done], ["tier"], [1], 30.0),
    "convo.store.jobs.reruns._DONE": lambda s: (s.done, "tier", 1, "m", "{}", 0.1),
    "convo.store.jobs.reruns._FAILED": lambda s: (s.done, "tier", 1, "m", "why", None, 1),
    "convo.store.jobs.single_reruns._FIND": lambda s: (id_hash(s.conversation_id), 0, None),
    "convo.store.jobs.single_reruns._END_STALE": ("tier", 60.0),
    "convo.store.jobs.single_reruns._FAILURE": (1,),
    "convo.store.jobs.single_reruns._FORGET": ([1],),
    "convo.store.jobs.reruns.ERASE_CANDIDATES": lambda s: ([s.done],),
    "convo.erase._ENDED_CANARIES": (CANARY_USER, ["x"], 500),
    "convo.user_erasure._EXPIRED": lambda s: (hashed(s.done), datetime(2100, 1, 1, tzinfo=UTC), 1000),
    "convo.user_erasure._COUNT_EXPIRED": lambda s: (hashed(s.done),),
    "convo.erase_again._ANY": (),
    "convo.erase_again._READ": (),
    "convo.erase_again._BROKEN_OFF": (60.0,),
    "convo.erase_again._LAST_SEQ": (),
    "convo.store.erasures._LOCKED": (b"?",),
    "convo.store.erasures._TOLD": (b"?", "{}"),
    "convo.store.erasure_list._POSITION": (),
    "convo.store.erasure_list._PAGE": (b"", 10),
    "convo.store.erasure_list._MEMORY_PAGE": (b"", b"", 10),
    "convo.store.erasure_list._SINCE": ("1000000000",),
    "convo.store.reaching.OF_REMOTE": ("default/user-1",),
    "convo.store.untold._ANY_STORED": (HEAVY, 0),
    "convo.store.untold._STORED": lambda s: (s.user, 0, "", [s.conversation_id]),
    "convo.store.untold._TAKE": ("memory", 60.0),
    "convo.store.untold._WAITING": (10_000,),
    "convo.store.untold._WAITING_FOR": (b"?",),
    "convo.store.untold._DELETE": (1,),
    "convo.store.untold._FAILED": (1, "why", 5.0),
    "convo.store.untold._CONVERSATIONS": lambda s: (b"?", "memory", [s.done]),
    "convo.store.untold._USER": lambda s: (b"?", "memory", s.user, [s.done], 0),
    "convo.store.log_objects._WAITING": lambda s: (s.done, FEW // 10),
    "convo.store.log_objects._SURVEY": lambda s: (s.done, FEW // 10),
    "convo.store.log_objects._MOVING": lambda s: ([s.done], s.done, s.done),
    "convo.store.log_objects._REFER": lambda s: ([s.done], ["x:0:1:1:00"], s.done, s.done),
    "convo.store.log_erasing._REFS": lambda s: ([s.done], "x:", s.done, s.done),
    "convo.store.log_erasing._REFER_ANEW": lambda s: ([s.done], ["y:0:1:1:00"], "x:", s.done, s.done),
    "convo.retention._USERS": lambda s: ([s.done],),
    "convo.retention._LIVE_WAITS": (),
    "convo.retention._CONVERSATIONS": lambda s: (s.over_at, 24, s.done, FEW // 10),
    "convo.retention._MEMORIES": lambda s: (s.rows // 50, 24, FEW // 10),
    "convo.retention._AUDIT_ROWS": lambda s: (s.rows // 2, 24, FEW // 10),
    "convo.retention._EXPIRE_RECEIPTS": lambda s: ([s.done], [b"?"]),
    "convo.retention._HOLD_RELATIONSHIPS": lambda s: ([s.done],),
    "convo.retention._NOTE_SCORES": lambda s: ([s.done],),
    "convo.retention._MARK_LOGS": lambda s: ([s.done],),
    "convo.retention._COUNT_RUNS": lambda s: ([s.done], [_EPOCH]),
    "convo.retention._RETIRE_RUNS": lambda s: ([s.done], [_EPOCH]),
    "convo.retention._RETIRE_MEMORIES": lambda s: ([s.rows // 50], [s.done]),
    "convo.retention._RETIRE_AUDIT_ROWS": lambda s: ([s.rows // 2],),
    "convo.retention_report._OLDEST": (),
    "convo.retention_months._LOOK": (0, MONTH_SEQS, 24),
    "convo.retention_months._NOT_ANALYSED": (0, MONTH_SEQS, FEW // 10),
    "convo.store.months._STANDS": (),
    "convo.erase._USERS": lambda s: ([s.done],),
    "convo.erase._LOCK_RELATIONSHIPS": lambda s: ([s.user], 0),
    "convo.erasure._STORED": lambda s: (id_hash(s.conversation_id),),
    "convo.user_erasure._LEFT": lambda s: (s.user, _EPOCH, [s.done], 0),
    "convo.erasure._LOCK_RECEIPTS": lambda s: ([s.done],),
    "convo.erasure._REACHED": lambda s: (id_hash(s.conversation_id), 0, None),
    "convo.erasure._USER": lambda s: (s.done,),
    "convo.user_erasure._ANY_LEFT": (HEAVY, 0, b"?"),
    "convo.user_erasure._BATCH_AFTER": (HEAVY, 0, FEW // 10, 0),
    "convo.store.erasures._ANY_ERASED": (),
    "convo.store.erasures._AMONG": lambda s: ([hashed(s.done)],),
    "convo.store.erasures._NOTED": lambda s: (hashed(s.done),),
    "convo.store.erasures._COUNT": lambda s: (hashed(s.done), "{}", True, None),
    "convo.store.conversations._ONE": lambda s: (id_hash(s.conversation_id), 0, None),
    "convo.store.conversations._TIMES": lambda s: (id_hash(s.conversation_id), 0, None),
    "convo.store.conversations._RELATIONSHIP": (HEAVY, None, 51, 0),
    "convo.store.conversations._RELATIONSHIP 2": (HEAVY, None, 51, 0, ["bot-3"]),
    "convo.store.relationship_history._PAGE": lambda s: (HEAVY, 0, None, None, s.done, 51, True),
    "convo.store.conversations._MEMORIES": (HEAVY, None, 51, 0, None),
    "convo.store.conversations._ANY_OF_USER": (HEAVY, 0, None),
    "convo.store.intake._KNOWN": lambda s: ([id_hash(s.conversation_id)],),
    "convo.store.intake.ERASE_CONVERSATIONS": lambda s: ([s.done],),
    "convo.store.intake.ERASE_RECEIPTS": lambda s: ([s.done],),
    "convo.store.intake.ERASE_FROM_RECEIPTS": lambda s: ([s.done], [hashed(s.done)]),
    "convo.store.jobs.counts._COUNT": (FEW // 10,),
    "convo.store.jobs.counts._OLDEST": (),
    "convo.store.shared_figures._FIGURES": (FEW // 10, LEAD_LOCK),
    "convo.store.jobs.crashes._HOLDERS": ("p1", "p1.y"),
    "convo.store.jobs.crashes._BLAME_LEASED": (["p1.x"],),
    "convo.store.jobs.crashes._BLAME_RESCUED": (["p0.w"], [_EPOCH]),
    "convo.store.jobs.crashes._GIVE_BACK": ("p0.w",),
    "convo.store.jobs.dead_letters._RETRY": lambda s: (id_hash(s.conversation_id), 0, None),
    "convo.store.jobs.dead_letters._ACKNOWLEDGE": lambda s: (id_hash(s.conversation_id), 0, None),
    "convo.store.jobs.dead_letters._STATE": lambda s: (id_hash(s.conversation_id), 0, None),
    **{
        f"convo.store.jobs.dead_letters.{name}{form}": values
        for form, tenant in (("", 0), (" 2", 1))
        for name, values in (
            ("_GROUP", (None, None, HEAVY, None, tenant, None, FEW // 10)),
            ("_BEYOND", (tenant, FEW // 10)),
            ("_WANTED", (None, None, HEAVY, None, tenant, None, 0, FEW // 10, FEW // 10)),
        )
    },
    "convo.store.jobs.dead_letters._RETRY_MANY": lambda s: ([s.dead],),
    "convo.store.jobs.erased_memories._ANY": (),
    "convo.store.jobs.erased_memories._OF_USERS": lambda s: ([hashed(s.done)],),
    "convo.store.jobs.explain._ROW": lambda s: (id_hash(s.ready_id), 0, None),
    "convo.store.jobs.explain._RUNS": lambda s: (s.done, 100),
    "convo.store.jobs.explain._AHEAD": lambda s: (s.ready, FEW, *turn_bounds(s.user), 0),
    "convo.store.jobs.explain._RATE": (60.0, 0),
    "convo.store.jobs.fair_lease._COME_DUE": (FEW // 10, _EPOCH),
    "convo.store.jobs.fair_lease._LEASE": (8, "p1.x", 30.0, "user-5", ALLOWED, 8, "", LAST_KEY),
    "convo.store.jobs.fair_lease._LEASE_KNOWN": lambda s: (
        *(8, "p1.x", 30.0, 8, [s.user, HEAVY], [1, 2], [1, 2], ["", ""], [_EPOCH, _EPOCH], [0, 0]),
    ),
    "convo.store.jobs.fair_lease._TURNS": (8, "", ALLOWED),
    "convo.store.jobs.giving_back._GIVE_BACK": lambda s: ([s.ready], [1], "llm", 5),
    "convo.store.jobs.known_queues._FIRST": (ALLOWED, FEW // 10),
    "convo.store.jobs.known_queues._NEW": (_EPOCH, 0, FEW // 10),
    "convo.store.jobs.lease._HOLD": lambda s: (list(s.leased), list(s.tokens)),
    "convo.store.jobs.memories._KNOWN": lambda s: ([s.done], [HEAVY], ["key-12"], [0]),
    "convo.store.jobs.memories._MERGE": lambda s: (
        *([HEAVY], ["key-12"], ["like"], ["Likes tea"]),
        *([s.newest], [s.newest], [s.newest], [False], [0]),
    ),
    "convo.store.jobs.brought._BRING": lambda s: (list(s.leased), list(s.leased), 65_536),
    "convo.store.jobs.parts._FOUND": lambda s: ([s.done],),
    "convo.store.jobs.parts.ERASE_PARTS": lambda s: ([s.done],),
    "convo.store.jobs.rescue._RESCUE": (30.0, 1000),
    "convo.store.jobs.rescue._RELEASE_OWNED": ("p1.x",),
    "convo.store.jobs.rescue._DUE_AGAIN": (60.0, 1000),
    "convo.store.jobs.rescue._BURY_POISON": (5, 1000),
    "convo.store.jobs.rescue._GIVE_UP": (1e9, 1000),
    "convo.store.jobs.runs.ERASE_RUNS": lambda s: ([s.done],),
    "convo.store.jobs.runs._NOTE": lambda s: (
        *(list(s.leased), "fail", None, ["{}"] * len(s.leased), [None] * len(s.leased)),
    ),
    "convo.store.outcomes._LOCK_OPEN": lambda s: ([s.done, s.dead],),
    "convo.store.outcomes._LOCK_DONE": lambda s: ([s.done, s.dead],),
    "convo.store.outcomes._HOLD_ENDED": lambda s: ([s.done, s.dead],),
    "convo.store.outcomes._HOLD_ENDED 2": lambda s: ([s.done, s.dead],),
    "convo.store.outcomes.ERASE_OUTCOMES": lambda s: ([s.done],),
    "convo.store.jobs.settle._MOVE": lambda s: (list(s.leased), *([one] * 8 for one in (1, "sad", b"{}"))),
    "convo.store.jobs.settle._RELATE": lambda s: ([HEAVY], ["bot-3"], [1], [1], ["sad"], [s.newest], [0]),
    "convo.store.jobs.settle.ERASE_RELATIONSHIPS": lambda s: ([s.done],),
    "convo.store.jobs.settle.ERASE_RELATIONSHIPS 2": lambda s: ([s.done],),
    "convo.store.jobs.settle.ERASE_RELATIONSHIPS 3": lambda s: ([s.done],),
    "convo.store.jobs.suspects._HAS_SUSPECTS": (ALLOWED,),
    "convo.store.jobs.suspects._CLAIM": ("p1.x", 30.0),
    "convo.store.jobs.suspects._LEASE_SUSPECT": (1, "p2.x", 30.0, ALLOWED),
    "convo.store.jobs.table._RENEW": lambda s: (list(s.leased), list(s.tokens), 30.0),
    "convo.store.jobs.table._FAIL": lambda s: (s.leased[0], "why", 5.0),
    "convo.store.jobs.table._BURY": lambda s: (s.leased[0], "why"),
    "convo.store.jobs.table._PARK": lambda s: (s.leased[0], "llm", "why", 5.0),
    "convo.store.jobs.table._RETURN": lambda s: (list(s.leased),),
    "convo.store.jobs.table._RELEASE": lambda s: (s.leased[0], 0.0),
    "convo.store.jobs.table.ERASE_JOBS": lambda s: ([s.done],),
    "convo.store.owed_sets._LOAD": ([1],),
    "convo.store.jobs.part_jobs._TAKE": (["llm", ""], 10, 30.0),
    "convo.store.jobs.part_jobs._DONE": lambda s: (s.done, "tier", 1, "m/1", "{}"),
    "convo.store.jobs.part_jobs._FAILED": lambda s: (s.done, "tier", 1, "m/1", "why", 1.0, 1),
    "convo.store.jobs.part_jobs._GIVE_UP": (604_800.0, "why", FEW),
    "convo.store.jobs.part_jobs.ERASE_PART_JOBS": lambda s: ([s.done],),
    "convo.store.conversations._PART_JOBS": lambda s: (s.done,),
    "convo.store.jobs.explain._LEFT": lambda s: (s.done,),
    "convo.store.jobs.tickets._REMOVE": lambda s: ([s.leased[0]], ["memories"]),
    "convo.store.jobs.tickets.ERASE_TICKETS": lambda s: ([s.done],),
    "convo.store.jobs.watch._ENDED": lambda s: ([s.done, s.ready],),
    "convo.store.ledger._BOOK": lambda s: ("done", [s.done], 1),
    "convo.store.ledger.BOOK_RETIRED": lambda s: ([s.done],),
    "convo.store.ledger.ERASE_BOOKED": lambda s: ([s.done],),
    "convo.store.ledger.totals": (),
    "convo.store.logs._READ": lambda s: (s.done,),
    "convo.store.logs.LogStore.ERASE": lambda s: ([s.done],),
    "convo.store.lookup._RECEIPT": lambda s: (id_hash(s.conversation_id),),
    "convo.store.receipts._unknown": lambda s: ([id_hash(s.conversation_id)],),
}
"""By name, what a statement is run with: about the same things in a small database and in a large one."""

NOT_COMPARED: Mapping[str, str] = {
    "convo.store.audit_pages._ALL_OF_DEFAULT": "its index comes with a second tenant: test_tenant_keeper.py",
    "convo.store.outcomes._STORE_MOVED": "it writes what it is given",
    "convo.store.imported._ADD": "it writes, by the relationships' own key",
    "convo.store.intake._PREFIXES": "a piece of accept's",
    "convo.retention._AWAITED": "a piece of others",
    "convo.store.jobs.promotion._COLUMNS": "a piece of others",
    "convo.store.jobs.reruns._AFTER": "a piece of others",
    "convo.store.jobs.reruns.ADD_CANDIDATES": "it writes, by its table's own key",
    "convo.store.jobs.reruns._BEGIN": "a command counts what it begins, once",
    "convo.store.owed_sets._STORE": "it writes, by its table's own key",
    "convo.store.jobs.part_jobs._ADD": "it writes, by its table's own key",
    "convo.store.imported._NOTE": "it writes, by its table's own key",
    "convo.store.table_sums._SUMS": "every row, while an embedded server is moved to another major version",
    **dict.fromkeys(
        (
            "convo.alerts.shared.lead",
            "convo.store.audit_queue._DRAW",
            "convo.store.outbox._LOCK_LEVELS",
            "convo.store.outbox._APPEND_OF_USERS",
            "convo.store.deliveries._LOG",
            "convo.store.deliveries._STEP_ASIDE",
            "convo.commands.database._refuse_unserved",
            "convo.embedded.access._superuser_name",
            "convo.store.contents.read_contents",
            "convo.store.contents.read_contents 2",
            "convo.store.conversations.ping",
            "convo.store.history._SHARE",
            "convo.store.jobs.memories._LOCK_USERS",
            "convo.store.ledger.TRY_LOCK",
            "convo.store.migrate._IS_INVALID",
            "convo.store.migrate._LOCK_HOLDERS",
            "convo.store.migrate._under_lock",
            "convo.store.process_programs._ALONE",
            "convo.store.process_programs._SESSIONS",
            "convo.store.schema_state._HAS_TABLES",
            "convo.store.schema_state.note_step",
            "convo.store.server_settings.inspect",
            "convo.store.sessions.CONFIRM",
            "convo.store.timeline.ASK",
            "convo.erasure._ACCEPTS",
            "convo.erasure._OLDER_AT_WORK",
            "convo.store.jobs.settle._MOVES",
            "convo.store.tenant_indexes._ARE_MADE",
            "convo.store.jobs.job_room._INDEX_BYTES",
            "convo.store.jobs.job_room._IS_WORTH_IT",
            "convo.store.processes._HOLDERS",
            "convo.store.processes._CONNECTED",
        ),
        "it reads no row: it asks the server, or takes a lock",
    ),
    **dict.fromkeys(
        (
            *(
                "convo.store.log_objects.any_stored",
                "convo.store.log_erasing._OBJECT",
                "convo.store.log_objects._STORED",
            ),
            *(f"convo.store.log_objects.{name}" for name in ("_COUNT_OPEN", "_STORE")),
            *(f"convo.store.log_objects.{name}" for name in ("_GIVE_UP", "_GIVE_UP_ABANDONED", "_KNOWN")),
            "convo.store.log_objects._NOTE_VANISHED",
            *(f"convo.store.log_erasing.{name}" for name in ("_NOTE_IN_FLIGHT", "_NOTE_ERASURE", "_NOTE_DROPPED")),
            *(f"convo.store.log_erasing.{name}" for name in ("_NOTE_UNKNOWN", "_URGENT", "_DUE", "_POSTPONE")),
            *(f"convo.store.log_erasing.{name}" for name in ("_LEAVE", "_FORGET", "_LEAVING")),
            "convo.store.log_erasing._FORGET_ERASED",
        ),
        "objects of logs are few, one for thousands of logs: each is found by its name, or as one of the few under way",
    ),
    **dict.fromkeys(
        (
            "convo.embedded.access_sql.IS_SETTLED",
            "convo.embedded.access_sql.UPGRADE",
            "convo.embedded.access_sql.make_role",
            "convo.embedded.access_sql.make_role 2",
            "convo.embedded.access_sql.make_role 3",
            "convo.embedded.access_sql.make_role 4",
            "convo.embedded.access_sql.make_role 5",
            "convo.embedded.access_sql.make_role 6",
        ),
        "the catalogue of the embedded server, at its start",
    ),
    **dict.fromkeys(
        (
            "convo.store.history.BEAT",
            "convo.store.event_numbers._LOCK",
            "convo.store.event_rows.LAST_SEQUENCE",
            *(f"convo.store.deliveries.{name}" for name in ("_LEASE", "_RELEASE", "_HOLD", "_NOTE", "_PING_TARGET")),
            "convo.store.deliveries._ANSWERED",
            *(f"convo.store.couriers.{name}" for name in ("_LEASE", "_RELEASE", "_MOVE")),
            *(f"convo.store.webhooks.{name}" for name in ("_MAKE", "_LIST", "_READ", "_CHANGE", "_ROTATE", "_DELETE")),
            "convo.store.history.RESTORED",
            "convo.store.history.PROMOTED",
            "convo.store.history._SKIP_WHERE_COUNTED",
            "convo.store.installation_key._READ",
            "convo.store.history._READ",
            "convo.store.jobs.suspects.RELEASE_CLAIM",
        ),
        "a table with one row, one for each count, or one for each of at most 500 endpoints",
    ),
    **dict.fromkeys(
        (
            "convo.store.backup._refuse_newer",
            "convo.store.schema_state._IS_APPLIED",
            "convo.store.schema_state._RAISE_OLDEST",
            "convo.store.schema_state._TABLES",
            "convo.store.schema_state.fetch_schema",
            "convo.store.schema_state.fetch_schema 2",
        ),
        "a table with a row for each migration",
    ),
    **dict.fromkeys(
        (
            "convo.store.jobs.crashes._FORGET_EARLIER",
            "convo.store.jobs.crashes._FORGET_UNSEEN",
            "convo.store.process_settings._TAKERS",
            "convo.store.process_settings._TIDY",
            "convo.store.process_settings._UNSERVED",
            "convo.store.process_settings.forget",
            "convo.store.process_programs._OLDER",
            "convo.store.process_programs._TIDY",
            "convo.store.process_programs.withdraw",
            "convo.store.processes._CONNECTIONS",
            "convo.store.processes._SEEN",
            "convo.store.processes._NAMESAKES",
            "convo.store.processes.leave",
        ),
        "a table with a row for each process",
    ),
    **dict.fromkeys(
        (
            "convo.store.keys._NEW",
            "convo.store.keys._FIELDS",
            "convo.store.keys._NOT_REVOKED",
            "convo.store.keys._MARK",
            "convo.store.keys._GOOD",
            "convo.store.keys._GOOD_OF",
            "convo.store.keys._LOCK",
            "convo.store.keys._END",
            "convo.store.keys._REVOKE",
            "convo.store.keys._USED",
            "convo.store.keys.GOOD_KEY",
            "convo.store.keys._END_SESSIONS",
            *("convo.store.page_sessions._NEW", "convo.store.page_sessions._TIDY", "convo.store.page_sessions._END"),
            *("convo.store.page_sessions._FIELDS", "convo.store.page_sessions._FIND"),
            "convo.store.page_sessions._LIST",
        ),
        "a table with a row for each key, or with at most a hundred",
    ),
    **dict.fromkeys(
        (
            *("convo.store.tenants._NUMBER", "convo.store.tenants._LOCK", "convo.store.tenants._OLDER_AT_WORK"),
            "convo.store.tenant_indexes.are_needed",
            "convo.store.tenants._FIND",
        ),
        "a table with a row for each tenant, when a key is made, a queue is taken from, or once a minute",
    ),
    **dict.fromkeys(
        (
            "convo.store.audit_log._APPEND",
            "convo.store.audit_queue._STORE",
            "convo.store.erasures._WITH_USER",
            "convo.store.intake._INSERT",
            "convo.store.jobs.erased_memories._LEAVE",
            "convo.store.jobs.parts._STORE",
            "convo.store.logs.LogStore.PUT",
        ),
        "it only inserts",
    ),
    **dict.fromkeys(
        (
            "convo.commands.database._any_left",
            "convo.commands.database._any_left 2",
            "convo.store.erasure_list._AGAIN",
            "convo.store.erasure_list._HAS_LIST",
            "convo.store.erasure_list._WHOLE",
            "convo.store.erasure_list._inserted",
        ),
        "a restore reads the whole list",
    ),
    **dict.fromkeys(
        (
            "convo.erase_again._CONVERSATIONS",
            "convo.erase_again._DONE",
            "convo.erase_again._END",
            "convo.erase_again._ERASE_MEMORIES",
            "convo.erase_again._MEMORIES",
            "convo.erase_again._PUT",
            "convo.erase_again._PUT_MEMORIES",
            "convo.erase_again._RECEIPTS",
            "convo.erase_again._TENANTS",
            *(f"convo.erase_again._USERS{number}" for number in ("", " 2", " 3")),
            "convo.erase_again._put_on_list",
            "convo.store.erasure_list._NOTE_AGAIN",
        ),
        "after a restore, and where an erasure was broken off: everything is looked through once, page by page",
    ),
    **dict.fromkeys(
        (
            "convo.scrub._FORGET_SAMPLE",
            "convo.scrub._MAY",
            "convo.scrub._OLDER",
            "convo.scrub._SIZES",
            "convo.scrub._SUPERUSER_STEPS",
            "convo.scrub._await_older",
            "convo.scrub._finish",
        ),
        "a scrub reads the catalogue, and writes every table anew",
    ),
    **dict.fromkeys(
        (
            "convo.store.audit_pages._FIELDS",
            "convo.store.installation_key.FINGERPRINT",
            "convo.store.untold._DUE",
            "convo.store.job_sql.THEIRS",
            "convo.store.event_rows.EVENT_COLUMNS",
            "convo.store.outcomes.PARTS_OF_JOB",
            "convo.store.ledger.BOOK_DONE",
            "convo.retention._GONE",
            "convo.store.outbox.APPEND_ACCEPTED",
            "convo.store.erasures.NOT_REFUSED",
            "convo.store.intake._REFUSALS",
            "convo.store.lookup.SEQ",
            "convo.store.jobs.fair_lease.LEASED",
            "convo.store.jobs.fair_lease.TAKEN",
            "convo.store.jobs.fair_lease._next_key",
            "convo.store.jobs.fair_lease._next_key 2",
            "convo.store.jobs.fair_lease._NEXT_TURN",
            "convo.store.jobs.fair_lease._NEXT_TURN_BEHIND",
            "convo.store.reaching.REMOTE_PREFIX",
            "convo.store.reaching.remote_prefix",
            "convo.store.reaching.remote_prefix 2",
            "convo.store.reaching.TENANT_NAME",
            "convo.retention._TENANT_NAME",
            "convo.store.jobs.rescue._oldest",
            "convo.store.jobs.runs.NOTE_RESCUED",
            "convo.store.jobs.runs.ASKED_BEFORE",
            "convo.store.ledger.BOOKED",
            "convo.store.logs.LogStore.SIZES",
            "convo.store.logs.LogStore.RETIRED",
            "convo.store.months.DROPPED_LOG",
            "convo.store.months.DROPPED_TABLES",
            "convo.store.audit._EXAMPLES",
        ),
        "a piece of others",
    ),
    **dict.fromkeys(
        (
            "convo.store.listing.list_statements",
            "convo.store.listing.list_statements 2",
            "convo.store.listing.list_statements 3",
            "convo.store.listing._done",
            "convo.store.listing._done 2",
            "convo.store.listing._search",
            "convo.store.listing._search 2",
            "convo.store.listing._search 3",
            "convo.store.listing._search 4",
            "convo.store.listing.users_statement",
            "convo.store.listing.users_statement 2",
            "convo.store.listing.users_statement 3",
        ),
        "made for each list: see lists",
    ),
    **dict.fromkeys(
        ("convo.store.jobs.settle._KEEP",),
        "beside an older program alone, on a table that this program's schema does not have any more",
    ),
    "convo.store.table_sizes._STORED": "the sizes of the tables, the ledger's few rows a day, and a row a process",
    **dict.fromkeys(
        ("convo.store.contents._FIGURES",),
        "before a restore: a person waits while a million are counted at most",
    ),
    **dict.fromkeys(
        ("convo.store.ledger._FOLD",),
        "the ledger's rows of the last minute, once a minute, so many a transaction",
    ),
    **dict.fromkeys(
        (
            "convo.store.ledger._COMPARED_NOW",
            "convo.store.ledger._DAYS",
        ),
        "the days that are compared: a row a day",
    ),
    **dict.fromkeys(
        ("convo.store.ledger._COMPARE",),
        "the comparison of one day reads that day",
    ),
    **dict.fromkeys(
        (
            "convo.store.jobs.memories.ERASE_MEMORIES",
            "convo.store.jobs.memories.ERASE_MEMORIES 2",
            "convo.store.jobs.erased_memories._GOING",
            "convo.store.jobs.erased_memories._ERASE_OUTLIVING",
            "convo.store.jobs.memories.ERASE_USER_MEMORIES",
            "convo.store.untold._MEMORIES",
            "convo.store.untold._OUTLIVING",
        ),
        "an erasure reads the memories of its users, or all: an index on seq alone would cost each that is stored",
    ),
    **dict.fromkeys(
        (
            "convo.retention_months._ANY_YOUNG",
            "convo.retention_months._ANY_YOUNG_RUN",
            "convo.retention_months._COUNT",
            "convo.retention_months._COUNT 2",
        ),
        "a whole month is read once, before it is dropped",
    ),
    **dict.fromkeys(
        (
            "convo.store.months._MONTHS",
            "convo.store.months._CURRENT",
            "convo.store.months._MAKE",
            "convo.store.months._BEGIN",
            "convo.store.months._KEEP",
            "convo.store.months.READ_DROPPED",
        ),
        "the catalogue, the sequence, a table with a row for each month, and what a month keeps: at most 1,000",
    ),
    **dict.fromkeys(
        (
            "convo.user_erasure._BATCH",
            "convo.user_erasure._COUNT_OF_USER",
            "convo.store.jobs.settle.ERASE_USER_RELATIONSHIPS",
            "convo.store.jobs.settle.ERASE_USER_RELATIONSHIPS 2",
        ),
        "the erasure of a user reads what that user has, by conversation_by_user and the like",
    ),
    **dict.fromkeys(
        (
            "convo.store.audit._OLDEST_SEQ",
            "convo.store.audit._NEWEST_SEQ",
            "convo.store.audit._LAST_USER",
            "convo.store.audit._SUMS",
        ),
        "the audit reads all, page by page: see test_audit",
    ),
}
"""By name, the statements that are not compared, each with the reason."""


def asked(sample: Sample, limit: int = 50) -> dict[str, tuple[str, Values]]:
    """Return every statement that is compared, with the values that it is run with; ``limit`` is that of lists."""
    found = statements()
    cases = {name: (found[name], one(sample) if callable(one) else one) for name, one in CASES.items()}
    return cases | lists(sample, limit)
