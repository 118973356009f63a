"""The job table driven at random by several processes, late writers among them, its invariants looked at each step.

Hypothesis chooses what happens next; the database is a real one. What must hold is read by SQL of this file's own.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog.testing
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import DatabaseUnavailable, LeaseLost, NotDead
from convo.settings import JobsSettings, Settings
from convo.store import ledger
from convo.store.job_sql import POISON_AT, SUSPECT_AT
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs
from tests.support.making import THREE, Process, ask, dies, open_process, rows, shift_clock, store_part

SETTINGS = JobsSettings(attempts_max=3, lease_seconds=30.0, give_up_seconds=1000.0)
ACTORS = ("one.1", "two.1", "three.1")
USERS = ("user-a", "user-b")
LEASES = st.integers(0, 10_000)
"""Which of the leases ever given, the lost ones among them, modulo how many there are."""


class Portal:
    """A trio run in a thread of its own, with one process opened on a database; ``do`` runs something in it."""

    def __init__(self) -> None:
        self.process: Process
        self._token: trio.lowlevel.TrioToken
        self._up = threading.Event()
        self._stop: trio.Event

    def do(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return trio.from_thread.run(call, *arguments, trio_token=self._token)

    async def _run(self, url: str) -> None:
        async with open_process(url, Settings(jobs=SETTINGS)) as process:
            self.process, self._token, self._stop = process, trio.lowlevel.current_trio_token(), trio.Event()
            self._up.set()
            await self._stop.wait()

    @contextmanager
    def opened(self, url: str) -> Iterator[Portal]:
        thread = threading.Thread(target=trio.run, args=(self._run, url))
        thread.start()
        try:
            assert self._up.wait(30)
            yield self
        finally:
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
            thread.join()


class Machine(RuleBasedStateMachine):
    """Three processes on one table; the model says what each job must be."""

    portal: Portal

    @initialize()
    def begin(self) -> None:
        self.process = self.portal.process
        self.jobs = {name: Jobs(self.process.postgres, SETTINGS, name) for name in ACTORS}
        self.given: list[tuple[str, Lease]] = []
        self.passed = 0.0
        # By conversation: state, attempts spent, crashes, the token of the good lease.
        self.model: dict[str, list[Any]] = {}
        self.portal.do(self._empty)

    async def _empty(self) -> None:
        tables = (
            "receipt, conversation, conversation_log, job, outcome, part, memory, relationship, process, ledger, run"
        )

        async def body(connection: Any) -> None:
            await connection.execute(f"TRUNCATE {tables}, suspect_claim RESTART IDENTITY")

        await self.process.postgres.run("test.empty", body)
        await shift_clock(self.process.postgres, "0 seconds")

    def _good(self, lease: Lease) -> bool:
        return bool(self.model[lease.conversation_id][3] == lease.token)

    def _write(self, number: int, write: Callable[[Jobs, Lease], Awaitable[object]]) -> Lease | None:
        """Let whoever was given a lease write; return it when it is still good, and the write must have worked."""
        owner, lease = self.given[number % len(self.given)]
        good = self._good(lease)
        try:
            self.portal.do(write, self.jobs[owner], lease)
        except LeaseLost:
            assert not good, "the write of a good lease was refused"
            return None
        assert good, "a late worker could write"
        return lease

    # --- what the processes do

    @rule(count=st.integers(1, 3), user=st.sampled_from(USERS))
    def accept(self, count: int, user: str) -> None:
        names = [f"talk-{len(self.model) + n}" for n in range(count)]
        for name in names:
            self.portal.do(lambda name=name: self.process.accepted(name, user_id=user))
            self.model[name] = ["ready", 0, 0, None]

    @rule(name=st.integers(0, 99))
    @precondition(lambda self: self.model)
    def replay(self, name: int) -> None:
        known = sorted(self.model)[name % len(self.model)]
        user = self.portal.do(
            ask, self.process.postgres, "SELECT user_id FROM conversation WHERE conversation_id = $1", known
        )
        self.portal.do(lambda: self.process.accepted(known, user_id=user))

    def _took(self, owner: str, leases: list[Lease], *, suspect: bool) -> None:
        for lease in leases:
            state = self.model[lease.conversation_id]
            assert state[0] == "ready", "a job was leased that was not ready"
            assert (state[2] >= SUSPECT_AT) == suspect
            assert lease.attempts == state[1]
            state[0], state[3] = "leased", lease.token
            self.given.append((owner, lease))

    @rule(owner=st.sampled_from(ACTORS), count=st.integers(1, 4), out=st.sets(st.sampled_from(["llm", "memory"])))
    def lease(self, owner: str, count: int, out: set[str]) -> None:
        leases = self.portal.do(lambda: self.jobs[owner].lease(count, out=out))
        assert len(leases) <= count
        self._took(owner, leases, suspect=False)

    @rule(owner=st.sampled_from(ACTORS))
    def lease_suspect(self, owner: str) -> None:
        self._took(owner, self.portal.do(self.jobs[owner].lease_suspect), suspect=True)

    @rule(number=LEASES, name=st.sampled_from(sorted(THREE)))
    @precondition(lambda self: self.given)
    def store_part(self, number: int, name: Any) -> None:
        self._write(number, lambda jobs, lease: store_part(jobs, lease, name, "test/1", THREE[name]))

    @rule(number=LEASES)
    @precondition(lambda self: self.given)
    def analyse_and_settle(self, number: int) -> None:
        async def settle(jobs: Jobs, lease: Lease) -> None:
            for name, finding in THREE.items():
                await store_part(jobs, lease, name, "test/1", finding)
            await self.process.settler.settle(lease)

        if lease := self._write(number, settle):
            state = self.model[lease.conversation_id]
            state[0], state[1], state[3] = "done", state[1] + 1, None

    @rule(number=LEASES)
    @precondition(lambda self: self.given)
    def settle_too_early(self, number: int) -> None:
        _, lease = self.given[number % len(self.given)]
        if self._parts(lease) == set(THREE):
            return
        with pytest.raises((LeaseLost, DatabaseUnavailable)):
            self.portal.do(self.process.settler.settle, lease)

    def _parts(self, lease: Lease) -> set[str]:
        query = "SELECT name FROM part WHERE seq = $1 AND state = 'done'"
        return {name for (name,) in self.portal.do(rows, self.process.postgres, query, lease.seq)}

    @rule(number=LEASES, later=st.sampled_from([0.001, 20.0]))
    @precondition(lambda self: self.given)
    def fail(self, number: int, later: float) -> None:
        if lease := self._write(number, lambda jobs, lease: jobs.fail(lease, "why", {}, later=later)):
            state = self.model[lease.conversation_id]
            state[1], state[3] = state[1] + 1, None
            state[0] = "dead" if state[1] >= SETTINGS.attempts_max else "ready"

    @rule(number=LEASES, dependency=st.sampled_from(["llm", "memory"]))
    @precondition(lambda self: self.given)
    def park(self, number: int, dependency: str) -> None:
        if lease := self._write(number, lambda jobs, lease: jobs.park(lease, dependency, "down")):
            self._freed(lease.conversation_id)

    @rule(number=LEASES, later=st.sampled_from([0.0, 20.0]))
    @precondition(lambda self: self.given)
    def release(self, number: int, later: float) -> None:
        if lease := self._write(number, lambda jobs, lease: jobs.release(lease, later=later)):
            self._freed(lease.conversation_id)

    def _freed(self, name: str, crashes: int = 0) -> None:
        state = self.model[name]
        state[0], state[2], state[3] = "ready", state[2] + crashes, None

    @rule(owner=st.sampled_from(ACTORS))
    def renew(self, owner: str) -> None:
        mine = [lease for name, lease in self.given if name == owner]
        kept = self.portal.do(self.jobs[owner].renew, mine)
        assert kept == {lease.token for lease in mine if self._good(lease)}

    @rule(owner=st.sampled_from(ACTORS), crashed=st.booleans())
    def stop(self, owner: str, *, crashed: bool) -> None:
        if crashed:
            self.portal.do(dies, self.process.postgres, owner)
        else:
            self.portal.do(self.jobs[owner].release_all)
        for name, lease in self.given:
            if name == owner and self._good(lease):
                self._freed(lease.conversation_id, int(crashed))

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0, 990.0]))
    def pass_time(self, seconds: float) -> None:
        self.passed += seconds
        self.portal.do(shift_clock, self.process.postgres, f"{self.passed} seconds")

    @rule()
    def rescue(self) -> None:
        query = """
        SELECT conversation_id, leased_until < convo_now() AS over, waits_for <> '' AND state = 'ready'
               AND parked_since < convo_now() - interval '1000 seconds' AS given_up
        FROM job JOIN conversation USING (seq)
        """
        before = self.portal.do(rows, self.process.postgres, query)
        found = self.portal.do(self.jobs["one.1"].rescue)
        over = [name for name, over, _ in before if over]
        assert found.rescued == len(over)
        for name in over:
            self._freed(name)
        for name, _, given_up in before:
            state = self.model[name]
            if state[0] == "ready" and (given_up or self._is_poison(name)):
                state[0] = "dead"
        self._read_buried(found.buried)

    def _is_poison(self, name: str) -> bool:
        query = "SELECT NOT delayed FROM job JOIN conversation USING (seq) WHERE conversation_id = $1"
        return self.model[name][2] >= POISON_AT and bool(self.portal.do(ask, self.process.postgres, query, name))

    def _read_buried(self, buried: dict[int, str]) -> None:
        """A job parked for too long may be one whose lease ended only now: the table's word is taken, if it is true."""
        query = "SELECT conversation_id FROM conversation WHERE seq = ANY($1)"
        for (name,) in self.portal.do(rows, self.process.postgres, query, list(buried)):
            assert self.model[name][0] in ("ready", "dead")
            self.model[name][0] = "dead"

    @rule(name=st.integers(0, 99))
    @precondition(lambda self: self.model)
    def retry(self, name: int) -> None:
        known = sorted(self.model)[name % len(self.model)]
        state = self.model[known]
        if state[0] != "dead":
            with pytest.raises(NotDead):
                self.portal.do(self.jobs["one.1"].retry, WHOLE_DEFAULT, known)
            return
        self.portal.do(self.jobs["one.1"].retry, WHOLE_DEFAULT, known)
        state[:] = ["ready", 0, 0, None]

    # --- what holds after every step

    @invariant()
    def the_table_is_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        query = """
        SELECT conversation_id, every_job.state, every_job.attempts, every_job.crashes, job.lease_token
        FROM every_job JOIN conversation USING (seq) LEFT JOIN job USING (seq)
        """
        found = {row[0]: list(row[1:]) for row in self.portal.do(rows, self.process.postgres, query)}
        assert found == self.model

    @invariant()
    def every_score_counts_once_and_the_books_balance(self) -> None:
        if not hasattr(self, "model"):
            return
        off = self.portal.do(rows, self.process.postgres, _OFF)
        assert off == []
        assert self.portal.do(self._gaps) == []

    async def _gaps(self) -> list[ledger.Gap]:
        line = self.process.postgres.dedicated()
        try:
            return await ledger.gaps(line)
        finally:
            with trio.move_on_after(5, shield=True):
                await line.close()


_OFF = """
SELECT 'score' FROM every_job WHERE (state = 'done') <> (score IS NOT NULL)
UNION ALL SELECT 'relationship' FROM (
    SELECT user_id, sum(score) AS score, count(*) AS n FROM conversation JOIN every_job USING (seq)
    WHERE state = 'done' GROUP BY user_id) AS s
FULL JOIN (SELECT user_id, sum(score) AS score, sum(conversations) AS n FROM relationship GROUP BY user_id) AS r
USING (user_id) WHERE (s.score, s.n) IS DISTINCT FROM (r.score, r.n)
UNION ALL SELECT 'memory' FROM memory GROUP BY user_id, key HAVING count(*) > 1
UNION ALL SELECT 'lease' FROM job WHERE (state = 'leased') <> (lease_token IS NOT NULL)
UNION ALL SELECT 'attempts' FROM every_job WHERE attempts > 4
"""


FIXED = settings(
    max_examples=10,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def drive(url: str, how: settings) -> None:
    portal = Portal()
    with structlog.testing.capture_logs(), portal.opened(url):
        run_state_machine_as_test(type("OnThisDatabase", (Machine,), {"portal": portal}), settings=how)


def test_whatever_several_processes_do_every_invariant_holds(database: str) -> None:
    drive(database, FIXED)


def test_the_machine_notices_a_fence_that_is_gone(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unfenced = """
    SELECT mine.token AS lease_token, '' AS leased_by, convo_now() AS now
    FROM job JOIN unnest($1::bigint[], $2::bigint[]) AS mine (seq, token)"""
    monkeypatch.setattr("convo.store.jobs.lease._HOLD", f"{unfenced} ON job.seq = mine.seq")
    with pytest.raises(BaseException, match=r"a late worker could write|found == self\.model|the database refuses"):
        drive(database, settings(FIXED, phases=(Phase.generate,)))
