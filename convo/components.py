"""Makes the components of one process and connects them: which takes which, and who is called when something happens.

Open it to add a component, or to give one what it lacks. Nothing runs yet: what runs beside what is in ``service``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import trio

from convo.alerts.formats import Notification
from convo.alerts.keeper import Alerts, Here
from convo.alerts.ledger_watch import watch_ledger
from convo.alerts.shared import SharedState
from convo.alerts.sinks import OpenSinks
from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.clients import model_of
from convo.analysis.declared import declarations, served_dependencies
from convo.analysis.memory import MemoryService
from convo.analysis.remote import RemoteAnalyst
from convo.canary import Canary
from convo.capacity.load_ratio import Fill
from convo.capacity.meter import Meter
from convo.contracts import Contracts
from convo.dependencies import OLD_LOGS
from convo.erasure_keeper import ErasureKeeper
from convo.event_keeper import keep_events
from convo.http.asgi import App
from convo.job_room_keeper import keep_job_room
from convo.months_keeper import keep_months
from convo.objects.keeper import LogsKeeper
from convo.objects.storage import ObjectStorage
from convo.observe import metrics
from convo.otel.keeper import CollectorKeeper
from convo.outbound_checked import CheckedClient
from convo.pipeline.agreement import Agreement
from convo.pipeline.endings import Endings
from convo.pipeline.held import HeldLeases
from convo.pipeline.part_keeper import PartKeeper
from convo.pipeline.publisher import Publisher
from convo.pipeline.settling import Settling
from convo.pipeline.spending import spending_of
from convo.pipeline.worker import Worker
from convo.rabbitmq.broker import dependency_of
from convo.rabbitmq.intake import QueueIntake
from convo.rabbitmq.relay import Relay
from convo.resilience.dependency import Dependency, JobDependency
from convo.retention import passes
from convo.retention_keeper import RetentionKeeper
from convo.runtime.bell import Bell
from convo.runtime.bridge import Bridge
from convo.runtime.identity import Identity
from convo.runtime.pace import Pacer
from convo.settings import Settings
from convo.single_reanalysis import SingleReanalyses
from convo.startup import Keeper
from convo.store.audit_queue import AuditQueue
from convo.store.conversations import Reader
from convo.store.event_numbers import Numberer
from convo.store.going_back import GoingBack
from convo.store.intake import SESSION_SETTINGS, Committer, owed_of_accept
from convo.store.jobs.part_jobs import PartJobs
from convo.store.jobs.part_writer import PartWriter
from convo.store.jobs.remote_bell import RemoteBell
from convo.store.jobs.revisions import Revisions
from convo.store.jobs.sampler import sample_jobs
from convo.store.jobs.settle import Settler
from convo.store.jobs.table import Jobs
from convo.store.jobs.watch import Watch
from convo.store.logs import CommittedLog, LogStore, RecentLogs
from convo.store.outbox import Outbox
from convo.store.owed_sets import OwedSets
from convo.store.postgres import Postgres
from convo.store.receipts import GivenReceipts
from convo.telling import Teller, telling_of
from convo.tenant_keeper import TenantIndexes
from convo.web.accept import AcceptRoute
from convo.web.admission import Admission
from convo.web.app import make_app
from convo.web.auditing import AuditLogRoute
from convo.web.authority import Authority
from convo.web.browsers import Browsers
from convo.web.capacity import CapacityRoute, batch_rows
from convo.web.clients import Clients
from convo.web.conversations import ReadRoutes
from convo.web.dispatch import Api
from convo.web.door import Door
from convo.web.erasing import EraseRoutes
from convo.web.event_stream import EventStreams
from convo.web.explaining import ExplainRoute
from convo.web.figures import InstallationFigures
from convo.web.live import LiveStreams
from convo.web.open_streams import OpenStreams
from convo.web.operations import OperationsRoutes
from convo.web.pings import DATABASE_PING, PingEvery, Pings
from convo.web.readiness import Readiness
from convo.web.reads import Reads
from convo.web.reanalysing import ReanalyseRoute
from convo.web.session_routes import SessionRoutes
from convo.web.shared_answers import SharedAnswers
from convo.web.webhooks import WebhookRoutes
from convo.webhooks.courier import WORKERS, Courier
from convo.webhooks.sending import Sender


class Components:
    """Everything in this process that runs or is called as long as it lives."""

    def __init__(  # noqa: PLR0913, PLR0917  (the resources that are open before it)
        self,
        settings: Settings,
        bridge: Bridge,
        postgres: Postgres,
        me: Identity,
        analysts: AnalystsOfSets,
        remotes: Sequence[RemoteAnalyst],
        *,
        shared: SharedState,
        sinks: OpenSinks,
        hooks: CheckedClient,
        storage: ObjectStorage | None = None,
        collector: CollectorKeeper | None = None,
    ) -> None:
        self._sender = Sender(hooks, settings.webhooks.attempt_seconds)
        self.settings = settings
        self.postgres = postgres
        self.me = me
        self.prepared = trio.Event()
        """Set once the database is ready for the first time."""
        self.remotes = remotes
        self._bell = Bell()
        every = self._note_dependencies(storage, collector)
        self.readiness = Readiness(every)
        self._reads = Reads(settings.web)
        self._admission = Admission(settings.intake, settings.web.request_seconds)
        self._appended = Bell()
        self.outbox = Outbox(settings.events.types, settings.score, self._appended.ring)
        self.pacer = Pacer(
            self._admission.accepts, self._admission.refuses, lambda: metrics.local_analysis_seconds_total.value
        )
        self._open_meter()
        self._open_logs()
        self._owed_sets = OwedSets()
        self.jobs = Jobs(
            postgres,
            settings.jobs,
            me.name,
            served_dependencies(settings),
            recent_logs=self._recent_logs,
            outbox=self.outbox,
            owed_sets=self._owed_sets,
        )
        self.agreement = Agreement(postgres, settings, lambda: self.jobs.owner, self._agreement_changed)
        self.contracts = Contracts(postgres, me.incarnation, self._contracts_changed)
        self.authority = Authority(settings.auth, postgres, self._keys_read)
        self.open_streams = OpenStreams(settings.events.streams_max, self.authority.still_good)
        self.shared_answers = SharedAnswers(lambda: self.numberer.last)
        self.held = HeldLeases(self.jobs, settings.jobs)
        self.part_writer = PartWriter(self.jobs, postgres.unit_seconds)
        self.spending = spending_of(settings, postgres, remotes, self._bell.ring)
        self.settler = Settler(postgres, settings.score, self.outbox)
        self.audit_queue = AuditQueue(postgres)
        self.watch = Watch(postgres, settings.jobs.poll_seconds)
        self.alerts = Alerts(
            settings=settings.alerts,
            oncall=settings.oncall,
            here=Here(
                process=lambda: me.label,
                folder=Path(settings.server.data_dir),
                pool=postgres.in_use,
                folder_id=lambda: me.folder,
                public_url=settings.server.public_url,
            ),
            postgres=postgres,
            shared=shared,
            prepared=self.prepared,
            sinks=sinks,
            publish=self._publish_alert,
        )
        service = next((remote for remote in remotes if isinstance(remote, MemoryService)), None)
        self._telling = telling_of(service)
        self._teller = (
            Teller(postgres, service, self._telling.traces)
            if service is not None and self._telling is not None
            else None
        )
        self.erasures = ErasureKeeper(
            postgres,
            Path(settings.server.data_dir),
            erased=self._erased,
            telling=self._telling,
            outbox=self.outbox,
            in_objects=storage is not None,
            leads=lambda: self.alerts.leads,
        )
        self.figures = InstallationFigures(
            settings.page, postgres, self.alerts, every, lambda: me.name, sampled=self._sampled
        )
        self.readiness.watch(self._warnings)
        self._open_store()
        self.courier = Courier(
            postgres, self.numberer, self._sender, settings.events, settings.webhooks, lambda: me.name
        )
        self.relay = self._make_relay(bridge)
        self._open_pipeline(analysts)
        self._open_routes(remotes)
        self.queue_intake = self._make_queue_intake(bridge)

    def _note_dependencies(self, storage: ObjectStorage | None, collector: CollectorKeeper | None) -> list[Dependency]:
        """Note what jobs may wait for; return all that is called from here."""
        self._dependencies: dict[str, JobDependency] = {
            remote.dependency.name: remote.dependency for remote in self.remotes if not remote.fallback
        }
        model = model_of(self.remotes)
        if model is not None:
            # With its fallbacks it is one for all who wait for it.
            self._dependencies[model.dependency.name] = model.dependency
        self._brokers = _dependencies_of_rabbitmq(self.settings)
        self._storage, self._collector = storage, collector
        old_logs = []
        if storage is not None:
            self._dependencies[OLD_LOGS] = storage.reads
            old_logs = [storage.reads, storage.packing]
        called = (remote.dependency for remote in self.remotes)
        telemetry = [] if collector is None else collector.dependencies
        return [*called, *self._brokers.values(), *old_logs, *telemetry]

    def _open_meter(self) -> None:
        settings = self.settings.capacity
        self._oldest_due_seconds = 0.0
        self._meter: Meter | None = None
        if settings.sample_seconds:
            self._meter = Meter(
                settings,
                lambda: self._admission.accepts().busy_seconds,
                self._fill,
                batch_rows=batch_rows(self.settings.intake),
                pace_seconds=lambda: self.pacer.share_seconds,
            )

    def _fill(self) -> Fill:
        workers = self.settings.jobs.workers
        return Fill(
            admission=self._admission.fill(),
            workers=len(self.held) / workers if workers else 0.0,
            backlog_seconds=self._oldest_due_seconds,
        )

    def _note_oldest(self, seconds: float) -> None:
        self._oldest_due_seconds = seconds

    def _make_queue_intake(self, bridge: Bridge) -> QueueIntake | None:
        dependency, api = self._brokers.get("rabbitmq_intake"), self.api
        if dependency is None:
            return None
        return QueueIntake(bridge, self.postgres, dependency, self.settings.rabbitmq, api.intake, api.door.clients)

    def _make_relay(self, bridge: Bridge) -> Relay | None:
        settings, dependency = self.settings, self._brokers.get("rabbitmq")
        if dependency is None or not settings.events.types:
            return None
        return Relay(bridge, self.postgres, self.numberer, dependency, settings.rabbitmq, lambda: self.me.name)

    def _open_logs(self) -> None:
        jobs = self.settings.jobs
        storage = self._storage
        self._log_store = LogStore(self.postgres, None if storage is None else storage.read_log)
        self._logs_keeper: LogsKeeper | None = None
        if storage is not None:
            self._logs_keeper = LogsKeeper(
                storage, self.postgres, self.settings.logs, self._leads, self._admission.refuses
            )
        handover_bytes = jobs.handover_bytes if jobs.workers else 0
        self._recent_logs = RecentLogs(self._log_store.take, handover_bytes, self.postgres.sessions.suspect)

    def _open_store(self) -> None:
        settings, postgres = self.settings, self.postgres
        suspect = postgres.sessions.suspect
        self._tenant_indexes = TenantIndexes(postgres, self._leads)
        self._reader = Reader(postgres, self._log_store, self._tenant_indexes.are_made, self._owed_sets)
        declared = declarations(settings)
        owe = None if declared is None else partial(owed_of_accept, declared)
        receipts = GivenReceipts(suspect)
        self.going_back = GoingBack(
            postgres, receipts, settings.jobs.heartbeat_seconds, lambda: self.alerts.leads and self.prepared.is_set()
        )
        self.committer = Committer(
            postgres.dedicated(**SESSION_SETTINGS),
            settings.intake,
            settings.fairness.key,
            postgres.unit_seconds,
            self._committed,
            receipts,
            self.outbox,
            owe=owe,
            owed_sets=self._owed_sets,
            revisions=Revisions(
                settings.intake,
                settings.fairness.key,
                postgres.unit_seconds,
                self._committed,
                self._superseded,
                self.outbox,
                owe,
                self._owed_sets,
            ),
        )
        self.streams = EventStreams(
            postgres, settings.events, lambda: self.numberer.last, self.authority, self.open_streams
        )
        self.live = LiveStreams(
            settings, postgres, self.figures, self.authority, self.open_streams, numbered=lambda: self.numberer.last
        )
        self.numberer = Numberer(postgres, self._appended, self._numbered)

    def _open_pipeline(self, analysts: AnalystsOfSets) -> None:
        settings = self.settings
        endings = Endings(
            settings=settings,
            jobs=self.jobs,
            part_writer=self.part_writer,
            settler=self.settler,
            held=self.held,
            dependencies=self._dependencies,
            ended=self.watch.wake,
            spending=self.spending,
        )
        self.settling = Settling(endings.settle, self._bell)
        self.worker = Worker(
            settings=settings,
            endings=endings,
            settle=self.settling.hand_over,
            take_log=self._recent_logs.take,
            analysts=analysts.of,
            bell=self._bell,
        )
        self.publisher = Publisher(
            self.jobs,
            settings.jobs,
            self._bell,
            list(self._dependencies.values()),
            self.watch.wake,
            self.held,
            self.pacer,
            self._takes_jobs,
            lambda: self.settling.busy,
        )
        self.part_keeper = PartKeeper(
            PartJobs(self.postgres, self._owed_sets),
            settings,
            analysts,
            self._log_store.take,
            lambda: self.publisher.takes_at_once,
            self.spending,
        )
        self.single_reanalyses = SingleReanalyses(
            settings, self.postgres, self._owed_sets, analysts, self._log_store.take, self.outbox, self.spending
        )
        self.remote_bell = RemoteBell(
            self.postgres.dedicated(),
            self._bell,
            lambda: self.agreement.others_take and not self.publisher.takes_at_once,
            settings.jobs.heartbeat_seconds,
        )

    def _open_routes(self, remotes: Sequence[RemoteAnalyst]) -> None:
        settings, postgres = self.settings, self.postgres
        observe = settings.observe
        pings = {DATABASE_PING: PingEvery(ping=self._reader.ping, seconds=observe.ping_seconds)} | {
            remote.dependency.name: PingEvery(ping=remote.ping, seconds=observe.remote_ping_seconds)
            for remote in remotes
        }
        self.pings = Pings(pings)
        browsers = Browsers(settings)
        self.api = Api(
            settings=settings,
            door=Door(
                browsers=browsers,
                readiness=self.readiness,
                authority=self.authority,
                clients=Clients(settings.clients),
                raw_bytes_max=settings.web.raw_bytes_max,
            ),
            intake=AcceptRoute(
                settings=settings.web,
                items_max=settings.intake.items_max,
                committer=self.committer,
                readiness=self.readiness,
                admission=self._admission,
                revisions=settings.intake.revisions,
            ),
            reading=ReadRoutes(
                settings=settings,
                reader=self._reader,
                jobs=self.jobs,
                watch=self.watch,
                reads=self._reads,
                revived=self._bell.ring,
                audit_queue=self.audit_queue,
                shared=self.shared_answers,
            ),
            explaining=ExplainRoute(postgres=postgres, reads=self._reads, dependencies=self._dependencies),
            auditing=AuditLogRoute(
                postgres=postgres,
                reads=self._reads,
                rows_max=settings.web.list_rows_max,
                default_has_indexes=self._tenant_indexes.are_made,
            ),
            erasing=EraseRoutes(
                postgres=postgres,
                erased=self._erased,
                services=tuple(self._dependencies),
                telling=self._telling,
                outbox=self.outbox,
                erase_objects=None if self._logs_keeper is None else self._logs_keeper.rewriter.erase_for,
            ),
            webhooks=WebhookRoutes(
                settings=settings.web,
                postgres=postgres,
                sender=self._sender,
                types=settings.events.types,
                changed=self.courier.changed,
            ),
            streams=self.streams,
            live=self.live,
            capacity=CapacityRoute(settings=settings, postgres=postgres, reads=self._reads, meter=self._meter),
            figures=self.figures,
            reanalysing=ReanalyseRoute(settings=settings.web, order=self.single_reanalyses.order),
            sessions=SessionRoutes(settings=settings, postgres=postgres, authority=self.authority, browsers=browsers),
            operations=OperationsRoutes(
                readiness=self.readiness,
                pings=self.pings,
                check_stores=self.committer.check,
                alerts=self.alerts,
                settings=settings.web,
                learnt=_learnt_by(remotes),
            ),
        )
        self.app = cast("App", make_app(self.api))
        self._retention = RetentionKeeper(
            settings.retention, postgres, lambda: self.alerts.leads, self._admission.refuses
        )
        self._canary = Canary(
            settings=settings.canary,
            request_seconds=settings.web.request_seconds,
            intake=self.api.intake,
            reading=self.api.reading,
            postgres=postgres,
        )

    async def open_to_requests(self) -> None:
        """Serve requests from now on: the database has just been prepared."""
        # Without it, /readyz would show a ping of before for up to ``observe.ping_seconds``.
        await self.pings.ping(DATABASE_PING)
        self.readiness.open()

    def prepared_keepers(self) -> list[Keeper]:
        """List the loops that need a prepared database."""
        keepers: list[Keeper] = [
            self.agreement.run,
            self.contracts.run,
            self.authority.run,
            self.going_back.beat,
            self.erasures.run,
            partial(sample_jobs, self.jobs, self.settings.observe.sample_seconds, self._note_oldest),
            self.pacer.run,
            self.remote_bell.run,
            partial(watch_ledger, self.postgres, lambda: self.alerts.leads),
            partial(keep_months, self.postgres, self._leads),
            partial(keep_job_room, self.postgres, self._leads),
            self._tenant_indexes.run,
            self.single_reanalyses.run,
            *self._keepers_of_settings(),
        ]
        if self._teller is not None:
            keepers.append(self._teller.run)
        if self.spending is not None:
            keepers.append(self.spending.look)
        if self.relay is not None:
            keepers.append(self.relay.run)
        if self._logs_keeper is not None:
            keepers.append(self._logs_keeper.run)
        if self.queue_intake is not None:
            keepers.append(self.queue_intake.run)
        if self._collector is not None:
            keepers.extend(self._collector.loops)
        return keepers

    def _keepers_of_settings(self) -> Iterator[Keeper]:
        """List the loops that a setting switches on."""
        if self.settings.jobs.workers:
            yield self.remote_bell.listen
        if self.settings.parts and self.settings.jobs.workers:
            yield self.part_keeper.run
        if self._meter is not None:
            yield self._meter.run
        if self.settings.canary.enabled:
            yield self._canary.run
        if self.settings.page.sample_seconds:
            yield self.figures.run
        if passes(self.settings.retention):
            yield self._retention.run
        if self.settings.events.types:
            yield self.numberer.run
            yield partial(keep_events, self.postgres, self.settings.events, self._leads)
            yield self.streams.run
            yield self.live.run
            yield self.courier.run
            yield from [self.courier.work] * WORKERS

    async def leave_couriers(self) -> None:
        """Give back what this process delivers to, so that another one goes on at once, and finish what it takes in."""
        if self.queue_intake is not None:
            await self.queue_intake.leave()
        await self.courier.leave()
        if self.relay is not None:
            await self.relay.leave()

    async def leave_collector(self) -> None:
        """Send the last spans and log records."""
        if self._collector is not None:
            await self._collector.leave()

    def forget_database(self) -> None:
        """Forget all that was learned from the database before it went back, and refuse requests until it is ready.

        Sessions are refused as well (``store/sessions.py``), so nothing is stored there meanwhile.
        """
        self.readiness.close()
        self._recent_logs.clear()
        self.held.drop()
        if self.spending is not None:
            self.spending.forget()
        self.jobs.start_over()
        self._owed_sets.forget()
        self.authority.forget()
        self._tenant_indexes.forget()
        self.audit_queue.forget_numbers()
        self.watch.wake_all()
        self.numberer.start_over()
        self.courier.start_over()
        self.streams.forget()
        self.live.forget()
        self.shared_answers.forget()
        if self.relay is not None:
            self.relay.start_over()
        if self._logs_keeper is not None:
            self._logs_keeper.forget()
        self.alerts.forget_shared()
        self.figures.forget()
        for dependency in self._dependencies.values():
            dependency.forget_jobs()

    def _agreement_changed(self, disagreement: str) -> None:
        self.readiness.disagreement = disagreement
        self._bell.ring()

    def _contracts_changed(self, reason: str) -> None:
        others = [one for one in self.readiness.warnings if not one.startswith("MIGRATION_WAITS")]
        self.readiness.warnings = [*others, *([reason] if reason else [])]

    def _takes_jobs(self) -> bool:
        return self.agreement.takes_jobs() and (self.spending is None or self.spending.is_ready())

    def _warnings(self) -> list[str]:
        found = [self.erasures.warning, self._teller.warning if self._teller else ""]
        if self.spending is not None:
            found.append(self.spending.warning)
        if self._collector is not None:
            found.extend(self._collector.warnings)
        if self._logs_keeper is not None:
            found.append(self._logs_keeper.warning)
        return [one for one in found if one]

    def _erased(self, seqs: Sequence[int]) -> None:
        self.erasures.ring()
        if self._logs_keeper is not None:
            self._logs_keeper.ring()
        if self._teller is not None:
            self._teller.ring()
        self._recent_logs.forget(seqs)
        self.held.stop_gone(seqs)
        self.streams.forget()
        self.shared_answers.forget()
        for seq in seqs:
            # Whoever waits for it learns that it is gone.
            self.watch.wake(seq)

    def _superseded(self, seqs: Sequence[int]) -> None:
        self._recent_logs.forget(seqs)
        self.held.stop_gone(seqs, reason="a newer revision is stored")
        for seq in seqs:
            self.watch.wake(seq)

    def _committed(self, rows: list[CommittedLog]) -> None:
        self._recent_logs.put(rows)
        self._bell.ring()
        if rows:
            self.remote_bell.ring()
        self._appended.ring()

    def _keys_read(self) -> None:
        self.open_streams.end_refused()

    def _sampled(self) -> None:
        self.live.sampled()

    def _numbered(self) -> None:
        self.courier.wake()
        self.streams.wake()
        self.live.wake()
        if self.relay is not None:
            self.relay.wake()

    def _publish_alert(self, message: Notification) -> None:
        self.streams.put_alert(message)

    def _leads(self) -> bool:
        return self.alerts.leads


def _dependencies_of_rabbitmq(settings: Settings) -> dict[str, Dependency]:
    """Return the breaker of each purpose that RabbitMQ is used for."""
    used = {"rabbitmq": bool(settings.events.types), "rabbitmq_intake": bool(settings.rabbitmq.intake_queue)}
    names = [name for name, is_used in used.items() if is_used] if settings.rabbitmq.url else []
    return {name: dependency_of(name, settings.rabbitmq) for name in names}


def _learnt_by(remotes: Sequence[RemoteAnalyst]) -> dict[str, Callable[[], str]]:
    def of(remote: RemoteAnalyst) -> Callable[[], str]:
        return lambda: remote.learnt

    return {remote.name: of(remote) for remote in remotes}
