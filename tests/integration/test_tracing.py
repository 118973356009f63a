"""Traces of a whole service, read back by a collector that decodes OTLP with the official protobufs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from msgspec import structs
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from convo.errors import RemoteDenied
from convo.otel.keeper import check_collector
from convo.settings import OtelSettings, Secret
from tests.support import fakes
from tests.support.brokers import URL, client_of, needs_broker, own_name, queue_of_events
from tests.support.collectors import TAKEN, CollectedSpan, Collector, collecting_spans, needs_otel
from tests.support.making import ask, open_store
from tests.support.ports import free_port
from tests.support.receivers import Reply, receiving
from tests.support.running import ended, query, running, serving

pytestmark = needs_otel

END = "/v1/conversations/end"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=x"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}


@asynccontextmanager
async def convo(
    folder: Path, database: str, collector: Collector, settings: dict[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    given = {"otel.endpoint": collector.endpoint, "otel.sample": "0", **(settings or {})}
    async with serving(folder, database, given) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def analysed(client: httpx.AsyncClient, name: str = "talk-1", **headers: str) -> None:
    answer = await client.post(END, json=ended(name), headers=headers)
    assert answer.status_code == 202, answer.text
    view = (await client.get(f"/v1/conversations/{name}", params={"wait": "20"})).json()
    assert view["state"] == "done"


def has(*names: str) -> Any:
    return lambda spans: set(names) <= {span.name for span in spans}


def names_of(spans: Sequence[CollectedSpan]) -> set[str]:
    """The names of spans, but for the waits for a client: those are there where it was slow."""
    return {span.name for span in spans if not span.name.startswith("connection.")}


def only(spans: Sequence[CollectedSpan], name: str) -> CollectedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_one_conversation_is_one_trace_from_the_request_to_the_call_of_the_model(
    database: str, tmp_path: Path
) -> None:
    with collecting_spans() as collector:
        async with fakes.open_model() as model:
            model.always = fakes.charging("120", "30", "20")
            settings = {"llm.base_url": f"{model.url}/v1", "llm.model": "m-7"}
            async with convo(tmp_path, database, collector, settings) as client:
                await analysed(client, **SAMPLED)
                spans = await collector.until(has("job", "chat m-7", "commit"))
            (call,) = [call for call in model.work if call.method == "POST"]
    assert {span.trace_id for span in spans} == {TRACE}
    assert {span.state for span in spans} == {"vendor=x"}
    assert names_of(spans) == {
        *(f"POST {END}", "read body", "decode", "commit", "wait for batch", "db.accept"),
        *("db.lease", "job", "analysis.job", "part memories", "part questions, emotion", "chat m-7"),
        *("job.ending", "job.costs", "db.costs", "db.settle"),
    }
    by_id = {span.span_id: span for span in spans}
    request, job, chat = only(spans, f"POST {END}"), only(spans, "job"), only(spans, "chat m-7")
    assert (request.parent_id, request.kind) == (CALLER, "server")
    assert request.attributes["http.response.status_code"] == 202
    assert request.attributes["convo.conversation_id"] == "talk-1"
    for name in ("read body", "decode", "commit"):
        step = only(spans, name)
        assert step.parent_id == request.span_id
        assert request.began_ns <= step.began_ns <= step.ended_ns <= request.ended_ns
    commit, stored = only(spans, "commit"), only(spans, "db.accept")
    assert (stored.parent_id, stored.attributes["convo.batch_rows"]) == (request.span_id, 1)
    assert stored.ended_ns - stored.began_ns <= commit.ended_ns - commit.began_ns
    assert (job.parent_id, job.kind, job.attributes["convo.ending"]) == (request.span_id, "consumer", "settle")
    assert job.attributes["convo.conversation_id"] == "talk-1"
    part = by_id[chat.parent_id]
    assert (part.name, part.parent_id) == ("part questions, emotion", job.span_id)
    leased = only(spans, "db.lease")
    assert (leased.parent_id, leased.attributes["convo.batch_rows"]) == (request.span_id, 1)
    assert leased.ended_ns <= job.began_ns
    for name in ("job.ending", "job.costs", "db.costs", "db.settle"):
        assert only(spans, name).parent_id == job.span_id
    assert [span.parent_id for span in spans if span.name == "wait for batch"] == [
        *(request.span_id, job.span_id, job.span_id),
    ]
    # The call passes the trace on, with its own id.
    assert call.headers["traceparent"] == f"00-{TRACE}-{chat.span_id}-01"
    assert call.headers["tracestate"] == "vendor=x"
    assert chat.kind == "client"
    assert (
        chat.attributes.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m-7",
            "gen_ai.provider.name": "127.0.0.1",
            "convo.parts": ["questions", "emotion"],
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
        }.items()
    )
    tokens = {name: count for name, count in chat.attributes.items() if name.startswith("gen_ai.usage.")}
    assert tokens == {
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 30,
        "gen_ai.usage.cache_read.input_tokens": 20,
    }
    # Nothing of what was said, and of no user.
    assert "Rex" not in repr(spans)
    assert "user-1" not in repr(spans)


async def test_what_its_sender_does_not_record_is_not_recorded_nor_passed_on(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with fakes.open_model() as model:
            settings = {"llm.base_url": f"{model.url}/v1", "llm.model": "m", "otel.sample": "1"}
            async with convo(tmp_path, database, collector, settings) as client:
                await analysed(client, "talk-1", **NOT_SAMPLED)
                await analysed(client, "talk-2")
                spans = await collector.until(has("job"))
            traced = ["traceparent" in call.headers for call in model.work if call.method == "POST"]
    assert {span.attributes.get("convo.conversation_id") for span in spans if span.name == "job"} == {"talk-2"}
    assert TRACE not in {span.trace_id for span in spans}
    assert traced == [False, True]


async def test_what_jobs_have_done_for_them_together_stands_in_the_trace_of_each(database: str, tmp_path: Path) -> None:
    traces = [f"{number:032x}" for number in (7, 8, 9)]
    with collecting_spans() as collector:
        async with convo(tmp_path, database, collector, {"jobs.workers": "0"}) as client:
            for trace in traces:
                headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
                assert (await client.post(END, json=ended(f"talk-{trace[-1]}"), headers=headers)).status_code == 202
            assert (await client.post(END, json=ended("talk-0"), headers=NOT_SAMPLED)).status_code == 202
        # No log comes with its lease: each is read by its job.
        async with convo(tmp_path, database, collector, {"jobs.workers": "4", "jobs.handover_bytes": "1"}):
            spans = await collector.until(lambda found: sum(span.name == "job" for span in found) == 3)
    assert {span.trace_id for span in spans} == set(traces)
    for trace in traces:
        mine = [span for span in spans if span.trace_id == trace]
        job = only(mine, "job")
        assert {only(mine, name).parent_id for name in ("db.take", "db.settle", "job.ending")} == {job.span_id}
        # All four were leased by one statement.
        assert only(mine, "db.lease").attributes["convo.batch_rows"] == 4
        settled, ending = only(mine, "db.settle"), only(mine, "job.ending")
        assert ending.began_ns <= settled.began_ns <= settled.ended_ns <= ending.ended_ns


async def test_a_part_that_is_stored_by_itself_is_a_span_of_its_job(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with fakes.open_model() as model, fakes.open_memory() as memory:
            # What the model found is stored before the memories are there.
            memory.always = fakes.slow("1.0")
            settings = {"llm.base_url": f"{model.url}/v1", "llm.model": "m-7", "memory.url": memory.url}
            async with convo(tmp_path, database, collector, settings) as client:
                await analysed(client, **SAMPLED)
                spans = await collector.until(has("job"))
    job, parts = only(spans, "job"), [span for span in spans if span.name == "db.part"]
    assert len(parts) == sum(span.name == "job.part" for span in spans) >= 2
    for part in parts:
        assert part.parent_id == job.span_id
        assert part.attributes["convo.batch_rows"] >= 1
    assert names_of(spans) - {"part questions, emotion", "chat m-7", "job.costs", "db.costs"} == {
        *(f"POST {END}", "read body", "decode", "commit", "wait for batch", "db.accept"),
        *("db.lease", "job", "analysis.job", "part memories", "memory.extract", "job.part", "db.part"),
        *("job.ending", "db.settle"),
    }


async def test_a_memory_service_is_told_of_an_erasure_in_the_trace_of_who_erased(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with fakes.open_memory() as memory:
            settings = {"memory.dialect": "mem0", "memory.url": memory.url}
            async with convo(tmp_path, database, collector, settings) as client:
                said = [{"role": "user", "content": "I like tea."}, {"role": "assistant", "content": "Fine."}]
                for name in ("talk-1", "talk-2"):
                    answer = await client.post(END, json=ended(name, said, user_id=name))
                    assert answer.status_code == 202
                    await client.get(f"/v1/conversations/{name}", params={"wait": "20"})
                answer = await client.delete("/v1/conversations/talk-1", headers=SAMPLED)
                assert answer.status_code == 200, answer.text
                await memory.until(lambda one: any(call.method == "DELETE" for call in one.calls))
                spans = await collector.until(has("forget memory", "forget conversation"))
                assert (await client.delete("/v1/conversations/talk-2", headers=NOT_SAMPLED)).status_code == 200
                await memory.until(lambda one: sum(call.method == "DELETE" for call in one.calls) == 2)
            sent = [call.headers.get("traceparent") for call in memory.calls if call.method == "DELETE"]
    request, forget = only(spans, "DELETE /v1/conversations/<conversation_id>"), only(spans, "forget memory")
    call = only(spans, "memory.forget")
    assert (forget.trace_id, forget.parent_id, call.parent_id) == (TRACE, request.span_id, forget.span_id)
    assert sent == [f"00-{TRACE}-{call.span_id}-01", None]


async def test_what_is_found_again_is_part_of_the_trace_of_who_asked_for_it(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with fakes.open_model() as model:
            settings = {"llm.base_url": f"{model.url}/v1", "llm.model": "m-7"}
            async with convo(tmp_path, database, collector, settings) as client:
                await analysed(client)
                again = {"part": "emotion"}
                answer = await client.post("/v1/conversations/talk-1/reanalyse", json=again, headers=SAMPLED)
                assert answer.status_code == 202, answer.text
                spans = await collector.until(has("find emotion again"))
            sent = [call.headers.get("traceparent") for call in model.work if call.method == "POST"]
    request, found = (
        only(spans, "POST /v1/conversations/<conversation_id>/reanalyse"),
        only(spans, "find emotion again"),
    )
    assert (found.trace_id, found.parent_id) == (TRACE, request.span_id)
    assert sent == [None, f"00-{TRACE}-{only(spans, 'chat m-7').span_id}-01"]


async def test_a_trace_goes_on_after_a_restart(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with convo(tmp_path, database, collector, {"jobs.workers": "0"}) as client:
            assert (await client.post(END, json=ended("talk-1"), headers=SAMPLED)).status_code == 202
            request = only(await collector.until(has(f"POST {END}")), f"POST {END}")
        async with convo(tmp_path, database, collector):
            job = only(await collector.until(has("job")), "job")
    assert (job.trace_id, job.parent_id) == (TRACE, request.span_id)


@pytest.mark.long
def test_a_trace_goes_on_in_another_process_and_a_stop_sends_what_is_left(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        settings = {
            "otel.endpoint": collector.endpoint,
            "otel.service_name": "robot",
            "observe.log_format": "json",
            "observe.log_level": "debug",
        }
        taker = running(tmp_path / "a", database, {**settings, "jobs.workers": "0"})
        worker = running(tmp_path / "b", database, settings)
        with taker as first, worker as second, httpx.Client(base_url=first.url, timeout=30) as client:
            assert client.post(END, json=ended("talk-1"), headers=SAMPLED).status_code == 202
            view = client.get("/v1/conversations/talk-1", params={"wait": "20"}).json()
            assert view["state"] == "done"
            # At once: nothing but the stop may have sent them.
            assert (first.stop(), second.stop()) == (0, 0)
        spans = [span for span in collector.spans() if span.trace_id == TRACE]
        lines = [json.loads(line) for line in first.output.splitlines() if line.startswith("{")]
    request, job = only(spans, f"POST {END}"), only(spans, "job")
    assert job.parent_id == request.span_id
    assert request.resource["service.name"] == job.resource["service.name"] == "robot"
    assert request.resource["service.instance.id"] != job.resource["service.instance.id"]
    (accepted,) = [line for line in lines if line["event"] == "accepted"]
    assert (accepted["trace_id"], accepted["span_id"]) == (TRACE, request.span_id)


async def test_the_header_of_a_batch_counts_for_all_of_its_lines(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with convo(tmp_path, database, collector) as client:
            lines = b"\n".join(json.dumps(ended(f"talk-{at}")).encode() for at in range(3))
            headers = {**SAMPLED, "content-type": "application/jsonl"}
            answer = await client.post("/v1/conversations/batch", content=lines, headers=headers)
            assert answer.status_code == 200
            spans = await collector.until(lambda found: sum(span.name == "job" for span in found) == 3)
    batch = only(spans, "POST /v1/conversations/batch")
    assert {span.parent_id for span in spans if span.name == "job"} == {batch.span_id}
    assert {span.trace_id for span in spans} == {TRACE}


async def test_where_nothing_is_recorded_nothing_is_stored(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        await analysed(client, **SAMPLED)
        async with open_store(database) as postgres:
            assert await ask(postgres, "SELECT count(trace) FROM conversation") == 0


async def test_an_event_has_its_trace_and_its_delivery_is_part_of_it(database: str, tmp_path: Path) -> None:
    settings = {
        "events.types": '["conversation.accepted", "conversation.analysed"]',
        "webhooks.allow_private": "true",
    }
    with collecting_spans() as collector, receiving() as receiver:
        async with convo(tmp_path, database, collector, settings) as client:
            assert (await client.post("/v1/webhooks", json={"url": receiver.url})).status_code == 201
            await analysed(client, **SAMPLED)
            await analysed(client, "talk-2")
            spans = await collector.until(has("deliver conversation.accepted", "deliver conversation.analysed"))
            await collector.until(lambda _: len(receiver.events()) >= 4)
    request = only(spans, f"POST {END}")
    got = {one.headers["webhook-id"]: one for one in receiver.got}
    events = {(one["type"], one["subject"]): one for one in receiver.first()}
    for kind in ("conversation.accepted", "conversation.analysed"):
        event, span = events[kind, "talk-1"], only(spans, f"deliver {kind}")
        assert event["traceparent"] == f"00-{TRACE}-{request.span_id}-01"
        assert event["tracestate"] == "vendor=x"
        assert got[event["id"]].headers["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
        assert (span.kind, span.parent_id, span.attributes["http.response.status_code"]) == (
            *("client", request.span_id, 204),
        )
        other = events[kind, "talk-2"]
        assert "traceparent" not in other
        assert "traceparent" not in got[other["id"]].headers


@needs_broker
async def test_a_message_of_a_queue_and_an_event_for_rabbitmq_carry_the_trace(database: str, tmp_path: Path) -> None:
    queue = own_name("traces")
    with collecting_spans() as collector:
        async with queue_of_events() as (events, exchange, bound), client_of(URL) as sender:
            settings = {
                "rabbitmq.url": URL,
                "rabbitmq.exchange": exchange,
                "rabbitmq.intake_queue": queue,
                "events.types": '["conversation.accepted"]',
            }
            async with convo(tmp_path, database, collector, settings):
                body = json.dumps(ended("talk-1")).encode()
                async with open_store(database) as postgres:
                    await _until_taken(sender, queue)
                    await sender.sent(queue, body, headers=dict(SAMPLED))
                    spans = await collector.until(has("job", f"process {queue}", f"publish {exchange}"))
                    assert await ask(postgres, "SELECT count(*) FROM conversation") == 1
            (got,) = await events.taken(bound)
            await sender.removed(queues=(queue, f"{queue}.dead"), exchanges=(f"{queue}.dead",))
    taken = only(spans, f"process {queue}")
    assert (taken.trace_id, taken.parent_id, taken.kind) == (TRACE, CALLER, "consumer")
    assert only(spans, "job").parent_id == taken.span_id
    assert got.headers["traceparent"] == f"00-{TRACE}-{taken.span_id}-01"
    assert got.headers["tracestate"] == "vendor=x"
    assert json.loads(got.body)["traceparent"] == got.headers["traceparent"]
    assert only(spans, f"publish {exchange}").kind == "producer"


async def _until_taken(sender: Any, queue: str) -> None:
    for _ in range(100):
        try:
            await sender.held(queue)
        except Exception:  # noqa: BLE001  (there is none yet; the broker then closes the channel)
            await sender.close()
            await trio.sleep(0.1)
        else:
            return


async def test_metrics_have_the_traces_in_which_figures_were_met_where_openmetrics_is_asked_for(
    database: str, tmp_path: Path
) -> None:
    with collecting_spans() as collector:
        async with convo(tmp_path, database, collector) as client:
            await analysed(client, **SAMPLED)
            kinds = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
            openmetrics = await client.get("/metrics", headers={"accept": kinds})
            plain = await client.get("/metrics")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(openmetrics.text)}  # type: ignore[no-untyped-call]
    for name in ("convo_accept_seconds", "convo_wait_seconds", "convo_part_seconds"):
        found = [one.exemplar for one in families[name].samples if one.exemplar is not None]
        assert TRACE in {one.labels["trace_id"] for one in found}, name
    assert plain.headers["content-type"].startswith("text/plain")
    assert TRACE not in plain.text


async def test_the_waits_for_a_client_and_for_a_batch_are_spans_of_its_request(database: str, tmp_path: Path) -> None:
    body = json.dumps(ended("talk-1")).encode()
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **SAMPLED}
    head = f"POST {END} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    with collecting_spans() as collector:
        async with (
            convo(tmp_path, database, collector, {"jobs.workers": "0"}) as client,
            await trio.open_tcp_stream("127.0.0.1", client.base_url.port or 0) as stream,
        ):
            for piece in (head[:40].encode(), head[40:].encode(), body[:50], body[50:]):
                await stream.send_all(piece)
                await trio.sleep(0.1)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 202")
            spans = await collector.until(has(f"POST {END}", "db.accept"))
    request = only(spans, f"POST {END}")
    waits = ["connection.head", "connection.body", "wait for batch", "db.accept"]
    for name in waits:
        span = only(spans, name)
        assert (span.trace_id, span.parent_id) == (TRACE, request.span_id)
        assert request.began_ns <= span.began_ns <= span.ended_ns <= request.ended_ns
    lasted = {name: (only(spans, name).ended_ns - only(spans, name).began_ns) / 1e9 for name in waits}
    assert lasted["connection.head"] >= 0.08
    assert lasted["connection.body"] >= 0.08
    assert [span.name for span in sorted(spans, key=lambda one: one.began_ns) if span.name in waits] == waits


async def test_the_waits_for_a_client_are_spans_also_where_the_framework_answers(database: str, tmp_path: Path) -> None:
    with collecting_spans() as collector:
        async with convo(tmp_path, database, collector, {"jobs.workers": "0"}) as client:
            answer = await client.get("/v1/conversations", headers=SAMPLED)
            assert answer.status_code == 200
            spans = await collector.until(has("GET /v1/conversations", "connection.turn", "db.list"))
    request = only(spans, "GET /v1/conversations")
    for name in ("connection.turn", "db.list"):
        span = only(spans, name)
        assert span.parent_id == request.span_id
        assert request.began_ns <= span.began_ns <= span.ended_ns <= request.ended_ns


async def test_the_calls_of_a_memory_service_and_of_a_parts_service_pass_the_trace_on(
    database: str, tmp_path: Path
) -> None:
    with collecting_spans() as collector:
        async with fakes.open_memory() as memory, fakes.open_server(lambda _: {"tier": "gold"}) as service:
            settings = {
                "memory.url": memory.url,
                "parts__crm__who": "http",
                "parts__crm__url": f"{service.url}/analyse",
                "parts__crm__secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
                "parts__crm__schema": json.dumps({"type": "object", "properties": {"tier": {"enum": ["gold"]}}}),
                "parts__crm__required": "true",
            }
            async with convo(tmp_path, database, collector, settings) as client:
                await analysed(client, "talk-1", **SAMPLED)
                await analysed(client, "talk-2", **NOT_SAMPLED)
                spans = await collector.until(has("memory.extract", "part.call", "job"))
            calls = {"memory.extract": memory.work, "part.call": service.work}
    for name, made in calls.items():
        span = only(spans, name)
        assert (span.kind, span.trace_id) == ("client", TRACE)
        sent = [call.headers.get("traceparent") for call in made if call.method == "POST"]
        assert sorted(sent, key=str) == [f"00-{TRACE}-{span.span_id}-01", None], name
        assert {call.headers.get("tracestate") for call in made if call.method == "POST"} == {"vendor=x", None}


def test_log_records_are_sent_with_the_ids_of_their_trace(database: str, tmp_path: Path) -> None:
    settings = {"otel.logs": "true", "otel.sample": "0", "observe.log_level": "debug", "otel.compression": "gzip"}
    with collecting_spans() as collector:
        given = {**settings, "otel.endpoint": collector.endpoint, "otel.service_name": "robot"}
        with running(tmp_path, database, given) as started, httpx.Client(base_url=started.url, timeout=30) as client:
            assert client.post(END, json=ended("talk-1"), headers=SAMPLED).status_code == 202
            assert client.post(END, json=ended("talk-2")).status_code == 202
            for name in ("talk-1", "talk-2"):
                assert client.get(f"/v1/conversations/{name}", params={"wait": "20"}).json()["state"] == "done"
            assert started.stop() == 0
        records, spans = collector.records(), collector.spans()
    assert {one.headers.get("content-encoding") for one in collector.receiver.got} == {"gzip"}
    by_conversation = {one.attributes["conversation_id"]: one for one in records if one.name == "accepted"}
    traced, other = by_conversation["talk-1"], by_conversation["talk-2"]
    request = only([span for span in spans if span.trace_id == TRACE], f"POST {END}")
    assert (traced.trace_id, traced.span_id, traced.sampled) == (TRACE, request.span_id, True)
    assert request.began_ns <= traced.at_ns <= request.ended_ns
    assert (other.trace_id, other.span_id, other.sampled) == ("", "", False)
    (settled,) = [one for one in records if one.name == "job_settled" and one.attributes["conversation_id"] == "talk-1"]
    assert settled.span_id in {span.span_id for span in spans if span.name in ("job", "job.ending")}
    (served,) = [one for one in records if one.name == "service_started"]
    assert (served.severity, served.level, served.body) == (9, "INFO", "service_started")
    assert served.resource["service.name"] == "robot"
    # Nothing of what was said, and of no user.
    assert "Rex" not in repr(records)
    assert "user-1" not in repr(records)


@pytest.mark.parametrize(
    "fault", ["mute", pytest.param("dead", marks=pytest.mark.long), pytest.param("failing", marks=pytest.mark.long)]
)
def test_a_collector_that_is_out_holds_up_neither_accepts_nor_a_stop(fault: str, database: str, tmp_path: Path) -> None:
    reply = Reply(status=503) if fault == "failing" else Reply(hangs=True)
    with receiving(lambda _: reply) as receiver:
        endpoint = f"http://127.0.0.1:{free_port()}" if fault == "dead" else receiver.url.rstrip("/")
        settings = {
            "otel.endpoint": endpoint,
            "otel.sample": "1",
            "otel.spans_max": "20",
            "otel.logs": "true",
            "otel.records_max": "5",
            "observe.log_level": "debug",
            "otel.attempt_seconds": "0.3",
            "jobs.workers": "0",
        }
        with running(tmp_path, database, settings) as started, httpx.Client(base_url=started.url, timeout=30) as client:
            for at in range(10):
                assert client.post(END, json=ended(f"talk-{at}")).status_code == 202
            warned = ""
            until = time.monotonic() + 15
            waiting = ("TRACES_WAITING", "OTEL_LOGS_WAITING")
            while not all(word in warned for word in waiting) and time.monotonic() < until:
                warned = client.get("/readyz").text
                time.sleep(0.05)
            assert all(word in warned for word in waiting)
            metrics = client.get("/metrics").text
            assert client.get("/readyz").status_code == 200
            assert started.stop() == 0
        assert "spans_waiting" in started.output
        assert "spans_dropped" in started.output
        assert "otel_records_waiting" in started.output
    assert 'convo_spans_dropped_total{reason="queue_full"} 0.0' not in metrics
    assert 'convo_otel_records_dropped_total{reason="queue_full"} 0.0' not in metrics
    assert query(database, "SELECT count(*) FROM conversation")[0][0] == 10


async def test_the_check_asks_a_collector_once() -> None:
    answers = [TAKEN, Reply(status=401)]
    with collecting_spans(lambda _: answers.pop(0)) as collector:
        settings = OtelSettings(endpoint=f"{collector.endpoint}/otlp/", headers=Secret("api-key=x%20y"))
        assert "takes spans" in await check_collector(settings)
        with pytest.raises(RemoteDenied, match="answered 401"):
            await check_collector(settings)
        # Log records are tried where they are sent.
        answers += [TAKEN, Reply(status=404)]
        with pytest.raises(RemoteDenied, match="answered 404"):
            await check_collector(structs.replace(settings, logs=True))
    (first, _, third, fourth) = collector.receiver.got
    assert (third.path, fourth.path) == ("/otlp/v1/traces", "/otlp/v1/logs")
    assert (first.path, first.headers["api-key"], first.body) == ("/otlp/v1/traces", "x y", b"")
    assert first.headers["content-type"] == "application/x-protobuf"
