"""The auditor of a torture: keeps its own record of every receipt on disk, and believes nothing but that.

While it lasts, ``Record`` writes down each 202, each 409 and each answer's time. At the end ``audit`` reads the record
back and compares it with what the public endpoints say and, independently, with what SQL says.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
from msgspec import Struct

from tests.world import GATEWAY_SECONDS, World
from tests.world import audit as convo_audit

REQUEST_SECONDS = 8.0
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
    """The auditor's own book, on disk; what is late is judged at once, as nobody can later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slowest = 0.0
        self.late: list[str] = []
        self.statuses: Counter[str] = Counter()
        self.without_hint = 0
        self._file = path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Write no more; what is written stays to be read."""
        self._file.close()

    def answered(self, receipt: Receipt) -> None:
        """Write down what a client was told of its conversation."""
        self._file.write(msgspec.json.encode(receipt).decode() + "\n")
        self._file.flush()

    def took(self, what: str, seconds: float, *, status: str) -> None:
        """Note how long an answer took that somebody could expect."""
        self.statuses[status] += 1
        self.slowest = max(self.slowest, seconds)
        if seconds > REQUEST_SECONDS + 0.5:
            self.late.append(f"{what}: {status} after {seconds:.2f} s")

    def read(self) -> list[Receipt]:
        """Read the book back from the disk."""
        return [msgspec.json.decode(line, type=Receipt) for line in self.path.read_text("utf-8").splitlines()]


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked for; good when there is none of it."""

    what: str
    count: int
    examples: tuple[str, ...] = ()


def finding(what: str, odd: Iterable[object]) -> Finding:
    """Make a finding of the odd ones."""
    all_ = [str(one) for one in odd]
    return Finding(what=what, count=len(all_), examples=tuple(all_[:_EXAMPLES]))


class Calm(Struct, frozen=True):
    """The spans, by the wall clock, in which something was wrong; everything else was calm."""

    spans: Sequence[tuple[float, float]]
    before_seconds: float = 4.0

    def at(self, moment: float) -> bool:
        """Tell whether nothing was wrong then, or soon after."""
        return not any(begin - self.before_seconds <= moment <= end for begin, end in self.spans)


async def audit(world: World, record: Record, calm: Calm, *, garbage: bool) -> list[Finding]:
    """Compare the record with the endpoints and with SQL; ``garbage`` says whether a dead letter can be right."""
    receipts = record.read()
    accepted = {one.id: one for one in receipts if one.status == 202}
    seen = await _seen(world, sorted(accepted))
    told = {name: one for name, one in seen.items() if one is not None}
    code, said = await convo_audit(world)
    rows = await world.ask(_ROWS)
    return [
        finding("accepted, and lost (GET)", sorted(set(accepted) - set(told))),
        finding("accepted, and lost (SQL)", sorted(set(accepted) - {row["conversation_id"] for row in rows})),
        finding("stored with another digest", _other_digest(accepted, told, rows)),
        finding("two contents accepted under one id", _two_contents(receipts)),
        finding("not done at the end (stuck)", [name for name, one in told.items() if one["state"] not in _ENDED]),
        finding("dead without a true reason", _dead_wrongly(told, garbage=garbage)),
        finding("dead as poison", [name for name, one in told.items() if "poison" in (one["last_error"] or "")]),
        finding("relationship is not the sum (GET)", await _wrong_sums(world, told)),
        finding("relationship is not the sum (SQL)", [tuple(row) for row in await world.ask(_SUMS)]),
        finding("settled twice, or not once (SQL)", [tuple(row) for row in await world.ask(_SETTLED)]),
        finding("paid twice without a fault", await _paid_twice(world, calm)),
        finding("leases at the end, or orphans (SQL)", [tuple(row) for row in await world.ask(_LEFT)]),
        finding("convo audit complains", [] if code == 0 else said.splitlines()),
        finding(f"answers later than {REQUEST_SECONDS:g} s", record.late),
        finding("processes that ended by themselves", [end for convo in world.convos for end in convo.odd_ends]),
    ]


_ENDED = ("done", "dead")


async def _seen(world: World, names: Sequence[str]) -> dict[str, Any]:
    """Read every conversation at the endpoints, each at one process."""
    seen: dict[str, Any] = {}
    limiter = trio.CapacityLimiter(_AT_A_TIME)

    async def read(client: httpx.AsyncClient, name: str) -> None:
        async with limiter:
            answer = await client.get(f"/v1/conversations/{name}")
        seen[name] = answer.json() if answer.status_code == 200 else None

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
    accepted: Mapping[str, Receipt], told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    stored = {row["conversation_id"]: row["digest"] for row in rows}
    return [
        name
        for name, one in accepted.items()
        if (name in told and told[name]["digest"] != one.digest) or stored.get(name, one.digest) != one.digest
    ]


def _two_contents(receipts: Sequence[Receipt]) -> list[str]:
    """Whoever was first owns the id: of one id all receipts are alike, and every other content was refused."""
    of_id: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)
    refused: defaultdict[str, set[int]] = defaultdict(set)
    for one in receipts:
        if one.status == 202:
            of_id[one.id].add((one.variant, one.digest))
        elif one.status == 409:
            refused[one.id].add(one.variant)
    return [
        name
        for name in {*of_id, *refused}
        if len(of_id[name]) > 1 or {variant for variant, _ in of_id[name]} & refused[name]
    ]


def _dead_wrongly(told: Mapping[str, Any], *, garbage: bool) -> list[str]:
    """A dead letter is right where the model answered garbage, and says so."""
    dead = {name: one["last_error"] or "" for name, one in told.items() if one["state"] == "dead"}
    return [f"{name}: {why}" for name, why in dead.items() if not (garbage and "does not fit" in why)]


async def _wrong_sums(world: World, told: Mapping[str, Any]) -> list[str]:
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for one in told.values():
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
    """Of conversations that no fault touched, find the parts that a dependency was not paid for exactly once."""
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


_ROWS = "SELECT conversation_id, digest FROM conversation"
_SUMS = """
SELECT user_id, bot_id, r.score, s.score AS sum FROM relationship r
FULL JOIN (SELECT user_id, bot_id, sum(score) AS score, count(*) AS n
           FROM conversation JOIN job USING (seq) WHERE state = 'done' GROUP BY user_id, bot_id) AS s
USING (user_id, bot_id) WHERE (r.score, r.conversations) IS DISTINCT FROM (s.score, s.n)
"""
_SETTLED = """
SELECT seq, state, count(run.seq) FILTER (WHERE ending = 'settle') AS settles FROM job LEFT JOIN run USING (seq)
GROUP BY seq, state HAVING count(run.seq) FILTER (WHERE ending = 'settle') <> (state = 'done')::integer
"""
_ONE_RUN = """
SELECT conversation_id FROM conversation JOIN run USING (seq) JOIN job USING (seq) WHERE crashes = 0
GROUP BY conversation_id HAVING count(*) = 1 AND min(ending) = 'settle'
"""
_LEFT = """
SELECT 'lease', seq FROM job WHERE state = 'leased'
UNION ALL SELECT 'log', seq FROM conversation_log WHERE seq NOT IN (SELECT seq FROM conversation)
UNION ALL SELECT 'no log', seq FROM conversation WHERE seq NOT IN (SELECT seq FROM conversation_log)
UNION ALL SELECT 'no job', seq FROM conversation WHERE seq NOT IN (SELECT seq FROM job)
UNION ALL SELECT 'part', seq FROM part WHERE seq NOT IN (SELECT seq FROM conversation)
"""
