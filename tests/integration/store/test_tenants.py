"""Two tenants on one database: the same ids are different things, and each sees its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import trio
from msgspec import structs

from convo import erasure, retention, user_erasure
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT, Reach, Tenant, turn_prefix
from convo.errors import Conflict, Erased, Expired, NotFound, Refused
from convo.settings import FairnessSettings, RetentionSettings, Settings
from convo.store import audit, keys, ledger, tenants
from convo.store.audit_log import Caller
from convo.store.audit_pages import AuditFilter, read_audit_log
from convo.store.conversations import Reader
from convo.store.jobs.dead_letters import DeadFilter
from convo.store.jobs.explain import read_explanation
from convo.store.listing import ListFilter
from convo.store.postgres import Connection
from tests.support.making import THREE, Process, ask, open_dedicated, open_process, remembering, rows, shift_clock
from tests.support.tenants import ACME, BETA, OF_ACME, OF_BETA, accept_of, make_tenants

CALLER = Caller(key_id="5f0c9a7e3b1d", address="192.0.2.7")
EVERY = (WHOLE_DEFAULT, OF_ACME, OF_BETA)
LISTS: tuple[dict[str, Any], ...] = (
    *({}, {"user_id": "user-1"}, {"bot_id": "bot-1"}, {"state": "ready"}),
    {"bot_id": "bot-1", "state": "ready"},
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        await make_tenants(opened.postgres)
        yield opened


@pytest.fixture
def reader(process: Process) -> Reader:
    return Reader(process.postgres, process.log_store)


async def settled(process: Process, count: int, **parts: Any) -> None:
    """Analyse and settle so many jobs."""
    found: Any = {**THREE, **parts}
    for _ in range(count):
        await process.settler.settle(await process.analysed(await process.leased(), found))


async def sound(process: Process) -> list[object]:
    async with open_dedicated(process.postgres) as dedicated:
        return [*await ledger.gaps(dedicated), *await audit.anomalies(dedicated)]


async def test_the_same_id_of_two_tenants_is_two_conversations(process: Process, reader: Reader) -> None:
    said = {reach.tenant.name: (f"I am of {reach.tenant.name}.", "Yes.") for reach in EVERY}
    for reach in EVERY:
        stored = await process.committer.accept(accept_of(reach.tenant, said=said[reach.tenant.name]))
        assert not stored.replayed
    for reach in EVERY:
        again = await process.committer.accept(accept_of(reach.tenant, said=said[reach.tenant.name]))
        assert again.replayed
        with pytest.raises(Conflict):
            await process.committer.accept(accept_of(reach.tenant, said=("Another one.",)))
        found = await reader.one(reach, "talk-1")
        assert found.row["digest"] is not None
        assert (await reader.log_sizes(reach, "talk-1")).row["seq"] == found.row["seq"]
    assert len({(await reader.one(reach, "talk-1")).row["seq"] for reach in EVERY}) == 3
    assert await process.receipts.missing(process.postgres) == (3, [])
    assert await sound(process) == []


async def test_in_one_batch_each_tenant_has_its_own(process: Process) -> None:
    stored: dict[str, int] = {}

    async def post(tenant: Tenant) -> None:
        stored[tenant.name] = (await process.committer.accept(accept_of(tenant))).seq

    async with trio.open_nursery() as nursery:
        for reach in EVERY:
            nursery.start_soon(post, reach.tenant)
    assert len(set(stored.values())) == 3
    found = await rows(process.postgres, "SELECT seq, tenant FROM conversation ORDER BY seq")
    assert dict(found) == {stored[reach.tenant.name]: reach.tenant.number for reach in EVERY}
    keys_of = await rows(process.postgres, "SELECT tenant, fair_key FROM job")
    assert dict(keys_of) == {number: turn_prefix(number) + "user-1" for number in (0, 1, 2)}


async def test_memories_and_relationships_are_of_one_tenant(process: Process, reader: Reader) -> None:
    for tenant, fact in ((DEFAULT, "tea"), (ACME, "tea"), (BETA, "coffee")):
        await process.committer.accept(accept_of(tenant))
        await settled(process, 1, memories=remembering(fact))
    for reach, fact in ((WHOLE_DEFAULT, "tea"), (OF_ACME, "tea"), (OF_BETA, "coffee")):
        memories = await reader.memories(reach, "user-1", before=None, limit=9)
        assert [one["text"] for one in memories] == [f"Knows {fact}"]
        found = await reader.one(reach, "talk-1")
        # New in each of them: what another tenant knows of its own user-1 counts for nothing.
        assert found.parts["memories"].new_memories == 1
        known = await reader.relationship(reach, "user-1", before=None, limit=9)
        assert (known.sums["total_conversations"], known.sums["total_score"]) == (1, found.row["score"])
    assert await sound(process) == []


async def test_an_erasure_leaves_the_other_tenants_as_they_were(process: Process, reader: Reader) -> None:
    for tenant in (DEFAULT, ACME, BETA):
        await process.committer.accept(accept_of(tenant))
    await settled(process, 3)
    gone = await erasure.erase_conversation(process.postgres, OF_ACME, "talk-1", CALLER, erased=lambda _: None)
    assert gone.counts.removed["conversation"] == 1
    until = trio.current_time() + 9
    whole = await user_erasure.erase_user(process.postgres, BETA, "user-1", CALLER, erased=lambda _: None, until=until)
    assert whole.counts.removed["conversation"] == 1
    for reach in (OF_ACME, OF_BETA):
        with pytest.raises(Erased):
            await reader.one(reach, "talk-1")
        with pytest.raises(Erased):
            await process.committer.accept(accept_of(reach.tenant))
    assert (await reader.one(WHOLE_DEFAULT, "talk-1")).row["state"] == "done"
    assert len(await reader.memories(WHOLE_DEFAULT, "user-1", before=None, limit=9)) == 1
    assert (await process.committer.accept(accept_of(DEFAULT))).replayed
    assert not (await process.committer.accept(accept_of(DEFAULT, "talk-2"))).replayed
    assert await sound(process) == []


async def test_a_user_of_one_tenant_is_erased_with_the_receipts_of_what_had_expired(
    process: Process, reader: Reader
) -> None:
    for tenant in (DEFAULT, ACME, BETA):
        await process.committer.accept(accept_of(tenant))
    await settled(process, 3)
    await shift_clock(process.postgres, "2 days")

    async def retired(connection: Connection) -> None:
        over = await retention.find_conversations(connection, RetentionSettings(conversations_days=1), None, 10)
        await retention.retire(connection, over)

    await process.postgres.run("test.retire", retired)
    until = trio.current_time() + 9
    await user_erasure.erase_user(process.postgres, ACME, "user-1", CALLER, erased=lambda _: None, until=until)
    assert await rows(process.postgres, "SELECT state::text FROM receipt ORDER BY seq") == [("x",), ("e",), ("x",)]
    for reach, error in ((WHOLE_DEFAULT, Expired), (OF_ACME, Erased), (OF_BETA, Expired)):
        with pytest.raises(error):
            await reader.one(reach, "talk-1")
    # The database has lost none of them.
    assert await process.receipts.missing(process.postgres) == (3, [])
    assert await sound(process) == []


async def test_an_erased_memory_stays_erased_in_its_tenant_alone(process: Process, reader: Reader) -> None:
    for tenant in (ACME, BETA):
        await process.committer.accept(accept_of(tenant, "early"))
        await process.committer.accept(accept_of(tenant, "late"))
    held = {(lease.tenant.name, lease.conversation_id): lease for lease in await process.jobs.lease(4)}
    for tenant in (ACME, BETA):
        late = held[tenant.name, "late"]
        await process.settler.settle(await process.analysed(late, {**THREE, "memories": remembering("tea")}))
    await erasure.erase_conversation(process.postgres, OF_ACME, "late", CALLER, erased=lambda _: None)
    for tenant in (ACME, BETA):
        early = held[tenant.name, "early"]
        await process.settler.settle(await process.analysed(early, {**THREE, "memories": remembering("tea")}))
    assert await reader.memories(OF_ACME, "user-1", before=None, limit=9) == []
    assert [one["text"] for one in await reader.memories(OF_BETA, "user-1", before=None, limit=9)] == ["Knows tea"]


@pytest.mark.parametrize("reach", EVERY, ids=lambda reach: reach.tenant.name)
async def test_every_list_is_of_one_tenant_and_as_long_as_if_it_were_alone(
    process: Process, reader: Reader, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.store.listing.LOOKED_AT_MAX", 2)
    own = [f"own-{n}" for n in range(3)]
    for n in range(3):
        for other in EVERY:
            ids = own if other is reach else [f"{other.tenant.name}-{n}-{m}" for m in range(3)]
            for one in [ids[n]] if other is reach else ids:
                await process.committer.accept(accept_of(other.tenant, one))
    for asked in (
        {},
        {"user_id": "user-1"},
        {"user_prefix": "user"},
        {"bot_id": "bot-1"},
        {"state": "ready"},
        {"bot_id": "bot-1", "state": "ready"},
    ):
        found, before, pages = [], None, 0
        while True:
            page = await reader.many(reach, ListFilter(**asked, before=before), 2)
            found += [row["conversation_id"] for row in page.rows]
            before, pages = page.next_before, pages + 1
            if before is None:
                break
        assert found == own[::-1], asked
        assert pages == 2, asked
    assert (await reader.many(reach, ListFilter(state="parked"), 2)).next_before is None


async def test_a_key_of_some_bots_sees_what_belongs_to_these(process: Process, reader: Reader) -> None:
    for n, bot in enumerate(("pika", "tom", "pika", "tom", "kim")):
        await process.committer.accept(accept_of(ACME, f"talk-{n}", bot_id=bot))
    await settled(process, 5)
    some = Reach(tenant=ACME, bots=("pika", "kim"))
    listed = await reader.many(some, ListFilter(), 9)
    assert [row["conversation_id"] for row in listed.rows] == ["talk-4", "talk-2", "talk-0"]
    assert [row["seq"] for row in (await reader.many(some, ListFilter(bot_id="tom"), 9)).rows] == []
    for user in (ListFilter(user_id="user-1"), ListFilter(user_prefix="us")):
        of_user = await reader.many(some, structs.replace(user, bot_id="pika"), 9)
        assert [row["conversation_id"] for row in of_user.rows] == ["talk-2", "talk-0"]
        every = await reader.many(some, user, 9)
        assert [row["conversation_id"] for row in every.rows] == ["talk-4", "talk-2", "talk-0"]
    known = await reader.relationship(some, "user-1", before=None, limit=9)
    assert {row["bot_id"] for row in known.bots} == {"pika", "kim"}
    assert known.sums["total_conversations"] == 3
    assert len(await reader.memories(some, "user-1", before=None, limit=9)) == 1
    only = Reach(tenant=ACME, bots=("tom",))
    # The first conversation told it, and that is another bot's.
    assert await reader.memories(only, "user-1", before=None, limit=9) == []
    for read in (reader.one, reader.log_sizes, process.jobs.retry, process.jobs.acknowledge):
        with pytest.raises(NotFound):
            await read(only, "talk-0")
    with pytest.raises(NotFound):
        await read_explanation(process.postgres, only, "talk-0")
    with pytest.raises(NotFound):
        await erasure.erase_conversation(process.postgres, only, "talk-0", CALLER, erased=lambda _: None)
    with pytest.raises(NotFound):
        await reader.relationship(Reach(tenant=ACME, bots=("nobody",)), "user-1", before=None, limit=9)


async def test_dead_letters_are_counted_and_retried_within_one_tenant(process: Process) -> None:
    for tenant in (DEFAULT, ACME, BETA):
        for n in range(2 + tenant.number):
            await process.committer.accept(accept_of(tenant, f"talk-{n}"))
    last = process.settings.jobs.attempts_max - 1
    await ask(process.postgres, "WITH spent AS (UPDATE job SET attempts = $1) SELECT 1", last)
    for lease in await process.jobs.lease(9):
        await process.jobs.fail(lease, f"no {lease.tenant.name}", {}, later=0.0)
    for reach in EVERY:
        found = await process.jobs.dead_reasons(reach, DeadFilter())
        count = 2 + reach.tenant.number
        assert [(one.reason, one.count) for one in found.reasons] == [(f"no {reach.tenant.name}", count)]
    retried = await process.jobs.retry_many(OF_ACME, DeadFilter(), after=0, limit=9, dry_run=False)
    assert retried.count == 3
    assert dict(await rows(process.postgres, "SELECT tenant, count(*) FROM job WHERE state = 'dead' GROUP BY 1")) == {
        0: 2,
        2: 4,
    }


async def test_a_position_and_a_rate_are_those_of_one_tenant(process: Process) -> None:
    for n in range(3):
        await process.committer.accept(accept_of(ACME, f"talk-{n}", user_id=f"user-{n}"))
    await settled(process, 3)
    await process.committer.accept(accept_of(BETA, "mine", user_id="z"))
    alone = await read_explanation(process.postgres, OF_BETA, "mine")
    for n in range(5):
        for tenant in (DEFAULT, ACME):
            await process.committer.accept(accept_of(tenant, f"more-{n}", user_id=f"user-{n}"))
    beside = await read_explanation(process.postgres, OF_BETA, "mine")
    assert (alone.ahead, alone.rate) == (beside.ahead, beside.rate) == (0, 0.0)
    assert (await read_explanation(process.postgres, OF_ACME, "more-4")).rate > 0


async def test_the_audit_log_shows_each_tenant_its_own(process: Process) -> None:
    for reach in EVERY:
        await process.committer.accept(accept_of(reach.tenant))
        await erasure.erase_conversation(process.postgres, reach, "talk-1", CALLER, erased=lambda _: None)
    for reach in EVERY:
        for wanted in (
            AuditFilter(),
            AuditFilter(action="erase"),
            AuditFilter(key_id=CALLER.key_id),
            AuditFilter(conversation_id="talk-1"),
            AuditFilter(user_id="user-1"),
        ):
            page = await read_audit_log(process.postgres, reach.tenant, wanted, 9)
            assert len(page.rows) == 1, wanted
    targets = await rows(process.postgres, "SELECT DISTINCT target FROM audit_log")
    assert len(targets) == 3


# --- keys


async def test_a_key_is_of_a_tenant_and_of_bots_and_so_is_the_one_that_replaces_it(process: Process) -> None:
    first = await keys.new(process.postgres, "robots", ["read"], 0, tenant="gamma", bots=["pika", "tom"])
    second = await keys.rotate(process.postgres, first.split("_")[1], timedelta(hours=1))
    found = await keys.find_good(process.postgres, [key.split("_")[1] for key in (first, second)])
    assert [key.reach for key in found] == [Reach(tenant=Tenant(number=3, name="gamma"), bots=("pika", "tom"))] * 2
    plain = await keys.new(process.postgres, "robots", ["read"], 0)
    (key,) = await keys.find_good(process.postgres, [plain.split("_")[1]])
    assert key.reach == WHOLE_DEFAULT
    await keys.revoke(process.postgres, second.split("_")[1])
    actions = await rows(process.postgres, "SELECT tenant, action FROM audit_log ORDER BY number")
    assert actions == [(3, "key_made"), (3, "key_rotated"), (0, "key_made"), (3, "key_revoked")]


async def test_a_tenant_is_made_once_and_by_a_name_alone(process: Process) -> None:
    for _ in range(2):
        await keys.new(process.postgres, "robots", ["read"], 0, tenant="acme")
    assert await rows(process.postgres, "SELECT number, name FROM tenant ORDER BY 1") == [
        (0, "default"),
        (1, "acme"),
        (2, "beta"),
    ]
    with pytest.raises(Refused, match="tenant 'Acme/1'"):
        await keys.new(process.postgres, "robots", ["read"], 0, tenant="Acme/1")
    with pytest.raises(Refused, match="admin concerns all bots"):
        await keys.new(process.postgres, "robots", ["read", "admin"], 0, bots=["pika"])


async def test_while_an_older_program_may_be_at_work_no_other_tenant_has_a_key(process: Process) -> None:
    await ask(process.postgres, "CREATE UNIQUE INDEX memory_by_key ON memory (user_id, key)")
    for bound in ({"tenant": "acme"}, {"bots": ["pika"]}):
        with pytest.raises(Refused, match="an older version of convo is at work"):
            await keys.new(process.postgres, "robots", ["read"], 0, **bound)
    assert await keys.new(process.postgres, "robots", ["read"], 0)
    assert await ask(process.postgres, "SELECT count(*) FROM api_key") == 1
    async with open_dedicated(process.postgres) as dedicated:
        with pytest.raises(Refused):
            await dedicated.run("test", lambda connection: tenants.find_or_make(connection, "delta"))


# --- turns


async def test_tenants_take_turns_first_and_then_their_users(process: Process) -> None:
    for n in range(120):
        await process.committer.accept(accept_of(ACME, f"talk-{n}", user_id=f"user-{n % 30}"))
    for n in range(40):
        await process.committer.accept(accept_of(BETA, f"talk-{n}"))
    for count in (1, 2, 3, 7, 8, 9):
        shares: Counter[str] = Counter()
        for _ in range(4):
            leases = await process.jobs.lease(count)
            assert len(leases) == count
            shares.update(lease.tenant.name for lease in leases)
            for lease in leases:
                await process.jobs.release(lease)
        assert shares["acme"] == shares["beta"] == 2 * count


async def test_what_one_tenant_has_no_jobs_for_is_the_others(process: Process) -> None:
    for n in range(12):
        await process.committer.accept(accept_of(ACME, f"talk-{n}", user_id=f"user-{n}"))
    await process.committer.accept(accept_of(BETA, "talk-0"))
    leases = await process.jobs.lease(10)
    assert Counter(lease.tenant.name for lease in leases) == {"acme": 9, "beta": 1}
    assert leases[0].tenant != leases[1].tenant
    assert len({lease.user_id for lease in leases if lease.tenant == ACME}) == 9
    assert len(await process.jobs.lease(10)) == 3
    assert await process.jobs.lease(10) == []


@pytest.mark.parametrize("key", ["bot", "none"])
async def test_tenants_take_turns_by_each_key(database: str, key: Any) -> None:
    async with open_process(database, Settings(fairness=FairnessSettings(key=key))) as process:
        await make_tenants(process.postgres)
        for tenant in (DEFAULT, ACME):
            for n in range(6):
                await process.committer.accept(accept_of(tenant, f"talk-{n}"))
        leases = await process.jobs.lease(6)
        assert Counter(lease.tenant.name for lease in leases) == {"default": 3, "acme": 3}
        assert [lease.conversation_id for lease in leases if lease.tenant == ACME] == ["talk-0", "talk-1", "talk-2"]
        assert len(await process.jobs.lease(99)) == 6


async def test_a_service_is_given_ids_that_no_two_tenants_share(process: Process) -> None:
    for tenant, user in (
        (DEFAULT, "x"),
        (DEFAULT, "acme/x"),
        (DEFAULT, "other/x"),
        (DEFAULT, "default/x"),
        (ACME, "x"),
    ):
        await process.committer.accept(accept_of(tenant, f"talk-{user}", user_id=user))
    given = {(lease.tenant.name, lease.user_id): lease.remote_prefix for lease in await process.jobs.lease(9)}
    assert given == {
        ("default", "x"): "",
        ("default", "acme/x"): "default/",
        ("default", "other/x"): "",
        ("default", "default/x"): "default/",
        ("acme", "x"): "acme/",
    }
