"""One process from start to stop: opens resources and nurseries in order, and closes them in the opposite order.

Open it to learn what runs beside what, and what happens at a stop. No other module opens a nursery that lives as long
as the process. What a start does once is in ``startup``, and what is connected to what in ``components``.

    asyncio loop > PostgreSQL (embedded or given) > HTTP clients
      > keepers nursery (preparation, committer, part writer, settler, audit queue, heartbeat, watch, alerts,
        gauges, ledger, agreement, pings, canary)
        > settling nursery
          > workers nursery
            > feed nursery: publisher; its body is the HTTP server

**Stop order is nesting order.** On SIGTERM ``/readyz`` turns 503 for ``shutdown.notice_seconds`` while requests are
still taken. Then the server stops accepting and finishes its requests (``shutdown.intake_seconds``). The feed is
cancelled, which closes the channel. The workers finish their jobs (``shutdown.workers_seconds``), and what is left of
them is released (``shutdown.settle_seconds``). What they have handed over is settled within the same time. The keepers
are cancelled; the connections and the database close.

The workers are siblings of the server and never children of the app's own nursery: a crash there would leave a server
that answers 202 while no worker runs. A bug in one job is that job's failure (``pipeline.worker``), and a bug in one
request is that request's failure (``web.door``). A bug in a loop ends the process, and the leases make that safe.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import trio

from convo import __version__, startup
from convo.alerts.shared import SharedState
from convo.alerts.sinks import open_sinks
from convo.changed_settings import changed_settings
from convo.components import Components
from convo.errors import ConvoError
from convo.http.listening import listen, url_of
from convo.http.server import serve_http
from convo.observe import log_records, metrics
from convo.otel.keeper import open_collector
from convo.pipeline.publisher import LEASED_AHEAD_MAX, Handed
from convo.pipeline.settling import SETTLING_MAX
from convo.runtime import identity, loop_watch, threads
from convo.runtime.bell import Bell
from convo.runtime.bridge import open_bridge
from convo.runtime.deadline import wait_observers
from convo.runtime.precedence import ACCEPTS
from convo.runtime.signals import obey, receive_signals, reload_observers
from convo.runtime.wait_metrics import count_wait
from convo.settings import Settings
from convo.startup import Keeper, Started
from convo.store import process_programs, processes
from convo.store.audit_log import AuditEntry
from convo.store.postgres import open_postgres
from convo.web.dispatch import direct_targets

Announce = Callable[[Started], None]
Ready = Callable[[Sequence[str]], None]


async def serve(settings: Settings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order; ``announce`` is called once, when requests are served.

    Raises:
        Refused: the service cannot start as things stand.
    """
    data_dir = Path(settings.server.data_dir)
    threads.shorten_switch_interval()
    ACCEPTS.others_share = settings.web.reads_share
    metrics.set_build_info(__version__)
    # Signals count from the first moment: one that arrives while the database starts is obeyed as soon as it runs.
    with wait_observers.adding(count_wait), receive_signals() as signals, identity.claim(data_dir) as me:
        async with open_bridge() as bridge, AsyncExitStack() as stack:
            collector = await stack.enter_async_context(open_collector(settings.otel, me.label))
            source = await stack.enter_async_context(startup.open_database_source(settings))
            postgres = await stack.enter_async_context(
                open_postgres(
                    bridge,
                    source.url,
                    settings.database,
                    name=me.incarnation,
                    slow_query_seconds=settings.alerts.slow_query_seconds,
                    folder=data_dir,
                )
            )
            analysts, remotes = await stack.enter_async_context(startup.open_analysts(settings))
            sinks = await stack.enter_async_context(open_sinks(settings))
            hooks = await stack.enter_async_context(startup.open_hooks(settings))
            storage = await stack.enter_async_context(startup.open_storage(settings, bridge, postgres))
            shared = SharedState(postgres, settings.alerts)
            stack.push_async_callback(shared.close)
            listening = listen(settings, stack)
            components = Components(
                settings,
                bridge,
                postgres,
                me,
                analysts,
                remotes,
                shared=shared,
                sinks=sinks,
                hooks=hooks,
                storage=storage,
                collector=collector,
            )
            stack.enter_context(log_records.record_observers.adding(components.alerts.note_record))
            startup.settle_collector()
            # Not before: a start may hold the loop, because no client waits for it yet.
            stack.enter_context(loop_watch.watching(settings.observe.loop_block_seconds))
            url = url_of(listening[0], settings)
            stack.enter_context(startup.noted_address(data_dir, url))

            def ready(warnings: Sequence[str]) -> None:
                found = data_dir.resolve()
                announce(Started(url=url, database=source.description, data_dir=found, warnings=tuple(warnings)))
                log_records.service_started(url=url, pid=os.getpid(), database=source.description, data_dir=str(found))

            await Service(components).run(listening, signals, source.keepers, ready)
    log_records.service_stopped()


class Service:
    """The nurseries of one process, and the order in which they start and stop."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._settings = components.settings
        self._stop = trio.Event()

    async def run(
        self, listening: Sequence[socket.socket], signals: AsyncIterator[int], others: Sequence[Keeper], ready: Ready
    ) -> None:
        """Run every part until the stop, then stop them in order."""
        components = self._components
        async with trio.open_nursery() as keepers:
            keepers.start_soon(obey, signals, self._stop)
            for group in (components.committer, components.part_writer, components.settler):
                await keepers.start(group.run)
            if components.spending is not None:
                await keepers.start(components.spending.run_group)
            for keeper in (components.audit_queue.run, components.held.beat, components.watch.run):
                await keepers.start(keeper)
            for deliver in (components.alerts.run, *(queue.run for queue in components.alerts.sinks.every)):
                await keepers.start(deliver)
            for keep in (
                components.alerts.ask,
                components.alerts.open.run,
                components.postgres.watch_hosts,
                *components.pings.keepers,
                *others,
            ):
                keepers.start_soon(keep)
            for remote in components.remotes:
                remote.inspect()
                keepers.start_soon(remote.check_at_start)
            keepers.start_soon(self._prepare, ready)
            keepers.start_soon(self._once_prepared, self._reload_keys)
            for later in components.prepared_keepers():
                keepers.start_soon(self._once_prepared, later, name=later)
            await self._work(listening)
            await self._sign_out()
            keepers.cancel_scope.cancel()

    async def _prepare(self, ready: Ready) -> None:
        """Open the service once the database is ready; until then accepts are refused with 503.

        From then on wait until the database goes back, and do it again.
        """
        components = self._components
        await self._sign_in(again=False)
        await self._note_start()
        # Before the first request: the keys must not be unknown then.
        await components.authority.refresh()
        components.prepared.set()
        await components.open_to_requests()
        ready(components.readiness.shown_warnings)
        while True:
            await components.going_back.noticed()
            components.forget_database()
            await self._sign_in(again=True)
            await components.authority.refresh()
            await components.open_to_requests()

    async def _note_start(self) -> None:
        """Note in the audit log that this process starts, and its settings: once, whatever the database does later."""
        changed = changed_settings(self._settings)
        detail = {"process": self._components.me.label, "version": __version__, **msgspec.structs.asdict(changed)}
        self._components.audit_queue.add(AuditEntry(action="start", detail=detail))
        # Usually before the first request. Where it fails, the queue tries again.
        await self._components.audit_queue.flush()

    async def _sign_in(self, *, again: bool) -> None:
        components = self._components
        components.readiness.warnings = []
        found = await startup.prepare_database(
            components.postgres,
            components.jobs,
            components.me,
            self._settings,
            components.going_back,
            contracts=components.contracts,
            erasures=components.erasures,
            again=again,
        )
        # Not at once: a contract step that waits was added meanwhile.
        components.readiness.warnings = [*found, *components.readiness.warnings]

    async def _once_prepared(self, keeper: Keeper) -> None:
        await self._components.prepared.wait()  # no deadline: an event of ours
        await keeper()

    async def _reload_keys(self) -> None:
        """Read the clients' keys again at each SIGHUP."""
        bell = Bell()
        with reload_observers.adding(bell.ring):
            while True:
                await bell.rung()
                await self._components.authority.refresh()
                detail = {"process": self._components.me.label}
                self._components.audit_queue.add(AuditEntry(action="reload", detail=detail))

    async def _work(self, listening: Sequence[socket.socket]) -> None:
        workers = self._settings.jobs.workers
        async with trio.open_nursery() as settling:
            for _ in range(max(0, SETTLING_MAX - workers) if workers else 0):
                settling.start_soon(self._components.settling.run)
            await self._work_off(workers, listening)
            # Each settle under way shields itself, with a bound.
            settling.cancel_scope.cancel()

    async def _work_off(self, count: int, listening: Sequence[socket.socket]) -> None:
        async with trio.open_nursery() as workers:
            send, receive = trio.open_memory_channel[Handed](LEASED_AHEAD_MAX)
            for _ in range(count):
                workers.start_soon(self._components.worker.run, receive.clone())
            async with trio.open_nursery() as feed:
                feed.start_soon(self._publish, send, receive)
                await self._serve(listening)
                feed.cancel_scope.cancel()
            workers.cancel_scope.deadline = trio.current_time() + self._settings.shutdown.workers_seconds

    async def _publish(self, send: trio.MemorySendChannel[Handed], receive: trio.MemoryReceiveChannel[Handed]) -> None:
        async with receive, send:
            await self._components.prepared.wait()  # no deadline: an event of ours
            await self._components.publisher.run(send, receive)

    async def _serve(self, listening: Sequence[socket.socket]) -> None:
        await serve_http(
            listening, self._settings, self._components.app, direct_targets(self._components.api), self._stopping
        )

    async def _stopping(self) -> None:
        """Wait for the stop signal, then as long as gateways need to notice that ``/readyz`` answers 503."""
        await self._stop.wait()
        self._components.readiness.drain()
        self._components.open_streams.stop()
        await trio.sleep(self._settings.shutdown.notice_seconds)

    async def _sign_out(self) -> None:
        """Release what may still be leased, sign out, store the audit log, and send the last spans."""
        components = self._components
        with trio.move_on_after(self._settings.shutdown.settle_seconds):
            if not components.prepared.is_set():
                return
            try:
                released = await components.jobs.release_all()
                await components.agreement.leave()
                await components.leave_couriers()
                await processes.leave(components.postgres, components.jobs.owner)
                await process_programs.withdraw(components.postgres, components.me.incarnation)
            except ConvoError as error:
                log_records.ending_failed(conversation_id="*", reason=error.detail)
            else:
                log_records.own_leases_released(count=released)
            await components.audit_queue.flush()
            await components.leave_collector()
