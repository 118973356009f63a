"""Who owns whom: opens resources and nurseries in order, and closes them in the opposite one.

The only file that does. It knows every part by name and the work of none.

    asyncio loop > PostgreSQL (embedded or given) > HTTP clients
      > keepers nursery (preparation, committer, shelf, settler, heartbeat, watch, sampler, books, alerts, canary)
        > workers nursery
          > feed nursery: publisher; its body is the HTTP server

**Stop order is nesting order.** On SIGTERM ``/readyz`` turns 503 for ``shutdown.notice_seconds`` while requests are
still taken; then the server stops accepting and finishes its requests (``shutdown.intake_seconds``); the feed is
cancelled, which closes the channel; the workers run dry (``shutdown.workers_seconds``), what is left of them is
released (``shutdown.settle_seconds``); the keepers are cancelled; pool and database close.

The workers are siblings of the server and never children of the app's own nursery: a crash there would leave a server
that answers 202 with nobody behind it. A bug in one job is that job's failure (``pipeline.worker``), a bug in one
request is that request's (``web.door``); a bug in a loop ends the process, and the leases make that safe.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import trio
from msgspec import Struct, structs

from convo import __version__, crash, identity, tasks, threads
from convo.alerts.delivery import Outbox, open_outboxes
from convo.alerts.keeper import Alerts, Here
from convo.analysis import local
from convo.analysis.analyze import Analyst, Analysts, in_process
from convo.analysis.llm import Model
from convo.analysis.memory import MemoryService
from convo.analysis.remote import open_client
from convo.bell import Bell
from convo.bridge import open_bridge
from convo.canary import Canary
from convo.config import Settings
from convo.conversation.model import PartName
from convo.deadline import deadline
from convo.errors import ConvoError, DatabaseUnavailable, Refused
from convo.observe import events, loop, metrics
from convo.pipeline.held import Held
from convo.pipeline.publisher import Handed, Publisher
from convo.pipeline.worker import Worker
from convo.store import embedded, ledger, processes
from convo.store.conversations import Reader
from convo.store.intake import LINE_SETTINGS, Committer
from convo.store.jobs import Jobs
from convo.store.logs import Handover
from convo.store.lookout import Lookout
from convo.store.migrate import migrate
from convo.store.postgres import Postgres, inspect, open_postgres
from convo.store.promises import check_room, connections_spare, connections_wanted, risks
from convo.store.settle import Settler
from convo.store.shelf import Shelf
from convo.store.watch import Watch
from convo.web.admission import Admission
from convo.web.app import Api
from convo.web.authority import Authority
from convo.web.clients import Clients
from convo.web.conversations import Intake
from convo.web.explaining import Explaining
from convo.web.operations import DATABASE, Operations
from convo.web.readiness import Readiness
from convo.web.reading import Reading
from convo.web.server import check_certificate, set_options
from convo.web.server import serve as serve_http

_BOOKS_SECONDS = 60.0
_PREPARE_AGAIN_SECONDS = 1.0
# So many new objects before the collector looks at them. At Python's 700 (3.11) it looks at each batch of accepts
# several times, a tenth of all their work, and finds nothing: what a request made goes with it.
_YOUNG = 10_000
# The embedded server's own log is cut back when it is past its bound.
_TRIM_SECONDS = 600.0


class Started(Struct, frozen=True, kw_only=True):
    """What is told once requests are served."""

    url: str
    database: str
    data_dir: Path
    warnings: tuple[str, ...]


Announce = Callable[[Started], None]
Remote = Model | MemoryService
Keeper = Callable[[], Awaitable[None]]
Ready = Callable[[Sequence[str]], None]


async def serve(settings: Settings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order; ``announce`` is called once, when requests are served.

    Raises:
        Refused: the service cannot start as things stand.
    """
    data_dir = Path(settings.server.data_dir)
    threads.favour_the_loop()
    metrics.tell_build(__version__)
    if settings.observe.crash_at:
        crash.arm(settings.observe.crash_at)
    # Heard from the first moment on: what arrives while the database starts is obeyed as soon as it runs.
    with (
        _signals() as signals,
        identity.claim(data_dir) as name,
    ):
        async with open_bridge() as bridge, AsyncExitStack() as stack:
            url, described, keepers = await stack.enter_async_context(_database(settings, data_dir))
            postgres = await stack.enter_async_context(
                open_postgres(
                    bridge,
                    url,
                    settings.database,
                    name=name.rpartition("/")[2],
                    slow_query_seconds=settings.alerts.slow_query_seconds,
                )
            )
            analysts, remotes = await stack.enter_async_context(_analysts(settings))
            outboxes = await stack.enter_async_context(open_outboxes(settings.alerts))
            listening = _listen(settings, stack)
            service = Service(settings, postgres, name, analysts, remotes, outboxes=outboxes)
            stack.enter_context(events.heard_by(service.alerts.hear))
            # Not before: a start may hold the loop, for there is nobody yet who waits for it.
            stack.enter_context(loop.watching(settings.observe.loop_block_seconds))
            started = Started(
                url=_url(listening[0], settings), database=described, data_dir=data_dir.resolve(), warnings=()
            )

            def ready(warnings: Sequence[str]) -> None:
                announce(structs.replace(started, warnings=tuple(warnings)))
                events.service_started(
                    url=started.url, pid=os.getpid(), database=described, data_dir=str(started.data_dir)
                )

            await service.run(listening, signals, keepers, ready)
    events.service_stopped()


_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def _signals() -> Iterator[AsyncIterator[int]]:
    """Hear what we are told; once it was to stop, what comes when all is closed must not kill the process."""
    # What the receiver puts back when it closes.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _HEARD}
    stopped = False

    async def noted(signals: AsyncIterator[int]) -> AsyncIterator[int]:
        nonlocal stopped
        async for number in signals:
            stopped = stopped or number != signal.SIGUSR1
            yield number

    try:
        with trio.open_signal_receiver(*before) as signals:
            yield noted(signals)
    finally:
        if not stopped:
            for number, handler in before.items():
                signal.signal(number, handler)


class Service:
    """The parts of one process and their nurseries."""

    def __init__(
        self,
        settings: Settings,
        postgres: Postgres,
        name: str,
        analysts: Analysts,
        remotes: Sequence[Remote],
        *,
        outboxes: Sequence[Outbox],
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._bell = Bell()
        self._stop = trio.Event()
        self._prepared = trio.Event()
        self._readiness = Readiness()
        self._jobs = Jobs(postgres, settings.jobs, name)
        self._authority = Authority(settings.auth, postgres)
        self._handover = Handover(settings.jobs.handover_bytes if settings.jobs.workers else 0)
        self._held = Held(self._jobs, settings.jobs)
        self._shelf = Shelf(self._jobs, postgres.unit_seconds)
        self._settler = Settler(postgres, settings.score)
        self._watch = Watch(postgres, settings.jobs.poll_seconds)
        self._committer = Committer(
            postgres.line(**LINE_SETTINGS),
            settings.intake,
            settings.fairness.key,
            postgres.unit_seconds,
            self._taken,
        )
        dependencies = [remote.dependency for remote in remotes]
        admission = Admission(settings.intake, settings.web.request_seconds)
        self._publisher = Publisher(
            self._jobs, settings.jobs, self._bell, dependencies, self._watch.tell, admission.refuses
        )
        self._worker = Worker(
            settings=settings,
            postgres=postgres,
            jobs=self._jobs,
            shelf=self._shelf,
            settler=self._settler,
            handover=self._handover,
            held=self._held,
            analysts=analysts,
            dependencies={dependency.name: dependency for dependency in dependencies},
            bell=self._bell,
            ended=self._watch.tell,
        )
        self._lookout = Lookout(postgres, settings.alerts)
        self.alerts = Alerts(
            settings=settings.alerts,
            here=Here(process=name, folder=Path(settings.server.data_dir), pool=postgres.in_use),
            lookout=self._lookout,
            prepared=self._prepared,
            outboxes=outboxes,
        )
        self._reader = reader = Reader(postgres)
        pings = {remote.dependency.name: remote.ping for remote in remotes}
        self._api = Api(
            settings=settings,
            intake=Intake(
                settings=settings.web,
                committer=self._committer,
                readiness=self._readiness,
                authority=self._authority,
                clients=Clients(settings.clients),
                admission=admission,
            ),
            reading=Reading(
                settings=settings, reader=reader, jobs=self._jobs, watch=self._watch, revived=self._bell.ring
            ),
            explaining=Explaining(postgres=postgres, dependencies={one.name: one for one in dependencies}),
            operations=Operations(
                readiness=self._readiness, pings={DATABASE: self._ping_database, **pings}, alerts=self.alerts
            ),
        )
        self._canary = Canary(
            settings=settings.canary,
            request_seconds=settings.web.request_seconds,
            intake=self._api.intake,
            reading=self._api.reading,
            postgres=postgres,
        )

    async def _ping_database(self) -> None:
        self._committer.check()
        await self._reader.ping()

    def _taken(self, committed: list[tuple[int, bytes]]) -> None:
        self._handover.put(committed)
        self._bell.ring()

    async def run(
        self, listening: Sequence[socket.socket], signals: AsyncIterator[int], others: Sequence[Keeper], ready: Ready
    ) -> None:
        """Run every part until the stop, then stop them in order."""
        async with trio.open_nursery() as keepers:
            keepers.start_soon(self._hear, signals)
            for group in (self._committer, self._shelf, self._settler):
                await keepers.start(group.run)
            for keeper in (self._held.beat, self._watch.run, self._sample):
                await keepers.start(keeper)
            for deliver in (self.alerts.run, *(outbox.run for outbox in self.alerts.outboxes)):
                await keepers.start(deliver)
            for keep in others:
                keepers.start_soon(keep)
            keepers.start_soon(self._prepare, ready)
            keepers.start_soon(self._keep_books)
            keepers.start_soon(self._keep_keys)
            keepers.start_soon(self._look_out)
            keepers.start_soon(self._fly)
            await self._work(listening)
            await self._settle_accounts()
            keepers.cancel_scope.cancel()

    async def _work(self, listening: Sequence[socket.socket]) -> None:
        async with trio.open_nursery() as workers:
            send, receive = trio.open_memory_channel[Handed](0)
            async with receive:
                for _ in range(self._settings.jobs.workers):
                    workers.start_soon(self._worker.run, receive.clone())
            async with trio.open_nursery() as feed:
                feed.start_soon(self._publish, send)
                await self._serve(listening)
                feed.cancel_scope.cancel()
            workers.cancel_scope.deadline = trio.current_time() + self._settings.shutdown.workers_seconds

    async def _publish(self, send: trio.MemorySendChannel[Handed]) -> None:
        async with send:
            await self._prepared.wait()
            await self._publisher.run(send)

    async def _serve(self, listening: Sequence[socket.socket]) -> None:
        await serve_http(listening, self._api, self._stopping)

    async def _stopping(self) -> None:
        """Wait for the stop, then for the notice that those in front of us are given."""
        await self._stop.wait()
        self._readiness.drain()
        await trio.sleep(self._settings.shutdown.notice_seconds)

    async def _hear(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGUSR1:
                tasks.tell()
                continue
            events.service_stopping(reason=signal.Signals(number).name)
            self._stop.set()

    # --- the start

    async def _prepare(self, ready: Ready) -> None:
        """Migrate and sign in, as soon as the database answers; until then accepts are refused with 503."""
        line = self._postgres.line()
        while not self._prepared.is_set():
            try:
                found = await inspect(self._postgres, line)
                before, after = await migrate(line)
                await self._sign_in(found)
            except DatabaseUnavailable as error:
                events.prepare_failed(reason=_with_cause(error))
                await trio.sleep(_PREPARE_AGAIN_SECONDS)
            else:
                if before != after:
                    events.migrated(from_version=before, to_version=after)
                self._prepared.set()
        await line.close()
        # What stands by now stands till the end: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        self._readiness.open()
        ready(self._readiness.warnings)

    async def _sign_in(self, found: Mapping[str, str]) -> None:
        self._warn_of_durability(found)
        pool_max = self._settings.database.pool_max
        everybody = await processes.enter(
            self._postgres,
            self._jobs.owner,
            pid=os.getpid(),
            host=socket.gethostname(),
            connections_max=connections_wanted(pool_max),
        )
        check_room(found, pool_max)
        spare = connections_spare(found)
        if everybody > spare:
            events.connections_warning(connections=everybody, max_connections=spare)
            self._readiness.warnings.append(
                f"all convo processes may open {everybody} connections, the database takes {spare}"
            )
        # We hold the folder of this name: whoever leased under it before us is dead.
        released = await self._jobs.release_all(crashed=True)
        if released:
            events.own_leases_released(count=released)

    def _warn_of_durability(self, found: Mapping[str, str]) -> None:
        for setting, warning in risks(found).items():
            events.durability_warning(setting=setting, value="off")
            self._readiness.warnings.append(warning)

    # --- the stop, and the gauges

    async def _settle_accounts(self) -> None:
        """Give back what a cut-off publisher or worker may still have leased, and sign out."""
        with trio.move_on_after(self._settings.shutdown.settle_seconds):
            if not self._prepared.is_set():
                return
            try:
                released = await self._jobs.release_all(crashed=False)
                await processes.leave(self._postgres, self._jobs.owner)
            except ConvoError as error:
                events.ending_failed(conversation_id="*", reason=error.detail)
            else:
                events.own_leases_released(count=released)

    async def _keep_keys(self) -> None:
        await self._prepared.wait()
        await self._authority.run()

    async def _keep_books(self) -> None:
        """Once a minute, if this process tells of what all share: compare the tables with the books."""
        await self._prepared.wait()
        line = self._postgres.line()
        try:
            while True:
                await trio.sleep(_BOOKS_SECONDS)
                if not self.alerts.leads:
                    metrics.ledger_gaps.set(0)
                    continue
                try:
                    gaps = await ledger.keep(line)
                except ConvoError as error:
                    events.books_failed(reason=error.detail)
                    continue
                if gaps is not None:
                    metrics.ledger_gaps.set(len(gaps))
                for gap in gaps or ():
                    events.ledger_gap(day=gap.day.isoformat(), what=gap.what, booked=gap.booked, found=gap.found)
        finally:
            await line.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def _look_out(self) -> None:
        try:
            await self.alerts.ask()
        finally:
            await self._lookout.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def _fly(self) -> None:
        await self._prepared.wait()
        if self._settings.canary.enabled:
            await self._canary.run()

    async def _sample(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await self._prepared.wait()
        while True:
            try:
                counts, oldest = await self._jobs.count()
            except ConvoError as error:
                events.sample_failed(reason=error.detail)
            else:
                for state, count in counts.items():
                    metrics.jobs.labels(state).set(count)
                metrics.oldest_ready_job_age_seconds.set(oldest)
            await trio.sleep(self._settings.observe.sample_seconds)


def _with_cause(error: ConvoError) -> str:
    # The database's own words; a deadline's are the same words once more.
    cause = str(error.__cause__ or "")
    return f"{error.detail}: {cause}" if cause and cause != error.detail else error.detail


# --- the resources


@asynccontextmanager
async def _database(settings: Settings, data_dir: Path) -> AsyncIterator[tuple[str, str, Sequence[Keeper]]]:
    """Yield the database's URL, its description without secrets, and the keepers it needs."""
    if settings.database.url:
        url = settings.database.url.reveal()
        yield url, _described(url), ()
        return
    async with embedded.embedded(data_dir) as server:

        async def keep() -> None:
            await embedded.keep(server)

        async def trim() -> None:
            while True:
                await trio.sleep(_TRIM_SECONDS)
                try:
                    with deadline("embedded.trim", _TRIM_SECONDS):
                        await trio.to_thread.run_sync(embedded.trim_log, server.log_file)
                except OSError as error:
                    events.disk_full(error=f"the log {server.log_file} cannot be cut back: {error.strerror}")

        described = (
            f"embedded PostgreSQL {server.version} in {server.data_folder}"
            f" ({_megabytes(server.size_bytes)} used, {_megabytes(server.disk_free_bytes)} free)"
        )
        yield server.dsn, described, (keep, trim)


def _described(url: str) -> str:
    # Only what cannot hold a password: it may stand in the query, too.
    parts = urlsplit(url)
    return f"PostgreSQL at {parts.netloc.rpartition('@')[2] or 'a local socket'}{parts.path}"


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


@asynccontextmanager
async def _analysts(settings: Settings) -> AsyncIterator[tuple[Analysts, Sequence[Remote]]]:
    """Yield who finds each part, and those of them that are remote."""
    turn = trio.Lock()
    analysts: dict[PartName, Analyst] = {
        "questions": in_process(local.BY, local.questions, turn),
        "emotion": in_process(local.BY, local.emotion, turn),
        "memories": in_process(local.BY, local.memories, turn),
    }
    remotes: list[Remote] = []
    async with AsyncExitStack() as stack:
        if settings.llm.model:
            model = Model(await stack.enter_async_context(open_client(settings.llm)), settings.llm)
            analysts["questions"] = Analyst(by=model.by, find=model.questions)
            analysts["emotion"] = Analyst(by=model.by, find=model.emotion)
            remotes.append(model)
        if settings.memory.url:
            service = MemoryService(await stack.enter_async_context(open_client(settings.memory)), settings.memory)
            analysts["memories"] = Analyst(by=service.by, find=service.memories)
            remotes.append(service)
        yield analysts, remotes


def _listen(settings: Settings, stack: AsyncExitStack) -> list[socket.socket]:
    """Listen where requests are taken, and where the operations have an address of their own."""
    server = settings.server
    check_certificate(server)
    addresses = [("server", server.host, server.port)]
    if server.operations_port:
        addresses.append(("server.operations", server.operations_host, server.operations_port))
    return [stack.enter_context(_listen_on(*address, settings)) for address in addresses]


def _listen_on(name: str, host: str, port: int, settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    set_options(listening, settings.connection)
    try:
        listening.bind((host, port))
        listening.listen(settings.server.backlog)
    except OSError as error:
        listening.close()
        joint = "." if name == "server" else "_"
        raise Refused(
            f"cannot listen on {name}{joint}host {host} {name}{joint}port {port}: {error.strerror};"
            " stop what listens there, or choose another with --port"
        ) from error
    return listening


def _url(listening: socket.socket, settings: Settings) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "https" if settings.server.certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
