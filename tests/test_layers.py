"""The order of ``convo/``, read out of its source: which module may import which, and what stands in one place only.

Open it when a module is added, moved or renamed, or when one needs a library or another package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.source_tree import ROOT, Function, functions, imports, is_package, modules, own_imports

# A module imports from lower ranks, or within its own package. The longest prefix of a module's name decides.
RANKS: dict[str, int] = {
    "convo": 0,  # the package itself: its version
    "convo.errors": 0,
    "convo.client": 0,
    "convo.dependencies": 0,
    "convo.plural": 0,
    "convo.event_types": 0,
    "convo.conversation": 1,
    "convo.settings": 2,
    "convo.host_names": 2,
    "convo.ladder": 3,
    "convo.audit_actions": 2,
    "convo.event_data": 3,
    "convo.setting_values": 3,
    "convo.changed_settings": 3,
    "convo.setting_checks": 4,
    "convo.config": 5,
    "convo.config_parts": 4,
    "convo.observe": 5,
    "convo.runtime": 6,
    "convo.remote_faults": 6,
    "convo.remote_pauses": 6,
    "convo.outbound_connection": 6,
    "convo.outbound": 7,
    "convo.otel_variables": 3,
    "convo.otel": 8,
    "convo.outbound_checked": 8,
    "convo.standard_webhooks": 1,
    "convo.webhooks": 11,
    "convo.resilience": 7,
    "convo.embedded": 7,
    "convo.capacity": 7,
    "convo.analysis": 8,
    "convo.analysis.local": 2,
    "convo.analysis.declared": 3,
    "convo.analysis.part": 2,
    "convo.analysis.differing": 2,
    "convo.analysis.part_points": 2,
    "convo.analysis.prompt": 2,
    "convo.analysis.ready_made": 3,
    "convo.analysis.scoring": 2,
    "convo.store": 8,
    "convo.alerts": 9,
    "convo.web.description": 10,
    "convo.handbook": 11,
    "convo.http": 11,
    "convo.web": 12,
    "convo.pipeline": 12,
    "convo.erase": 9,
    "convo.erasure": 10,
    "convo.user_erasure": 11,
    "convo.erase_again": 12,
    "convo.erasure_keeper": 13,
    "convo.telling": 9,
    "convo.scrub": 10,
    "convo.cloud_events": 9,
    "convo.rabbitmq": 13,
    "convo.objects": 13,
    "convo.event_keeper": 13,
    "convo.canary": 13,
    "convo.retention": 11,
    "convo.reanalysis": 13,
    "convo.single_reanalysis": 14,
    "convo.retention_keeper": 13,
    "convo.retention_months": 12,
    "convo.retention_report": 13,
    "convo.months_keeper": 13,
    "convo.job_room_keeper": 13,
    "convo.tenant_keeper": 11,
    "convo.contracts": 13,
    "convo.major_move": 13,
    "convo.sign_in": 13,
    "convo.startup": 14,
    "convo.components": 15,
    "convo.service": 16,
    "convo.commands": 17,
    "convo.__main__": 18,
}
PACKAGES = (
    *(
        "alerts",
        "analysis",
        "capacity",
        "client",
        "commands",
        "conversation",
        "embedded",
        "handbook",
        "http",
        "observe",
        "pipeline",
        "resilience",
    ),
    *("objects", "otel", "rabbitmq", "runtime", "store", "web", "webhooks"),
)

# What stands in these modules and in no other.
MONOPOLIES: dict[str, set[str]] = {
    "asyncio": {"convo.runtime.bridge", "convo.runtime.callbacks"},
    "trio_asyncio": {"convo.runtime.bridge", "convo.runtime.callbacks"},
    "asyncpg": {"convo.store.postgres", "convo.store.postgres_errors", "convo.store.sessions"},
    "httpx": {
        *("convo.outbound", "convo.outbound_connection", "convo.commands.terminal"),
        *("convo.client.async_client", "convo.client.sync_client"),
    },
    "anyio": {"convo.client.async_client", "convo.client.sync_client"},
    "httpcore": {"convo.outbound_checked"},
    "hypercorn": {"convo.http.server"},
    "httptools": {"convo.http.http1", "convo.outbound_connection"},
    "quart": {"convo.web.app"},
    "quart_trio": {"convo.web.app"},
    "werkzeug": {"convo.web.app"},
    "tenacity": {"convo.resilience.retry"},
    "markdown_it": {"convo.web.description.handbook_page"},
    "prometheus_client": {"convo.observe.metrics"},
    "structlog": {"convo.observe.log_records", "convo.observe.log", "convo.observe.log_buffer"},
    "rich": {
        *("convo.commands.terminal", "convo.commands.drawing", "convo.commands.audit_drawing"),
        "convo.commands.capacity_drawing",
        *("convo.commands.output", "convo.commands.check", "convo.commands.retention_drawing"),
        *("convo.commands.erasing", "convo.commands.importing", "convo.commands.hooks"),
        *("convo.commands.reanalysing", "convo.commands.rerun_drawing", "convo.commands.session_drawing"),
        "convo.commands.duty",
    },
    # Imported by their names, where a bucket is opened.
    "obstore": set(),
    "botocore": set(),
    "smtplib": {"convo.alerts.mail"},
    "tomllib": {"convo.config"},
    # What normalises text is in danger of marks without end: ``composing`` bounds them, ``words`` only makes a table.
    "unicodedata": {"convo.conversation.composing", "convo.analysis.local.words"},
}
PURE = "convo.conversation"
NOT_PURE = {"trio", "os", "io", "time", "socket", "pathlib", "threading", "subprocess", "logging", "random"}
BROAD = {
    *("convo.pipeline.worker", "convo.http.connection", "convo.web.door", "convo.runtime.callbacks"),
    "convo.rabbitmq.intake",
}
"""Where a job, a request, a connection, a callback and a message end: what nobody foresaw is caught there alone."""
NURSERIES = {"convo.service", "convo.analysis.analyze", "convo.web.operations"}
# Of a command, which ends when its work does.
NURSERIES |= {"convo.reanalysis", "convo.commands.reanalysing"}
"""Long-lived ones in service.py only; the others close before the function that opened them returns."""

# What a docstring may say that its module does not know, and the imports which that excludes.
_HTTP = (
    *("convo.web", "convo.http.asgi", "convo.http.connection", "convo.http.framing", "convo.http.http1"),
    *("hypercorn", "httptools", "httpx", "quart", "quart_trio", "werkzeug"),
)
_ROUTES = (
    *(f"convo.web.{name}" for name in ("app", "accept", "conversations", "explaining", "operations")),
    "convo.web.description.routes",
)
_ANALYSTS = tuple(f"convo.analysis.{name}" for name in ("analyze", "llm", "local", "memory", "prompt", "remote"))
UNKNOWN: dict[str, tuple[str, ...]] = {
    "HTTP": _HTTP,
    "SQL": ("asyncpg", "convo.store"),
    "analyst": _ANALYSTS,
    "cause": ("convo.alerts.causes",),
    "clock": ("time", "trio"),
    "condition": ("convo.alerts.causes", "convo.alerts.rules"),
    "convo": ("convo",),
    "deadline": ("convo.runtime.deadline",),
    "dependency": ("convo.analysis", "convo.resilience.dependency"),
    "dependency by name": ("convo.analysis",),
    "framework": ("hypercorn", "quart", "quart_trio", "werkzeug"),
    "how a conversation is analysed": _ANALYSTS,
    "job": ("convo.pipeline", "convo.store.jobs"),
    "lease": ("convo.store.jobs.fair_lease", "convo.store.jobs.table"),
    "library": ("asyncpg", "httpx", "hypercorn", "msgspec", "tenacity", "trio"),
    "metric": ("convo.observe.metrics", "prometheus_client"),
    "route": _ROUTES,
    "rule": ("convo.alerts.rules",),
    "socket": ("socket", "ssl", "convo.http.listening", "convo.http.wire"),
    "table": tuple(f"convo.store.{name}" for name in ("intake", "jobs", "keys", "ledger", "logs", "processes")),
    "database": ("asyncpg", "convo.store"),
    "transport": ("asyncpg", "httpx", "socket", "convo.analysis.remote"),
    "store": ("convo.store",),
    "status": ("httpx",),
    "turn": ("convo.conversation.transcript",),
    "what an analysis is": _ANALYSTS,
    "where it is stored": ("convo.store",),
    "who finds a part": tuple(f"convo.analysis.{name}" for name in ("llm", "local", "memory", "remote")),
    "work itself": _ANALYSTS,
    "worker": ("convo.pipeline",),
}
# Modules without a test file of their own name, each with the file whose tests would notice a fault in it.
TESTED_BY: dict[str, str] = {
    # A difference of two readings: those that are compared are the demands' tests.
    "convo.capacity.demands": "unit/capacity/test_finding.py",
    "convo.capacity.processors": "unit/capacity/test_resources.py",
    "convo.capacity.usage": "unit/capacity/test_finding.py",
    "convo.store.table_sizes": "integration/web/test_capacity.py",
    # What it prints is asked for by the commands' own tests.
    "convo.commands.rerun_drawing": "unit/commands/test_reruns.py",
    # The program as a whole: only a process of its own can show it.
    "convo.__main__": "system/test_main_job.py",
    # It only connects: each of its connections is one that a test of the whole service uses.
    "convo.components": "integration/test_service.py",
    # Values that behave only where they are read.
    "convo.store.reaching": "test_reach.py",
    "convo.audit_actions": "integration/store/test_audit_log.py",
    "convo.runtime.waits": "test_deadlines.py",
    "convo.observe.kept_request": "unit/http/test_recorded.py",
    "convo.otel.sending": "unit/otel/test_keeper.py",
    "convo.event_types": "integration/store/test_outbox.py",
    "convo.event_data": "unit/test_cloud_events.py",
    "convo.web.description.event_documents": "unit/test_cloud_events.py",
    "convo.web.description.live_views": "integration/web/test_live.py",
    "convo.web.description.webhook_views": "unit/web/description/test_openapi.py",
    "convo.store.event_numbers": "integration/store/test_outbox.py",
    "convo.store.tenant_indexes": "integration/test_tenant_keeper.py",
    "convo.store.jobs.job_room": "integration/test_job_room_keeper.py",
    "convo.store.event_expiry": "integration/test_event_keeper.py",
    "convo.store.courier_leases": "integration/store/test_couriers.py",
    "convo.store.event_stream": "integration/web/test_event_stream.py",
    "convo.rabbitmq.queues": "integration/rabbitmq/test_intake.py",
    "convo.objects.audit": "integration/objects/test_copies.py",
    "convo.store.backup_rows": "integration/objects/test_copies.py",
    "convo.commands.old_logs": "integration/objects/test_copies.py",
    "convo.objects.joining": "integration/objects/test_packing.py",
    "convo.objects.local_logs": "integration/objects/test_packing.py",
    "convo.objects.signed_requests": "integration/objects/test_rewriting.py",
    "convo.store.log_objects": "integration/objects/test_packing.py",
    "convo.store.log_erasing": "integration/objects/test_rewriting.py",
    # Each is a step of what only a receiver sees.
    **dict.fromkeys(
        ("convo.store.deliveries", "convo.store.webhooks", "convo.web.webhooks", "convo.webhooks.sending"),
        "integration/webhooks/test_courier.py",
    ),
    "convo.web.description.samples": "unit/web/description/test_openapi.py",
    # Pieces behind one door, tested through it.
    "convo.analysis.ready_made": "unit/analysis/test_declared.py",
    "convo.setting_checks": "unit/test_config.py",
    "convo.store.listing": "integration/store/test_conversations.py",
    "convo.store.packing": "integration/store/test_backup.py",
    "convo.store.piped": "integration/store/test_backup.py",
    "convo.commands.output": "unit/commands/test_drawing.py",
    "convo.commands.options": "unit/commands/test_cli.py",
    "convo.commands.api_commands": "unit/commands/test_cli.py",
    "convo.commands.upkeep": "unit/commands/test_cli.py",
    "convo.alerts.look": "unit/alerts/test_causes.py",
    "convo.alerts.open_alerts": "unit/alerts/test_oncall.py",
    "convo.embedded.access_sql": "integration/embedded/test_access.py",
    "convo.analysis.memory_dialects": "integration/analysis/test_memory.py",
    "convo.analysis.local.english": "unit/analysis/local/test_stated.py",
    "convo.analysis.local.forms": "unit/analysis/local/test_stated.py",
    "convo.analysis.local.interrogative": "unit/analysis/local/test_asked.py",
    "convo.analysis.local.lexicon": "unit/analysis/local/test_mood.py",
    "convo.analysis.local.vietnamese": "unit/analysis/local/test_stated.py",
    "convo.store.process_programs": "integration/store/test_migrate.py",
    "convo.store.schema_state": "integration/store/test_migrate.py",
    "convo.store.table_sums": "integration/test_major_move.py",
    "convo.web.explaining": "integration/store/jobs/test_explain.py",
    "convo.http.context": "integration/http/test_connection.py",
    "convo.web.description.parameters": "unit/web/description/test_openapi.py",
    "convo.web.description.service_views": "unit/web/description/test_views.py",
    "convo.web.description.erasure_views": "unit/web/description/test_openapi.py",
    "convo.web.description.cost_views": "unit/web/description/test_openapi.py",
    "convo.store.erasure_list": "integration/test_erase_again.py",
    "convo.store.untold": "integration/test_telling.py",
    "convo.commands.scrubbing": "integration/test_scrub.py",
    "convo.web.description.batch_views": "integration/web/test_batch.py",
    "convo.web.description.session_views": "unit/web/description/test_openapi.py",
    "convo.web.json_body": "integration/webhooks/test_courier.py",
    "convo.commands.session_drawing": "unit/commands/test_sessions.py",
    "convo.web.session_routes": "integration/web/test_sessions.py",
    "convo.web.reanalysing": "integration/test_single_reanalysis.py",
    "convo.store.jobs.single_reruns": "integration/test_single_reanalysis.py",
    "convo.web.description.figure_views": "unit/web/description/test_openapi.py",
    # What shows only in what others do with it.
}

ALL = sorted(modules())


def rank(module: str) -> int:
    name = module
    while name not in RANKS:
        name = name.rpartition(".")[0]
    assert name != "convo" or module == "convo", f"{module} has no rank: give it one in tests/test_layers.py"
    return RANKS[name]


def package(module: str) -> str:
    return ".".join(module.split(".")[:2]) if module.split(".")[1:2] and module.split(".")[1] in PACKAGES else module


def parameters(function: Function) -> list[ast.arg]:
    taken = function.args
    return [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, *filter(None, (taken.vararg, taken.kwarg))]


@pytest.mark.parametrize("module", ALL)
def test_a_module_imports_from_lower_ranks_or_within_its_package(module: str) -> None:
    upwards = [
        name
        for name in own_imports(module)
        if rank(name) > rank(module) or (rank(name) == rank(module) and package(name) != package(module))
    ]
    assert not upwards, f"{module} (rank {rank(module)}) imports {upwards}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a cycle: {' -> '.join((*way, module))}"
        if module not in done:
            for name in own_imports(module):
                if not (name == package(module) and module.startswith(f"{name}.")):  # a package's own __init__
                    follow(name, (*way, module))
            done.add(module)

    for module in ALL:
        follow(module, ())


def test_no_two_packages_import_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for module in ALL:
        rooms.setdefault(_room(module), set()).update(_room(name) for name in own_imports(module))
    assert {(one, other) for one in rooms for other in rooms[one] - {one} if one in rooms.get(other, set())} == set()


def _room(module: str) -> str:
    # A module of the root is a room of its own.
    return module if is_package(module) or module.count(".") < 2 else module.rpartition(".")[0]


def test_the_ranks_name_no_module_that_does_not_exist() -> None:
    assert {name for name in RANKS if name not in modules()} == set()


def test_http_knows_no_route() -> None:
    of_web = {
        name for module in ALL if package(module) == "convo.http" for name in own_imports(module) if "web" in name
    }
    assert of_web == {"convo.web.description.messages"}


@pytest.mark.parametrize("library", sorted(MONOPOLIES))
def test_a_library_stands_where_it_may_and_nowhere_else(library: str) -> None:
    users = {module for module in ALL if any(name.split(".")[0] == library for name in imports(module))}
    assert users <= MONOPOLIES[library]


def test_conversation_is_pure() -> None:
    for module in ALL:
        if module.startswith(PURE):
            impure = {name for name in imports(module) if name.split(".")[0] in NOT_PURE}
            assert not impure, f"{module} imports {impure}"
            assert all(
                name == "convo.errors" or name.startswith(PURE) or name == "convo" for name in own_imports(module)
            )


def test_the_environment_is_read_in_config_only() -> None:
    readers = {
        module
        for module in ALL
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    }
    assert readers == {"convo.config"}


@pytest.mark.parametrize("module", ALL)
def test_no_function_takes_a_nursery_or_a_timeout(module: str) -> None:
    for function in functions(module):
        for parameter in parameters(function):
            note = ast.unparse(parameter.annotation) if parameter.annotation else ""
            assert "nursery" not in parameter.arg.lower(), f"{module}.{function.name}"
            assert "Nursery" not in note, f"{module}.{function.name}"
            assert "timeout" not in parameter.arg.lower(), f"{module}.{function.name}"


def test_nurseries_are_opened_where_somebody_answers_for_them() -> None:
    opened = {
        module
        for module in ALL
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.Attribute) and node.attr == "open_nursery"
    }
    assert opened <= NURSERIES


def test_what_nobody_foresaw_is_caught_where_a_request_a_connection_or_a_job_ends() -> None:
    broad = [
        module
        for module in ALL
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not _raises_again(node)
    ]
    assert sorted(broad) == sorted(BROAD)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


@pytest.mark.parametrize("module", ALL)
def test_a_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(modules()[module])


# --- what a docstring says that its module does not know


@pytest.mark.parametrize("module", ALL)
def test_a_module_imports_nothing_of_what_its_docstring_says_it_does_not_know(module: str) -> None:
    inside = [name for name in ALL if name == module or (is_package(module) and name.startswith(f"{module}."))]
    for thing in claims(ast.get_docstring(modules()[module]) or ""):
        assert thing in UNKNOWN, f"{module} knows nothing of {thing!r}: say in UNKNOWN which imports that excludes"
        known = {(name, one) for name in inside for one in imports(name) if _stands_in(one, UNKNOWN[thing])}
        assert not known, f"{module} says that it knows nothing of {thing!r}, but {sorted(known)}"


def claims(docstring: str) -> Iterator[str]:
    """Yield each thing that the docstring says its module does not know."""
    for claim in re.finditer(r"\bknows? (?:nothing (?:of|about)|neither|no)\s+([^.:;,(]+)", docstring):
        for thing in re.split(r"\s+nor\s+|\s+(?:or|and)\s+(?:no|of)\s+", claim[1].strip()):
            bare = thing.partition(" and ")[0].removeprefix("the ")
            yield bare.removesuffix("s") if bare.removesuffix("s") in UNKNOWN else bare


def _stands_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize(
    ("docstring", "things"),
    [
        ("Reads. It knows no route.", ["route"]),
        ("Reads; it knows neither clock nor metric.", ["clock", "metric"]),
        ("Reads. It knows nothing of jobs or of the database, and writes.", ["job", "database"]),
        ("Reads. It knows no cause and sends nothing.", ["cause"]),
        ("Each knows the others.", []),
    ],
)
def test_a_claim_is_read_out_of_a_docstring(docstring: str, things: list[str]) -> None:
    assert list(claims(docstring)) == things


# --- where a module's tests stand


def test_every_module_has_a_test_file_of_its_name_or_a_row_that_names_another() -> None:
    bare = {module for module in ALL if not is_package(module) and not has_own_tests(module)}
    assert bare - TESTED_BY.keys() == set(), "give each a test file of its name, or a row in TESTED_BY"
    assert TESTED_BY.keys() - bare == set(), "these rows can go: the module is gone, or has a test file of its own"
    assert {file for file in TESTED_BY.values() if not (ROOT / "tests" / file).exists()} == set()


def has_own_tests(module: str) -> bool:
    folder, _, name = module.removeprefix("convo.").replace(".", "/").rpartition("/")
    return any((ROOT / "tests" / kind / folder / f"test_{name}.py").exists() for kind in ("unit", "integration"))


def test_the_top_of_the_repository_holds_what_it_may() -> None:
    allowed = {"convo", "tests", "scripts", "config.toml", "pyproject.toml"}
    allowed |= {"README.md", "LICENSE", "NOTICE", "CHANGELOG.md"}
    left_by_tools = {"build", "dist", "convo.egg-info"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - left_by_tools <= allowed
