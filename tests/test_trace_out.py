"""Every way out of the process, read out of the source: which of them pass a trace on, and why the others do not.

Open it when convo calls something in a new way. What passes a trace on is called here, each way that it can be called.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from convo.observe import tracing
from convo.observe.tracing import Recorder
from convo.outbound import OutboundClient
from convo.outbound_checked import CheckedClient
from tests.support.fakes import FakeServer, open_server
from tests.support.source_tree import imports, modules, sources

# What opens a connection to another program.
_LIBRARIES = {"httpx", "httpcore", "smtplib", "asyncpg", "aio_pika", "obstore", "requests", "aiohttp", "urllib3"}
_OPENS = re.compile(r"\b(open_tcp_stream|open_ssl_over_tcp_stream|create_connection|urlopen|HTTPSConnection)\(")
_BY_NAME = re.compile(r'import_module\("([a-z0-9_]+)')

CLIENTS = (OutboundClient, CheckedClient)
WAYS_OUT = {
    # These two pass the trace on in each call (below); the second module opens the first one's connections.
    "convo.outbound": "traceparent",
    "convo.outbound_connection": "traceparent",
    "convo.outbound_checked": "traceparent",
    # In the headers of each message, the outcome of ``test_each_message_for_a_broker_says_what_its_headers_are``.
    "convo.rabbitmq.broker": "traceparent",
    "convo.rabbitmq.queues": "the errors of the library alone",
    # obstore takes no header for one call.
    "convo.objects.s3": "no header",
    "convo.alerts.mail": "an alert is of no request",
    "convo.store.sessions": "the database is no service that has traces",
    "convo.store.postgres": "the database is no service that has traces",
    "convo.store.postgres_errors": "the errors of the library alone",
    # The command line and the client for other programs: they have no trace, and are no part of a process that has.
    "convo.commands.terminal": "a program of its own",
    "convo.client.async_client": "a program of its own",
    "convo.client.sync_client": "a program of its own",
}


def ways_out() -> Iterator[str]:
    for module, text in sources().items():
        roots = {name.split(".")[0] for name in imports(module)} | set(_BY_NAME.findall(text))
        if roots & _LIBRARIES or _OPENS.search(text):
            yield module


def test_every_way_out_passes_the_trace_on_or_has_a_reason() -> None:
    assert sorted(ways_out()) == sorted(WAYS_OUT)


def test_each_message_for_a_broker_says_what_its_headers_are() -> None:
    made = [
        (module, {keyword.arg for keyword in node.keywords})
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Outgoing"
    ]
    assert {module for module, _ in made} == {"convo.rabbitmq.relay", "convo.rabbitmq.intake"}
    assert [module for module, given in made if "headers" not in given] == []


@asynccontextmanager
async def opened(kind: type[Any]) -> AsyncIterator[Any]:
    makes: dict[type[Any], Callable[[], Any]] = {
        OutboundClient: lambda: OutboundClient("it", seconds=5.0),
        CheckedClient: lambda: CheckedClient(connections=1, seconds=5.0, allow_private=True),
    }
    async with makes[kind]() as client:
        yield client


def calls_of(kind: type[Any]) -> list[str]:
    """Return every way to call with such a client."""
    return [name for name, one in vars(kind).items() if inspect.iscoroutinefunction(one) and not name.startswith("_")]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CLIENTS for name in calls_of(kind)])
async def test_a_call_passes_the_trace_of_its_task_on_however_it_is_made(kind: type[Any], name: str) -> None:
    async with open_server(lambda _: {}) as server, opened(kind) as client:
        call = partial(getattr(client, name), **_values(getattr(client, name), server))
        await call()
        with tracing.recording(Recorder(sample=0.0, spans_max=10)):
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            with tracing.within_span(tracing.begin_span("job", "consumer", parent, "vendor=x")) as span:
                await call()
        assert span is not None
        sent = [(one.headers.get("traceparent"), one.headers.get("tracestate")) for one in server.calls]
    assert sent == [(None, None), (f"00-{span.trace_id}-{span.span_id}-01", "vendor=x")]


def test_all_that_opens_http_connections_is_among_these_clients() -> None:
    """A client beside them would have no test above."""
    defined = {
        node.name
        for module in ("convo.outbound", "convo.outbound_checked")
        for node in modules()[module].body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Client")
    }
    assert defined == {kind.__name__ for kind in CLIENTS}
    assert all(calls_of(kind) for kind in CLIENTS)


def _values(call: Any, server: FakeServer) -> dict[str, object]:
    given = {"url": server.url, "body": b"{}", "headers": {"x-mine": "1"}}
    needed = [name for name, one in inspect.signature(call).parameters.items() if one.default is one.empty]
    return {name: given[name] for name in needed}
