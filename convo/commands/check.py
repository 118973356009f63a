"""``convo check``: print the ladder of deadlines, and call each dependency once with the time that it took.

It needs no running server and disturbs none: it writes nothing, migrates no schema and starts no PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct
from msgspec.structs import asdict
from rich.table import Table
from rich.text import Text

from convo.analysis.clients import make_remote, remote_names
from convo.analysis.declared import declared_services
from convo.analysis.http_part import PartService
from convo.analysis.remote import RemoteAnalyst
from convo.commands.old_logs import check_bucket
from convo.commands.output import plain, print_json, show_result
from convo.dependencies import part_dependency
from convo.embedded.server import CONNECTIONS, read_state
from convo.errors import ConvoError
from convo.ladder import Rung, ladder
from convo.otel.keeper import check_collector
from convo.plural import plural
from convo.rabbitmq import broker
from convo.runtime.bridge import Bridge, open_bridge
from convo.settings import Settings, llm_servers
from convo.store.migrate import ContractWait, contract_wait, read_schema
from convo.store.migrations import migrations
from convo.store.postgres import open_postgres
from convo.store.schema_state import SchemaState
from convo.store.server_settings import check_room, connections_spare, connections_wanted, inspect, risks

_Check = Callable[[], Awaitable[str]]
# Of seconds that are shown: tenths of a millisecond.
_DIGITS = 4


class CheckResult(Struct, frozen=True, kw_only=True):
    """One dependency, whether convo can use it, how long the call took, and what came of it."""

    name: str
    good: bool
    seconds: float
    detail: str


def run_checks(settings: Settings, *, as_json: bool = False) -> int:
    """Print the ladder and every dependency; return 1 when a rung is broken or a dependency fails, else 0."""
    rungs = ladder(settings)
    if not as_json:
        show_result(draw_ladder(rungs))
    results = trio.run(check_dependencies, settings)
    broken = [rung for rung in rungs if not rung.stands]
    failed = [result.name for result in results if not result.good]
    if as_json:
        print_json({"ladder": [_rung_fields(rung) for rung in rungs], "dependencies": results})
    else:
        show_result(draw_dependencies(results))
        stands = (
            f"{len(broken)} of {len(rungs)} rungs {'is' if len(broken) == 1 else 'are'} broken"
            if broken
            else "the ladder stands"
        )
        answers = f"{' and '.join(failed)} failed" if failed else "all that is configured answers"
        show_result(plain(f"{stands}; {answers}"))
    return 1 if broken or failed else 0


def _rung_fields(rung: Rung) -> dict[str, object]:
    seconds = {"inside_seconds": rung.inside_seconds, "outside_seconds": rung.outside_seconds}
    # Some are sums and products of settings: 0.1 + 0.2 is no number that anybody set.
    return {**asdict(rung), **{name: round(value, _DIGITS) for name, value in seconds.items()}, "stands": rung.stands}


# --- the dependencies


async def check_dependencies(settings: Settings) -> list[CheckResult]:
    """Ask the database, and each dependency that is switched on, once, one after the other."""
    async with open_bridge() as bridge:
        checks: dict[str, _Check] = {"database": partial(_database, settings, bridge)}
        checks |= {name: partial(_model_or_memory, name, settings) for name in remote_names(settings)}
        checks |= {
            part_dependency(part.name): partial(_remote, partial(PartService, part, settings.parts[part.name]))
            for part in declared_services(settings)
        }
        if settings.rabbitmq.url:
            checks["rabbitmq"] = partial(broker.check, bridge, settings.rabbitmq)
        if settings.smtp.host:
            # It loads Python's client for SMTP.
            from convo.alerts.mail import check_mail_server  # noqa: PLC0415

            checks["smtp"] = partial(check_mail_server, settings.smtp, settings.alerts.deliver_seconds)
        if settings.logs.in_objects:
            checks["s3"] = partial(check_bucket, bridge, settings)
        if settings.otel.enabled:
            checks["otel"] = partial(check_collector, settings.otel)
        return [await _timed(name, check) for name, check in checks.items()]


async def _timed(name: str, check: _Check) -> CheckResult:
    began = trio.current_time()
    try:
        detail, good = await check(), True
    except ConvoError as error:
        detail, good = error.detail, False
    return CheckResult(name=name, good=good, seconds=round(trio.current_time() - began, _DIGITS), detail=detail)


async def _database(settings: Settings, bridge: Bridge) -> str:
    if settings.database.url:
        return await _server(settings, bridge, settings.database.url.reveal())
    state = await read_state(Path(settings.server.data_dir))
    if state.dsn is None:
        check_room(CONNECTIONS, settings.database.pool_max)
        if state.moves_from is not None:
            return (
                f"embedded PostgreSQL {state.version} is not running; `convo serve` moves the data of PostgreSQL"
                f" {state.moves_from} in {state.data_folder} to it"
            )
        does = "starts it" if state.made else "makes it"
        return f"embedded PostgreSQL {state.version} is not running; `convo serve` {does} in {state.data_folder}"
    return f"embedded, in {state.data_folder}: {await _server(settings, bridge, state.dsn)}"


async def _server(settings: Settings, bridge: Bridge, url: str) -> str:
    async with open_postgres(bridge, url, settings.database) as postgres:
        connection = postgres.dedicated()
        try:
            found = await inspect(postgres, connection)
            check_room(found, settings.database.pool_max)
            schema, waits = await read_schema(connection), await contract_wait(connection)
        finally:
            await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)
    wanted = connections_wanted(settings.database.pool_max)
    spare = connections_spare(found)
    room = f"takes {spare} {plural(spare, 'connection')}, this process opens {wanted} at most"
    warnings = [f"warning: {warning}" for warning in risks(found).values()]
    return "; ".join((f"PostgreSQL {found['server_version']}", _schema(schema, waits), room, *warnings))


def _schema(schema: SchemaState, waits: ContractWait | None) -> str:
    newest = migrations()[-1].number
    has = f"schema version {schema.version}" if schema.version else "no schema yet"
    if waits is not None:
        return f"{has}; {waits}"
    if schema.missing(migrations()) is not None:
        return f"{has}, `convo serve` brings it to {newest}"
    newer = schema.version > newest
    return f"{has}, of a newer convo beside which this one ({newest}) may run" if newer else has


async def _remote(make: Callable[[], RemoteAnalyst]) -> str:
    async with make() as remote:
        return await remote.check()


async def _model_or_memory(name: str, settings: Settings) -> str:
    return f"{await _remote(partial(make_remote, name, settings))}{_unpriced(name, settings)}"


def _unpriced(name: str, settings: Settings) -> str:
    """Say of a model that it has no price, where another one has."""
    models = llm_servers(settings.llm)
    counts = name in models and not models[name].priced and any(one.priced for one in models.values())
    return "; it is not priced: its calls count as free" if counts else ""


# --- the drawing


def draw_ladder(rungs: tuple[Rung, ...]) -> Table:
    """Draw every rung with its numbers, and what would happen at run time for a broken one."""
    table = _table("inside", "seconds", "", "outside", "seconds", "")
    for rung in rungs:
        verdict = Text("ok", "green") if rung.stands else plain(rung.otherwise, "red")
        table.add_row(
            plain(rung.inside),
            f"{rung.inside_seconds:g}",
            rung.relation,
            plain(rung.outside),
            f"{rung.outside_seconds:g}",
            verdict,
        )
    return table


def draw_dependencies(results: list[CheckResult]) -> Table:
    """Draw every dependency with its time and its detail."""
    table = _table("dependency", "", "ms", "")
    for result in results:
        verdict = Text("ok", "green") if result.good else Text("fails", "red")
        detail = plain(result.detail, "" if result.good else "red")
        table.add_row(plain(result.name), verdict, f"{result.seconds * 1000:.0f}", detail)
    return table


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in ("seconds", "ms") else "left", overflow="fold")
    return table
