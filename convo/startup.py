"""What a start does once, in order: find the database, bring its schema up to date, sign this process in.

Open it to change what ``convo serve`` does before it takes requests. What runs on from then is in ``service``.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio
from msgspec import Struct

from convo.analysis import local
from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.analyze import Analyst, in_process
from convo.analysis.clients import model_of, open_remotes
from convo.analysis.http_part import PartService
from convo.analysis.part import PARTS
from convo.analysis.remote import RemoteAnalyst
from convo.config import ADDRESS_FILE
from convo.contracts import Contracts
from convo.conversation.model import PartName
from convo.embedded.server import keep_log_short, keep_running
from convo.erasure_keeper import ErasureKeeper
from convo.errors import ConvoError, DatabaseUnavailable
from convo.major_move import keep_programs, open_moved
from convo.objects.s3 import Bucket, import_obstore
from convo.objects.storage import ObjectStorage
from convo.observe import log_records
from convo.outbound_checked import CheckedClient
from convo.runtime import threads
from convo.runtime.bridge import Bridge
from convo.runtime.identity import Identity
from convo.settings import Settings, used_dependencies
from convo.sign_in import sign_in, take_back_leases
from convo.store.going_back import GoingBack
from convo.store.jobs.table import Jobs
from convo.store.log_objects import any_stored
from convo.store.postgres import RELAXED, Postgres
from convo.store.server_settings import check_room, connections_spare, inspect, risks
from convo.store.sessions import signing_in
from convo.webhooks.courier import WORKERS

_RETRY_SECONDS = 1.0
# The number of new objects that starts a collection. At Python's 700 (3.11) the collector looks at each batch of
# accepts several times. That is a tenth of all their work, and it finds nothing: what a request made goes with it.
_YOUNG_OBJECTS = 10_000

# Pings that clients ask for, besides what the courier's workers send.
_PINGS_MAX = 256

Keeper = Callable[[], Awaitable[None]]


class Started(Struct, frozen=True, kw_only=True):
    """What a person reads once requests are served."""

    url: str
    database: str
    data_dir: Path
    warnings: tuple[str, ...]


class DatabaseSource(Struct, frozen=True, kw_only=True):
    """The database of this process: its URL, a description without secrets, and the loops that keep it running."""

    url: str
    description: str
    keepers: Sequence[Keeper] = ()


def settle_collector() -> None:
    """Exempt every object that exists now from later collections, and let these begin.

    What is garbage now is kept for ever: a few thousand objects. To look for it would be a tenth of a start, and hold
    the loop for 50 ms.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


@contextmanager
def noted_address(data_dir: Path, url: str) -> Iterator[None]:
    """Keep the URL of this server in its folder while it listens: commands on the same machine call it there."""
    file = data_dir / ADDRESS_FILE
    # Who listens on all addresses is called at the loopback one.
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    try:
        file.write_text(f"{url}\n", "utf-8")
    except OSError as error:
        # A full disk: the commands then need --url, and convo serves.
        log_records.address_not_saved(path=str(file), error=str(error))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def open_database_source(settings: Settings) -> AsyncIterator[DatabaseSource]:
    """Yield the database of ``database.url``, or start the embedded one where that is empty.

    Raises:
        Refused: the embedded PostgreSQL cannot start.
    """
    if settings.database.url:
        url = settings.database.url.reveal()
        yield DatabaseSource(url=url, description=describe_url(url))
        return
    async with open_moved(Path(settings.server.data_dir)) as running:
        keepers = (
            partial(keep_running, running),
            partial(keep_log_short, running.log_file),
            partial(keep_programs, running),
        )
        yield DatabaseSource(url=running.dsn, description=running.description, keepers=keepers)


def describe_url(url: str) -> str:
    """Return the server and the database of ``database.url`` for a person, without the login."""
    # Only the parts that cannot hold a password: it may be in the query, too.
    parts = urlsplit(url)
    return f"PostgreSQL at {parts.netloc.rpartition('@')[2] or 'a local socket'}{parts.path}"


@asynccontextmanager
async def open_analysts(settings: Settings) -> AsyncIterator[tuple[AnalystsOfSets, Sequence[RemoteAnalyst]]]:
    """Yield the analysts of each set of parts, and those of them that call a remote service."""
    lock = trio.Lock()
    slices = partial(local.between_turns.set, threads.give_way)
    analysts: dict[PartName, Analyst] = {
        part.name: in_process(local.BY, part.analyst, lock, prepare=slices) for part in PARTS
    }
    async with open_remotes(settings) as remotes:
        services = {one.needs: one for one in remotes if isinstance(one, PartService)}
        found = AnalystsOfSets(
            analysts,
            {
                part: Analyst(by=remote.by, find=find)
                for remote in remotes
                if remote not in services.values() and not remote.fallback
                for part, find in remote.finders.items()
            },
            model=model_of(remotes),
            services=services,
            parts_per_call=settings.llm.parts_per_call,
        )
        yield found, remotes


@asynccontextmanager
async def open_storage(settings: Settings, bridge: Bridge, postgres: Postgres) -> AsyncIterator[ObjectStorage | None]:
    """Open the object storage of old logs; None where logs are in PostgreSQL.

    Raises:
        Refused: a library is not installed, or the bucket keeps objects from being deleted.
    """
    if not settings.logs.in_objects:
        yield None
        return
    await import_obstore()
    async with Bucket(bridge, settings.logs) as bucket:
        storage = ObjectStorage(bucket, postgres, settings.logs)
        await storage.inspect_at_start()
        yield storage


def open_hooks(settings: Settings) -> CheckedClient:
    """Make the client for the endpoints of webhooks."""
    hooks = settings.webhooks
    return CheckedClient(
        connections=WORKERS + _PINGS_MAX,
        seconds=hooks.attempt_seconds,
        allow_private=hooks.allow_private,
        ca_file=hooks.ca_file,
        verify=hooks.verify,
    )


# --- once the database answers


async def prepare_database(  # noqa: PLR0913  (what signs in, to what, and as whom)
    postgres: Postgres,
    jobs: Jobs,
    me: Identity,
    settings: Settings,
    history: GoingBack,
    *,
    contracts: Contracts,
    erasures: ErasureKeeper,
    again: bool = False,
) -> list[str]:
    """Migrate the schema and sign in, trying until the database answers; return warnings for a person.

    It also waits for a contract step that this program cannot serve without, until no older process holds it back.

    ``again`` is for a database that went back under this process, which did not die: it crashed on none of its jobs.

    Raises:
        Refused: the database answers, but convo cannot work on it.
    """
    connection = postgres.dedicated()
    url = settings.database.url
    database = describe_url(url.reveal()) if url else "embedded PostgreSQL"
    try:
        while True:
            try:
                with signing_in():
                    server_settings = await inspect(postgres, connection)
                    await contracts.until_served(connection)
                    warnings = await _sign_in(postgres, server_settings, jobs, me, settings)
                    if again:
                        await jobs.release_all()
                    else:
                        await take_back_leases(jobs, me)
                    # Before requests are served: a database that went back has what was erased.
                    await erasures.settle()
                    await history.settle()
                    return warnings
            except DatabaseUnavailable as error:
                log_records.prepare_failed(
                    database=database, reason=_with_cause(error), again_every_seconds=_RETRY_SECONDS
                )
                await trio.sleep(_RETRY_SECONDS)
    finally:
        await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)


async def _sign_in(
    postgres: Postgres, server_settings: Mapping[str, str], jobs: Jobs, me: Identity, settings: Settings
) -> list[str]:
    warnings = _durability_warnings(server_settings) + certificate_warnings(settings)
    if not settings.logs.in_objects and await postgres.run("db.schema", any_stored, begin=RELAXED):
        warnings.append("LOGS_ELSEWHERE: logs lie in object storage and cannot be read: set logs.store = s3, as before")
    connections = await sign_in(postgres, jobs, me, settings)
    check_room(server_settings, settings.database.pool_max)
    warnings += _connections_warnings(server_settings, connections)
    return warnings


def _durability_warnings(server_settings: Mapping[str, str]) -> list[str]:
    warnings = risks(server_settings)
    for setting in warnings:
        log_records.durability_warning(setting=setting, value="off")
    return list(warnings.values())


def _connections_warnings(server_settings: Mapping[str, str], connections: int) -> list[str]:
    spare = connections_spare(server_settings)
    if connections <= spare:
        return []
    log_records.connections_warning(connections=connections, max_connections=spare)
    return [f"all convo processes may open {connections} connections, the database takes {spare}"]


def certificate_warnings(settings: Settings) -> list[str]:
    """Log where certificates are not checked, and return it for a person."""
    sections: dict[str, Any] = {name: getattr(settings, name) for name in used_dependencies(settings)}
    sections |= {f"parts.{name}": part for name, part in settings.parts.items() if part.who == "http"}
    if settings.logs.in_objects:
        sections["logs"] = settings.logs
    if _posts_alerts(settings):
        sections["alerts"] = settings.alerts
    if settings.smtp.host:
        sections["smtp"] = settings.smtp
    if settings.events.types:
        sections["webhooks"] = settings.webhooks
    if settings.otel.enabled:
        sections["otel"] = settings.otel
    unchecked = [name for name, section in sections.items() if not section.verify]
    for name in unchecked:
        log_records.certificates_unchecked(section=name)
    return [
        f"{name}.verify = false: no certificate is checked there, so anyone on the way can read and answer; name the"
        f" authority in {name}.ca_file instead"
        for name in unchecked
    ]


def _posts_alerts(settings: Settings) -> bool:
    alerts, people = settings.alerts, settings.oncall.people.values()
    addresses = (alerts.webhook_url, alerts.slack_url, alerts.google_chat_url, alerts.pagerduty_key)
    return any(addresses) or any(one.slack_url or one.pagerduty_key for one in people)


def _with_cause(error: ConvoError) -> str:
    # The database's own words. Those of a deadline repeat the error.
    cause = str(error.__cause__ or "")
    return f"{error.detail}: {cause}" if cause and cause != error.detail else error.detail
