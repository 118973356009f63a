from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
import zstandard

from convo import errors
from convo.config import WebSettings
from convo.observe import metrics
from convo.web.door import Answer, answered, check_head, inflate, problem

KIB = 1 << 10
MIB = 1 << 20
SETTINGS = WebSettings(body_bytes_max=2 * MIB)
TEXT = json.dumps({"said": "Con chó nhà mình tên là Bruno. " * 99}).encode()
# What no compressor makes smaller, so that it fills several pieces of input.
NOISE = random.Random(1).randbytes(300_000)
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


def gzip_bomb(mebibytes: int) -> bytes:
    """One gzip member that inflates to zeros: the same flushed block again and again."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (mebibytes - 1) + packer.flush()


def zstd_bomb(mebibytes: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mebibytes)) + packer.flush()


BOMBS = {
    "one gzip member": ("gzip", gzip_bomb(1024)),
    "many gzip members": ("gzip", gzip.compress(bytes(MIB)) * 1024),
    "zlib": ("deflate", zlib.compress(bytes(64 * MIB))),
    "one zstd frame": ("zstd", zstd_bomb(1024)),
    "many zstd frames": ("zstd", zstandard.compress(bytes(MIB)) * 1024),
}


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_plain_body_stays_as_it_is(encoding: str) -> None:
    assert inflate(TEXT, encoding, SETTINGS) is TEXT


@pytest.mark.parametrize("body", [TEXT, NOISE, b"", bytes(2 * MIB)], ids=["text", "noise", "empty", "the limit"])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_body_is_inflated_up_to_the_limit(encoding: str, body: bytes) -> None:
    assert inflate(ENCODERS[encoding](body), f" {encoding.upper()} ", SETTINGS) == body


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_body_in_several_parts_is_one_body(encoding: str) -> None:
    pack = ENCODERS[encoding]
    assert inflate(pack(TEXT) + pack(b"") + pack(NOISE) + pack(TEXT), encoding, SETTINGS) == TEXT + NOISE + TEXT


@pytest.mark.parametrize("encoding", ["", *ENCODERS])
def test_one_byte_over_the_limit_is_too_large(encoding: str) -> None:
    body = bytes(2 * MIB + 1)
    with pytest.raises(errors.TooLarge, match=r"body_bytes_max = 2097152"):
        inflate(ENCODERS[encoding](body) if encoding else body, encoding, SETTINGS)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_without_inflating_it(bomb: str) -> None:
    encoding, body = BOMBS[bomb]
    tracemalloc.start()
    try:
        with pytest.raises(errors.TooLarge):
            inflate(body, encoding, SETTINGS)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The pieces, and the same joined.
    assert most < 2 * SETTINGS.body_bytes_max + MIB


def test_a_body_of_very_many_members_costs_no_more_than_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    make = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._inflater = make(wbits)

        def decompress(self, data: bytes, room: int) -> bytes:
            given.append(len(data))
            return self._inflater.decompress(data, room)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inflater, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    member = gzip.compress(b"")
    assert inflate(member * 20_000, "gzip", SETTINGS) == b""
    assert len(given) < 21_000
    # What a member leaves over is copied: of one piece, never of the whole body.
    assert max(given) == 64 * KIB


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("missing", [1, 4, 20_000])
def test_a_truncated_body_is_refused(encoding: str, missing: int) -> None:
    with pytest.raises(errors.BadRequest, match="ends in the middle"):
        inflate(ENCODERS[encoding](NOISE)[:-missing], encoding, SETTINGS)


def test_a_truncated_zstd_body_never_reads_as_a_whole_one() -> None:
    packed = zstandard.compress(NOISE)
    assert all(inflate(packed[:size], "zstd", SETTINGS) != NOISE for size in range(0, len(packed), 10_007))


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("body", [TEXT, b"\x00", b"\x1f\x8b\x08\x00"], ids=["plain", "a NUL", "a head of gzip"])
def test_a_body_that_is_not_what_its_encoding_says_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        inflate(body, encoding, SETTINGS)


@pytest.mark.parametrize("encoding", ENCODERS)
def test_garbage_after_a_compressed_body_is_refused(encoding: str) -> None:
    with pytest.raises(errors.BadRequest):
        inflate(ENCODERS[encoding](TEXT) + b"garbage", encoding, SETTINGS)


def test_a_zstd_frame_cannot_ask_for_more_window_than_its_sender_may() -> None:
    def pack(window_log: int) -> bytes:
        parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return packer.compress(TEXT) + packer.flush()

    assert inflate(pack(23), "zstd", SETTINGS) == TEXT
    with pytest.raises(errors.BadRequest):
        inflate(pack(24), "zstd", SETTINGS)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "gzip\x00", "zstd;q=1"])
def test_an_unknown_encoding_is_not_taken(encoding: str) -> None:
    with pytest.raises(errors.UnsupportedMedia, match="gzip, deflate or zstd"):
        inflate(TEXT, encoding, SETTINGS)


# --- the head


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "application/json;"],
)
def test_json_by_any_of_its_names_is_taken(content_type: str) -> None:
    check_head(content_type, 2 * MIB, SETTINGS)
    check_head(content_type, None, SETTINGS)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "text/json+json", "application/jsonp", "multipart/form-data"]
)
def test_another_content_type_is_not_taken(content_type: str) -> None:
    with pytest.raises(errors.UnsupportedMedia, match="application/json"):
        check_head(content_type, 10, SETTINGS)


def test_an_announced_body_over_the_limit_is_refused_by_its_head() -> None:
    with pytest.raises(errors.TooLarge, match="a body of 2097153 bytes"):
        check_head("application/json", 2 * MIB + 1, SETTINGS)


# --- errors as answers


def test_a_problem_says_what_where_and_whose() -> None:
    answer = problem(errors.Invalid("must be text", path="$.user_id"), "c-1")
    assert (answer.status, answer.content_type) == (422, "application/problem+json")
    assert json.loads(answer.body) == {
        "type": "/docs#invalid",
        "title": "The request is not valid",
        "status": 422,
        "code": "invalid",
        "detail": "must be text",
        "path": "$.user_id",
        "conversation_id": "c-1",
    }
    assert list(answer.headers) == []


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.DatabaseUnavailable(), "1"),
        (errors.Unavailable(retry_after_seconds=2.1), "3"),
        (errors.DeadlineExceeded("db.accept", 3.0), "1"),
        (errors.Invalid(retry_after_seconds=9), "9"),
    ],
)
def test_what_may_succeed_later_says_when(error: errors.ConvoError, seconds: str) -> None:
    assert ("Retry-After", seconds) in problem(error).headers


# --- the request as a whole


Serve = Callable[[], Awaitable[Answer]]


async def serve_well() -> Answer:
    await trio.sleep(0.25)
    return Answer(status=200, body=b"{}")


def raising(error: Exception) -> Serve:
    async def serve() -> Answer:
        raise error

    return serve


async def ask(serve: Serve, method: str = "GET") -> Answer:
    return await answered("/route", method, SETTINGS, serve, started=trio.current_time())


async def test_every_answer_says_how_long_it_took(autojump_clock: trio.testing.MockClock) -> None:
    assert list((await ask(serve_well)).headers) == [("Server-Timing", "total;dur=250.00")]


async def test_an_answer_with_timings_of_its_own_keeps_them() -> None:
    async def serve() -> Answer:
        return Answer(status=202, body=b"", headers=[("Server-Timing", "commit;dur=1.00")])

    assert list((await ask(serve)).headers) == [("Server-Timing", "commit;dur=1.00")]


async def test_an_error_on_purpose_is_its_own_answer() -> None:
    answer = await ask(raising(errors.NotFound("there is none")))
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "not_found")


async def test_a_bug_is_answered_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    answer = await ask(raising(ZeroDivisionError("the secret")))
    assert (answer.status, json.loads(answer.body)["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body


async def test_the_budget_ends_in_503_at_its_very_second(autojump_clock: trio.testing.MockClock) -> None:
    async def serve() -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    started = trio.current_time()
    answer = await ask(serve)
    assert trio.current_time() - started == SETTINGS.request_seconds
    assert (answer.status, json.loads(answer.body)["code"]) == (503, "deadline_exceeded")
    assert "web.request" in json.loads(answer.body)["detail"]


async def test_a_clients_own_words_are_no_label_of_a_metric() -> None:
    for number in range(50):
        await ask(raising(errors.NotFound()), f"X{number}")
    await ask(raising(errors.NotFound()), "PATCH")
    methods = {labels[1] for labels in metrics.requests_total.cells if labels[0] == "/route"}
    assert methods <= {"GET", "PATCH", "other"}
    assert "PATCH" in methods
