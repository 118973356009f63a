"""The auditor of a torture run: it records every receipt on disk, and compares the record with the outcome.

During the run ``Record`` writes down each 202, each 409 and how long each answer took. At the end ``audit`` reads the
record back and compares it with the answers of the public endpoints and, independently, with rows read by SQL.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
from msgspec import Struct

from convo.conversation.digest import expand
from convo.conversation.identity import id_hash
from convo.store.installation_key import InstallationKey
from convo.store.outcomes import unpack_details
from tests.support.stored_parts import JOBS, parts_of
from tests.torture.world import GATEWAY_SECONDS, World, convo_command

REQUEST_SECONDS = 8.0
_ASKED_AGAIN = 3
_AT_A_TIME = 8
_EXAMPLES = 3


class Receipt(Struct, frozen=True, kw_only=True):
    """One answer to a conversation, as a client saw it; ``variant`` 0 is its content, all others are changed."""

    id: str
    variant: int
    status: int
    digest: str
    at: float
    replayed: bool = False


class Record:
    """The auditor's own record, on disk; a late answer is noted at once, while it is known who was up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slowest = 0.0
        self.late: list[str] = []
        self.statuses: Counter[str] = Counter()
        self.without_hint = 0
        self._file = path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file; it can still be read."""
        self._file.close()

    def answered(self, receipt: Receipt) -> None:
        """Write down one answer."""
        self._file.write(msgspec.json.encode(receipt).decode() + "\n")
        self._file.flush()

    def took(self, what: str, seconds: float, *, status: str) -> None:
        """Note how long an answer took, from a process that was up."""
        self.statuses[status] += 1
        self.slowest = max(self.slowest, seconds)
        if seconds > REQUEST_SECONDS + 0.5:
            self.late.append(f"{what}: {status} after {seconds:.2f} s")

    def read(self) -> list[Receipt]:
        """Read the record back from the disk."""
        return [msgspec.json.decode(line, type=Receipt) for line in self.path.read_text("utf-8").splitlines()]


class Finding(Struct, frozen=True, kw_only=True):
    """One kind of fault, and how many were found; good when there is none."""

    what: str
    count: int
    examples: tuple[str, ...] = ()


def finding(what: str, odd: Iterable[object]) -> Finding:
    """Make a finding of everything that is wrong."""
    all_ = [str(one) for one in odd]
    return Finding(what=what, count=len(all_), examples=tuple(all_[:_EXAMPLES]))


class Calm(Struct, frozen=True):
    """The spans, by the wall clock, in which something was wrong; everything else was calm."""

    spans: Sequence[tuple[float, float]]
    before_seconds: float = 4.0

    def at(self, moment: float) -> bool:
        """Return whether nothing was wrong then, or soon after."""
        return not any(begin - self.before_seconds <= moment <= end for begin, end in self.spans)


async def audit(world: World, record: Record, calm: Calm, *, garbage: bool) -> list[Finding]:
    """Compare the record with endpoints and SQL; a dead letter can be right where the model answered ``garbage``."""
    receipts = record.read()
    every = {one.id: one for one in receipts if one.status == 202}
    seen = await _seen(world, sorted(every))
    views = {name: one for name, (_, one) in seen.items() if one is not None}
    outcome = await read_outcome(world, every)
    # What was erased, and what was old and has expired, is not lost.
    accepted = {name: one for name, one in every.items() if name not in outcome.erased | outcome.expired}
    code, output = await convo_command(world, "audit")
    rows = [{**row, "digest": expand(row["digest"] or b"\0")} for row in await world.ask(_ROWS)]
    known = {row["conversation_id"] for row in rows}
    reports = _reports(world)
    stored = [(row["conversation_id"], row["text"]) for row in await world.ask(_MEMORIES)]
    for row in await world.ask(JOBS):
        stored += [(row["conversation_id"], bytes(part.result).decode()) for part in parts_of(row)]
    shown = [(name, json.dumps(one)) for name, one in views.items()]
    return [
        finding(
            "accepted, and lost (GET)",
            [f"{name}: {seen[name][0]}" for name in _lost(accepted, views, world.gone, reports)],
        ),
        finding("accepted, and lost (SQL)", _lost(accepted, known, world.gone, reports)),
        finding("lost with the database, and not reported", _unreported(accepted, known, world.gone, reports)),
        *await _erased_findings(world, outcome, {name: status for name, (status, _) in seen.items()}),
        finding("another conversation's word", [*_others_words(stored), *_others_words(shown)]),
        finding("stored with another digest", _other_digest(receipts, views, rows)),
        finding("two contents accepted under one id", _two_contents(receipts, world.gone)),
        finding("not done at the end (stuck)", [name for name, one in views.items() if one["state"] not in _ENDED]),
        finding("dead without a true reason", _dead_wrongly(views, garbage=garbage)),
        finding("dead as poison", [name for name, one in views.items() if "poison" in (one["last_error"] or "")]),
        finding("relationship is not the sum (GET)", await _wrong_sums(world, views)),
        finding("relationship is not the sum (SQL)", [tuple(row) for row in await world.ask(SUMS)]),
        finding("settled twice, or not once (SQL)", [tuple(row) for row in await world.ask(SETTLED)]),
        finding("paid twice without a fault", await _paid_twice(world, calm)),
        finding("leases at the end, or orphans (SQL)", [tuple(row) for row in await world.ask(_LEFT)]),
        finding("convo audit complains", [] if code == 0 else output.splitlines()),
        finding(f"answers later than {REQUEST_SECONDS:g} s", record.late),
        finding("processes that ended by themselves, or were wrong", _odd_ends(world)),
    ]


class Outcome(Struct, frozen=True):
    """What became of conversations, as the database has it: on the list of erasures, and expired."""

    erased: frozenset[str]
    expired: frozenset[str]
    key: bytes


async def read_outcome(world: World, names: Collection[str]) -> Outcome:
    """Read the list of erasures and the receipts, and compare each id with them."""
    key = (await world.ask("SELECT key FROM installation_key"))[0]["key"]
    listed = {row["id_hmac"] for row in await world.ask("SELECT id_hmac FROM erasure")}
    # What had expired when its user was erased has the HMAC of its hash.
    listed |= {row["id_hash"] for row in await world.ask("SELECT id_hash FROM receipt WHERE state = 'e'")}
    expired = {row["id_hash"] for row in await world.ask("SELECT id_hash FROM receipt WHERE state = 'x'")}
    made = InstallationKey(key)
    return Outcome(
        frozenset(
            name
            for name in names
            if not listed.isdisjoint((made.hmac_of("conversation", name), made.hmac_of_hash(id_hash(name))))
        ),
        frozenset(name for name in names if id_hash(name) in expired),
        key,
    )


async def _erased_findings(world: World, outcome: Outcome, statuses: Mapping[str, int]) -> list[Finding]:
    """Find what was erased and is there all the same, and what is not there although nobody erased it."""
    key = InstallationKey(outcome.key)
    users = {row["id_hmac"]: row["begun_at"] for row in await world.ask(_ERASED_USERS)}
    stored = await world.ask("SELECT conversation_id, user_id, received_at FROM conversation")
    with_user = [
        row["conversation_id"]
        for row in stored
        if (begun_at := users.get(key.hmac_of("user", row["user_id"]))) is not None and row["received_at"] <= begun_at
    ]
    texts = [(row["text"], row["place"]) for row in await world.ask(_ALL_TEXTS)]
    for row in await world.ask("SELECT seq, details FROM outcome"):
        found = unpack_details(row["details"]).parts
        texts += [(bytes(part.result).decode(), f"outcome of {row['seq']}") for part in found]
    told = {word.lower(): place for text, place in texts for word in _WORD.findall(text)}
    return [
        finding("erased, and not on the list", sorted((world.erased & set(statuses)) - outcome.erased - world.gone)),
        finding(
            "erased, and stored (SQL)",
            [row["conversation_id"] for row in stored if row["conversation_id"] in outcome.erased],
        ),
        finding("erased with its user, and stored (SQL)", with_user),
        finding(
            "erased, and not 410 (GET)", [f"{one}: {statuses[one]}" for one in outcome.erased if statuses[one] != 410]
        ),
        finding(
            "erased, and its words are still there (SQL)",
            [f"{one}: {told[one]}" for one in sorted(told.keys() & outcome.erased)],
        ),
        finding("erasures that have not ended (SQL)", [tuple(row) for row in await world.ask(_NOT_ENDED)]),
        finding("expired, and was not old", sorted(outcome.expired - world.aged)),
        finding(
            "expired, and not 410 (GET)", [f"{one}: {statuses[one]}" for one in outcome.expired if statuses[one] != 410]
        ),
    ]


_ERASED_USERS = "SELECT id_hmac, begun_at FROM erasure WHERE kind = 'user' AND ended_at IS NOT NULL"
_NOT_ENDED = "SELECT kind, begun_at FROM erasure WHERE ended_at IS NULL UNION ALL SELECT kind, NULL FROM erase_again"
_ALL_TEXTS = """
SELECT result::text AS text, format('part of %s', seq) AS place FROM part WHERE result IS NOT NULL
UNION ALL SELECT text, format('memory of %s, %s, at %s', seq, last_seq, first_seen_at) FROM memory
UNION ALL SELECT what, 'untold' FROM untold
"""


def _odd_ends(world: World) -> list[str]:
    return [end for convo in (*world.convos, *world.departed) for end in convo.odd_ends]


def _reports(world: World) -> dict[str, float]:
    """Read when each conversation was last reported missing by a process, by the wall clock."""
    at: dict[str, float] = {}
    for record in world.log_records("receipts_missing"):
        moment = datetime.fromisoformat(record["timestamp"]).timestamp()
        at |= {name: max(moment, at.get(name, 0.0)) for name in record["conversation_ids"]}
    return at


def _lost(
    accepted: Mapping[str, Receipt], known: Collection[str], gone: Collection[str], reports: Mapping[str, float]
) -> list[str]:
    """Find what is not there, but for what the database itself lost and a process reported after its last receipt.

    What is gone and was never reported is a finding of its own. An answer can be on its way while the report is made.
    """
    return sorted(
        name
        for name, last in accepted.items()
        if name not in known
        and not (name in gone and (name not in reports or last.at <= reports[name] + REQUEST_SECONDS))
    )


def _unreported(
    accepted: Mapping[str, Receipt], known: Collection[str], gone: Collection[str], reports: Mapping[str, float]
) -> list[str]:
    """Find what the database lost, and no process ever reported; what was accepted again is not lost."""
    return sorted(name for name in accepted if name in gone and name not in known and name not in reports)


_WORD = re.compile(r"\b(?:torture|calm|probe)-\d[\d-]*", re.IGNORECASE)


def _others_words(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Find results that hold the word of another conversation: its id, which each conversation has in its text."""
    seen = [(name, {word.lower() for word in _WORD.findall(text)}) for name, text in texts]
    wrong = [f"{name} holds {', '.join(sorted(words - {name}))}" for name, words in seen if words - {name}]
    return wrong if any(name in words for name, words in seen) else ["no result holds any conversation's word"]


_ENDED = ("done", "dead")


async def _seen(world: World, names: Sequence[str]) -> dict[str, tuple[int, Any]]:
    """Read every conversation from the endpoints, each from one process: the status, and what was found."""
    seen: dict[str, tuple[int, Any]] = {}
    limiter = trio.CapacityLimiter(_AT_A_TIME)

    async def read(client: httpx.AsyncClient, name: str) -> None:
        async with limiter:
            answer = await client.get(f"/v1/conversations/{name}")
            for _ in range(_ASKED_AGAIN):
                if answer.status_code != 503:
                    break
                # As a client does: on a busy machine a read may be refused.
                await trio.sleep(float(answer.headers.get("Retry-After", "1")))
                answer = await client.get(f"/v1/conversations/{name}")
        seen[name] = answer.status_code, answer.json() if answer.status_code == 200 else None

    async with _clients(world) as clients, trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            nursery.start_soon(read, clients[number % len(clients)], name)
    return seen


class _clients:  # noqa: N801  (reads as a statement)
    def __init__(self, world: World) -> None:
        self._clients = [httpx.AsyncClient(base_url=convo.url, timeout=GATEWAY_SECONDS) for convo in world.convos]

    async def __aenter__(self) -> list[httpx.AsyncClient]:
        return self._clients

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.aclose()


def _other_digest(
    receipts: Sequence[Receipt], views: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Find what has a digest that no receipt of it has; that there is only one is another rule."""
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for one in receipts:
        if one.status == 202:
            digests[one.id].add(one.digest)
    found = [(name, one["digest"]) for name, one in views.items()]
    found += [(row["conversation_id"], row["digest"]) for row in rows]
    return sorted({name for name, digest in found if name in digests and digest not in digests[name]})


def _two_contents(receipts: Sequence[Receipt], gone: Collection[str] = ()) -> list[str]:
    """The first content owns the id: all receipts of one id must be alike, and every other content must be refused.

    A database that lost the first content does not know it.
    """
    of_id: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)
    refused: defaultdict[str, set[int]] = defaultdict(set)
    for one in receipts:
        if one.status == 202:
            of_id[one.id].add((one.variant, one.digest))
        elif one.status == 409:
            refused[one.id].add(one.variant)
    return [
        name
        for name in {*of_id, *refused}.difference(gone)
        if len(of_id[name]) > 1 or {variant for variant, _ in of_id[name]} & refused[name]
    ]


def _dead_wrongly(views: Mapping[str, Any], *, garbage: bool) -> list[str]:
    """A dead letter is right only where the model answered garbage, and its error names that."""
    dead = {name: one["last_error"] or "" for name, one in views.items() if one["state"] == "dead"}
    return [f"{name}: {why}" for name, why in dead.items() if not (garbage and "does not fit" in why)]


async def _wrong_sums(world: World, views: Mapping[str, Any]) -> list[str]:
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    # A relationship keeps what came from conversations that have expired.
    for row in await world.ask(_RETIRED):
        sums[row["user_id"]] += row["score"]
        counts[row["user_id"]] += row["conversations"]
    for one in views.values():
        sums[one["user_id"]] += one["score"]["value"] if one["state"] == "done" else 0
        counts[one["user_id"]] += one["state"] == "done"
    wrong = []
    async with _clients(world) as clients:
        for number, user in enumerate(sorted(sums)):
            found = (await clients[number % len(clients)].get(f"/v1/users/{user}/relationship")).json()
            if (found["score"], found["conversations"]) != (sums[user], counts[user]):
                wrong.append(
                    f"{user}: {found['score']} of {found['conversations']}, not {sums[user]} of {counts[user]}"
                )
    return wrong


async def _paid_twice(world: World, calm: Calm) -> list[str]:
    """Find the parts that a dependency answered not exactly once, among conversations that no fault touched."""
    once = {row["conversation_id"] for row in await world.ask(_ONE_RUN)}
    wrong = []
    looked_at = 0
    for url in (world.model, world.memory):
        seen = await trio.to_thread.run_sync(_fetch, f"{url}/_fake")
        touched = {key for key, at in zip(seen["keys"], seen["called_at"], strict=True) if not calm.at(at)}
        paid = Counter(seen["paid"])
        calls = Counter(seen["keys"])
        untouched = [key for key in calls if key and key not in touched and key.partition(":")[0] in once]
        looked_at += len(untouched)
        wrong += [
            f"{key}: asked {calls[key]} times, answered {paid[key]}"
            for key in untouched
            if (calls[key], paid[key]) != (1, 1)
        ]
    return wrong if looked_at else ["there was nothing that no fault touched"]


def _fetch(url: str) -> Any:
    return json.loads(httpx.get(url, timeout=60).content)


_ROWS = "SELECT conversation_id, digest FROM conversation LEFT JOIN receipt USING (seq)"
_MEMORIES = "SELECT conversation_id, text FROM memory JOIN conversation USING (seq)"
SUMS = """
SELECT user_id, bot_id, r.score, s.score AS sum FROM relationship r
FULL JOIN (SELECT user_id, bot_id, sum(score) AS score, count(*) AS n
           FROM conversation JOIN every_job USING (seq) WHERE state = 'done' GROUP BY user_id, bot_id) AS s
USING (user_id, bot_id)
WHERE (r.score - coalesce(retired_score, 0), r.conversations - coalesce(retired_conversations, 0))
    IS DISTINCT FROM (coalesce(s.score, 0), coalesce(s.n, 0))
"""
_RETIRED = """
SELECT user_id, sum(retired_score)::bigint AS score, sum(retired_conversations)::bigint AS conversations
FROM relationship WHERE retired_conversations > 0 GROUP BY user_id
"""
SETTLED = """
SELECT 'done, and open', seq FROM outcome JOIN job USING (seq)
UNION ALL SELECT 'not done', seq FROM run WHERE ending = 'settle'
"""
_ONE_RUN = """
SELECT conversation_id FROM conversation JOIN outcome USING (seq)
WHERE crashes = 0 AND NOT EXISTS (SELECT FROM run WHERE run.seq = outcome.seq)
"""
_LEFT = """
SELECT 'lease', seq FROM job WHERE state = 'leased'
UNION ALL SELECT 'log', seq FROM conversation_log WHERE seq NOT IN (SELECT seq FROM conversation)
UNION ALL SELECT 'no log', seq FROM conversation WHERE seq NOT IN (SELECT seq FROM conversation_log)
UNION ALL SELECT 'no job', seq FROM conversation WHERE seq NOT IN (SELECT seq FROM every_job)
UNION ALL SELECT 'part', seq FROM part WHERE seq NOT IN (SELECT seq FROM conversation)
UNION ALL SELECT 'no receipt', seq FROM conversation WHERE seq NOT IN (SELECT seq FROM receipt)
UNION ALL SELECT 'receipt', seq FROM receipt WHERE state = '' AND seq NOT IN (SELECT seq FROM conversation)
"""
