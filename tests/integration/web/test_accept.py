from __future__ import annotations

import gzip
import itertools
import json
import re
import select
import socket
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import trio
import zstandard

from convo.settings import WebSettings
from tests.support.running import (
    Running,
    announced,
    away,
    dead_socket,
    ended,
    holding,
    query,
    read_answer,
    running,
    serving,
    until_ended,
)

END = "/v1/conversations/end"
JSON = {"Content-Type": "application/json"}
LIMIT = WebSettings().body_bytes_max
RAW_LIMIT = WebSettings().raw_bytes_max
MIB = 1 << 20
_numbers = itertools.count(1)


def new_id() -> str:
    return f"accept-{next(_numbers)}"


def post(client: httpx.Client, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(END, content=content, headers={**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}})


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check everything that all problems have in common; return this one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "total;dur=" in answer.headers["server-timing"]
    told: dict[str, Any] = answer.json()
    assert told.keys() - {"path", "conversation_id"} == {"type", "title", "status", "code", "detail"}
    assert (told["status"], told["code"], told["type"]) == (status, code, f"/docs#{code}")
    assert (answer.headers.get("retry-after") is not None) == (status == 503)
    return told


# --- what is refused


def ids(**fields: object) -> bytes:
    return json.dumps({"conversation_id": "known-1", "user_id": "user-1", "bot_id": "pika", **fields}).encode()


NOT_JSON = {
    "nothing": b"",
    "white space": b" \n ",
    "cut off": b'{"conversation_id": "abc"',
    "two documents": ids() + ids(),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + ids(),
    "UTF-16": ids().decode().encode("utf-16"),
    "no UTF-8": ids(user_id="QQQ").replace(b"QQQ", b"\xff\xfe\xfd"),
    "an encoded surrogate": ids(user_id="QQQ").replace(b"QQQ", b"\xed\xa0\x80\xed\xa0\x80"),
    "a lone surrogate": ids(user_id="abc\ud800"),
    "a lone surrogate in a log": ids(conversation_log=[{"character": "USER", "content": "\udc00"}]),
    "NaN": ids(user_id="QQQ").replace(b'"QQQ"', b"NaN"),
    "NaN in what is ignored": ids(other=float("nan")),
    "a comment": b"// hello\n" + ids(),
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json_is_400(client: httpx.Client, name: str) -> None:
    problem(post(client, NOT_JSON[name]), 400, "bad_request")


TOO_DEEP = {
    "900 levels in what is ignored": ids(other=0).replace(b" 0}", b"[" * 900 + b"]" * 900 + b"}"),
    "100,000 open brackets": b"[" * 100_000,
    "100,000 nested lists in what is ignored": ids(other=0).replace(b" 0}", b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "100,000 nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}


@pytest.mark.parametrize("name", TOO_DEEP)
def test_what_is_nested_too_deeply_is_422_json_or_not(client: httpx.Client, name: str) -> None:
    assert "deeper than 100 levels" in problem(post(client, TOO_DEEP[name]), 422, "invalid")["detail"]


def item(**fields: object) -> dict[str, object]:
    return {"conversation_log": [{"character": "USER", "content": "hi"}, fields]}


NOT_VALID: dict[str, tuple[bytes, str]] = {
    "null": (b"null", "$"),
    "a list": (b"[]", "$"),
    "a number": (b"1", "$"),
    "an empty object": (b"{}", "$.conversation_id"),
    "no bot": (ids(bot_id=None), "$.bot_id"),
    "an id that is too long": (ids(user_id="a" * 256), "$.user_id"),
    "an id with a line feed at its end": (ids(user_id="abc\n"), "$.user_id"),
    "an id with NUL": (ids(user_id="a\0bc"), "$.user_id"),
    "a name with NUL": (ids(bot_name="a\0bc"), "$.bot_name"),
    "a name that is too long": (ids(bot_type="a" * 256), "$.bot_type"),
    "a number for a name": (ids(agent_tag=1), "$.agent_tag"),
    "a start that is no time": (ids(start_time="yesterday"), "$.start_time"),
    "an end with NUL": (ids(end_time="2026-03-02T08:00:00Z\0"), "$.end_time"),
    "an end before its start": (
        ids(start_time="2026-03-02T08:00:00Z", end_time="2026-03-02T07:00:00Z"),
        "$.end_time",
    ),
    "a time before all times": (ids(start_time="0001-01-01T00:00:00+14:00"), "$.start_time"),
    "a time after all times": (ids(end_time="9999-12-31T23:59:59-14:00"), "$.end_time"),
    "a log that is none": (ids(conversation_log="hi"), "$.conversation_log"),
    "an object for a log": (ids(conversation_logs={}), "$.conversation_logs"),
    "an item that is none": (ids(conversation_log=[None]), "$.conversation_log[0]"),
    "10,000 empty items": (ids(conversation_log=[{}] * 10_000), "$.conversation_log[0]"),
    "content nested 100 deep": (
        ids(**item(role="user", content=json.loads("[" * 100 + "]" * 100))),
        "$.conversation_log[1]",
    ),
    "metadata that is a list": (ids(metadata=[]), "$.metadata"),
    "metadata that is too large": (ids(metadata={"a": "x" * 16_384}), "$.metadata"),
    "a language that has not the form of one": (ids(language="en_US"), "$.language"),
    "a log under a name that is not read": (ids(my_log=[{"role": "user", "content": "hi"}]), "$.my_log"),
    "two logs": (
        ids(conversation_log=[{"role": "user", "content": "a"}], conversation_logs=[{"role": "user", "content": "b"}]),
        "$.conversation_logs",
    ),
}


@pytest.mark.parametrize("name", NOT_VALID)
def test_what_is_no_conversation_is_422_with_the_path_and_the_id(client: httpx.Client, name: str) -> None:
    body, path = NOT_VALID[name]
    told = problem(post(client, body), 422, "invalid")
    assert told["path"] == path
    assert told.get("conversation_id") == ("known-1" if b"known-1" in body else None)


def test_an_id_that_cannot_be_read_is_not_sent_back(client: httpx.Client) -> None:
    told = problem(post(client, b'{"user_id": 5.5, "conversation_id": "\xff"}'), 422, "invalid")
    assert "conversation_id" not in told


@pytest.mark.parametrize("conversation_id", [".", "..", "", "x" * 9000, "tab\there", "del\x7f", 1.5, None])
def test_an_id_that_cannot_stand_in_a_path_is_refused(client: httpx.Client, conversation_id: object) -> None:
    told = problem(post(client, ids(conversation_id=conversation_id)), 422, "invalid")
    assert told["path"] == "$.conversation_id"
    assert len(json.dumps(told)) < 1000


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_another_content_type_is_415(client: httpx.Client, content_type: str) -> None:
    problem(post(client, ended(new_id()), **{"Content-Type": content_type}), 415, "unsupported_media")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress"])
def test_another_content_encoding_is_415(client: httpx.Client, encoding: str) -> None:
    problem(post(client, ended(new_id()), Content_Encoding=encoding), 415, "unsupported_media")


# --- compressed, and too large


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_body_is_the_same_as_a_plain_one(client: httpx.Client, encoding: str) -> None:
    body = json.dumps(ended(new_id())).encode()
    packed = post(client, ENCODERS[encoding](body), Content_Encoding=encoding)
    assert packed.status_code == 202
    assert post(client, body).content == packed.content


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_body_is_limited_by_what_it_inflates_to(client: httpx.Client, encoding: str) -> None:
    body = json.dumps(ended(new_id(), conversation_log=[])).encode()
    at_limit = body[:-1] + b" " * (LIMIT - len(body)) + b"}"
    assert post(client, ENCODERS[encoding](at_limit), Content_Encoding=encoding).status_code == 202
    problem(post(client, ENCODERS[encoding](at_limit + b" "), Content_Encoding=encoding), 413, "too_large")


BROKEN = {
    "cut off gzip": ("gzip", gzip.compress(ids())[:-9]),
    "cut off zstd": ("zstd", zstandard.compress(ids())[:-9]),
    "gzip called zstd": ("zstd", gzip.compress(ids())),
    "zstd called gzip": ("gzip", zstandard.compress(ids())),
    "plain called gzip": ("gzip", ids()),
    "nothing called gzip": ("gzip", b""),
    "nothing called zstd": ("zstd", b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_encoding_is_400(client: httpx.Client, name: str) -> None:
    encoding, body = BROKEN[name]
    problem(post(client, body, Content_Encoding=encoding), 400, "bad_request")


def resident_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_bombs_are_refused_and_the_process_does_not_grow(client: httpx.Client, convo: Running) -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    bombs = {
        "gzip": gzip.compress(bytes(MIB)) * 1024,
        "zstd": b"".join(packer.compress(bytes(MIB)) for _ in range(1024)) + packer.flush(),
        "deflate": zlib.compress(bytes(128 * MIB)),
    }
    post(client, gzip.compress(bytes(LIMIT)), Content_Encoding="gzip")
    before = resident_bytes(convo.pid)
    for encoding, bomb in bombs.items():
        problem(post(client, bomb, Content_Encoding=encoding), 413, "too_large")
    assert resident_bytes(convo.pid) - before < 64 * MIB


def ask_raw(url: str, sent: bytes, *pieces: bytes) -> bytes:
    """Send a head by hand; return the whole answer, up to the end of the connection or of its announced body."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), 20) as connection:
        connection.sendall(sent)
        for piece in pieces:
            connection.sendall(piece)
        return read_answer(connection)


HEAD = b"POST /v1/conversations/end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("size", [RAW_LIMIT + 1, 10**12])
def test_a_body_announced_too_large_is_413_before_any_of_it_is_sent(convo: Running, size: int) -> None:
    answer = ask_raw(convo.url, HEAD + b"Content-Length: %d\r\n\r\n" % size)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in answer


def test_a_body_without_a_length_is_413_as_soon_as_it_is_over_the_limit(convo: Running) -> None:
    address = urlsplit(convo.url)
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    with socket.create_connection((address.hostname or "", address.port or 0), 20) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        # Whoever reads to the end first never gets there; what is on its way fits into the sockets' buffers.
        with suppress(ConnectionError):
            while sent < 4 * RAW_LIMIT and not select.select([connection], [], [], 0)[0]:
                connection.sendall(chunk)
                sent += 65536
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in answer
    assert sent < 4 * RAW_LIMIT


def test_a_client_that_sends_far_too_much_gets_the_answer(client: httpx.Client) -> None:
    problem(post(client, bytes(2 * RAW_LIMIT)), 413, "too_large")


UNREAD = {
    "another type": lambda client: client.post(END, content=ids(), headers={"Content-Type": "text/plain"}),
    "too large": lambda client: client.post(END, content=bytes(RAW_LIMIT + 1), headers=JSON),
    "no such address": lambda client: client.post("/v1/nothing", content=ids(), headers=JSON),
    "no such method": lambda client: client.put(END, content=ids(), headers=JSON),
    "chunks": lambda client: client.put(END, content=iter([ids(), ids()]), headers=JSON),
    "no conversation to retry": lambda client: client.post("/v1/conversations/none/retry", content=ids()),
}


@pytest.mark.parametrize("name", UNREAD)
def test_after_an_answer_to_an_unread_body_the_client_goes_on(client: httpx.Client, name: str) -> None:
    for _ in range(10):
        assert UNREAD[name](client).status_code in (404, 405, 413, 415)  # kept or closed, as much as was here
        assert client.get("/livez").status_code == 200


def test_a_connection_that_is_asked_to_close_closes(convo: Running) -> None:
    address = urlsplit(convo.url)
    with socket.create_connection((address.hostname or "", address.port or 0), 20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200 ")
        assert connection.recv(1) == b""


def test_a_chunked_body_under_the_limit_is_taken(client: httpx.Client) -> None:
    body = json.dumps(ended(new_id())).encode()
    answer = client.post(END, content=(body[i : i + 50] for i in range(0, len(body), 50)), headers=JSON)
    assert answer.status_code == 202


# --- what is accepted, however odd


def odd(log: Sequence[object] | None = None, **fields: object) -> dict[str, Any]:
    return {**ended(new_id(), log, user_id=f"user-of-{new_id()}"), **fields}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"character": ("USER", "BOT")[number % 2], "content": text} for number, text in enumerate(texts)]


def raw(body: dict[str, Any], old: bytes, new: bytes) -> bytes:
    written = json.dumps(body, ensure_ascii=False).encode()
    assert old in written
    return written.replace(old, new)


EMOJI = "".join(chr(0x1F300 + (number * 7919) % 0x300) for number in range(4000))
ODD: dict[str, Any] = {
    "no log": {key: value for key, value in odd().items() if key != "conversation_log"},
    "null for a log": odd(log=None, conversation_logs=None),
    "an empty log": odd(log=[]),
    "10,000 empty turns": odd(log=[{"character": "USER"}] * 10_000),
    "10,000 turns": odd(log=said(*["Why do dogs bark?"] * 10_000)),
    "NUL characters": odd(log=said("\0", "I have a dog\0 named Rex\0. Why\0?\0", "\0\0")),
    "NUL in a turn's name": odd(log=[{"speaker": "user", "turn_id": "\0", "text": "hi"}]),
    "duplicate keys": raw(odd(), b'"user_id":', b'"user_id": "first-1", "user_id":'),
    "null for all that may be missing": odd(
        bot_name=None, bot_type=None, agent_tag=None, start_time=None, end_time=None
    ),
    "a turn of 400 digits": raw(odd(log=[{"speaker": "user", "turn_id": 7, "text": "hi"}]), b": 7", b": " + b"9" * 400),
    "a part with 1e999": raw(odd(log=[{"role": "user", "content": [{"type": "image", "n": 7}]}]), b": 7", b": 1e308"),
    "a part with 300 digits": raw(
        odd(log=[{"role": "user", "content": [{"type": "image", "n": 7}]}]), b": 7", b": " + b"9" * 300
    ),
    "content nested 30 deep": odd(
        log=[{"role": "user", "content": [{"type": "x", "y": json.loads("[" * 29 + "]" * 29)}]}]
    ),
    "99 levels in what is ignored": raw(odd(other=7), b": 7", b": " + b"[" * 99 + b"]" * 99),
    "huge numbers in what is ignored": raw(odd(other=7), b": 7", b': 1e99999, "more": ' + b"9" * 6000),
    "NUL in what is ignored": odd(**{"other\0": "\0"}),
    "the first of all times": odd(start_time="0001-01-01T00:00:00Z"),
    "the last of all times": odd(end_time="9999-12-31T23:59:59.999999Z"),
    "all the time there is": odd(start_time="0001-01-01T00:00:00Z", end_time="9999-12-31T23:59:59Z"),
    "a leap second": odd(start_time="2016-12-31T23:59:60Z"),
    "a start in the future": odd(start_time="2999-01-01T00:00:00Z"),
    "turns that go back in time": odd(
        log=[
            {"speaker": "user", "text": "b", "timestamp": "2026-03-02T09:00:00Z"},
            {"speaker": "pika", "text": "a", "timestamp": "2025-03-02T09:00:00+14:00"},
        ]
    ),
    "a megabyte of one word": odd(log=said("a" * MIB)),
    "a megabyte of questions": odd(log=said("why? " * (MIB // 5))),
    "a megabyte of spaces": odd(log=said(" " * MIB + "x")),
    "a megabyte of what is liked": odd(log=said("I like dogs and " * (MIB // 16))),
    "a dog with a very long name": odd(log=said(f"I have a dog named {EMOJI}. My name is {EMOJI}.", f"I like {EMOJI}")),
    "a dog with many names": odd(log=said(*[f"I have a dog named R{n}ex." for n in range(2000)])),
    "every plane of Unicode": odd(
        log=said("".join(chr(n * 0x11 + 1) for n in range(0xFFFF) if not 0xD800 <= n * 0x11 + 1 < 0xE000))
    ),
    "directions and joiners": odd(log=said("\u202eevil\u2066\u200d\ufeff\uffff why?")),
    "255 wide characters": {**odd(), "user_id": "😀" * 255, "bot_id": "龍" * 255, "conversation_id": "🐉" * 255},
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_accepted_and_gets_done(client: httpx.Client, name: str) -> None:
    answer = post(client, ODD[name])
    assert answer.status_code == 202, answer.text
    told = until_ended(client, answer.json()["links"]["self"])
    assert (told["state"], told["score"]["final"]) == ("done", True), told["last_error"]
    turns = 0
    parameters: dict[str, str] = {}
    while True:
        log = client.get(answer.json()["links"]["log"], params=parameters)
        assert log.status_code == 200
        turns += len(log.json()["turns"])
        if log.json()["next_cursor"] is None:
            break
        parameters = {"cursor": log.json()["next_cursor"]}
    assert turns == told["turns"]


IDS = (
    *("nguyễn văn a", "100%", "%2e%2e", "%00%ff", "a?b=c", "a#b", "...", "   ", "a+b c", "a;b,c", "\\..\\", "'\"<>"),
    *("日本語", "😀😀😀", "e\u0301e\u0301", "\u2028\u2029\u202e", "a%2Fb", "end", "log", "~._-", "[::1]", "@:&=$"),
)


@pytest.mark.parametrize("conversation_id", IDS)
def test_links_to_any_id_can_be_followed(client: httpx.Client, conversation_id: str) -> None:
    answer = post(client, ended(conversation_id, user_id=conversation_id))
    assert answer.status_code == 202, answer.text
    receipt = answer.json()
    assert receipt["links"]["self"] == f"/v1/conversations/{quote(conversation_id, safe='')}"
    assert answer.headers["location"] == receipt["links"]["self"]
    told = until_ended(client, receipt["links"]["self"])
    assert (told["conversation_id"], told["links"]) == (conversation_id, receipt["links"])
    assert client.get(receipt["links"]["log"]).json()["conversation_id"] == conversation_id
    user = f"/v1/users/{quote(conversation_id, safe='')}"
    assert client.get(f"{user}/relationship").json()["conversations"] == 1
    assert client.get(f"{user}/memories").json()["memories"][0]["conversation_id"] == conversation_id


@pytest.mark.parametrize(
    "fields",
    [
        item(character="NOBODY", content="hi"),
        item(speaker="nobody", text="hi"),
        item(content="hi"),
        item(character="USER", content=1),
        item(role="user", content="hi", timestamp="noon"),
    ],
)
def test_one_item_that_cannot_be_read_is_kept_and_listed(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = post(client, ended(new_id(), **fields))
    assert answer.status_code == 202
    assert [unread["path"] for unread in answer.json()["unread"]] == ["$.conversation_log[1]"]


# --- the receipt, and what comes again


def test_the_receipt(client: httpx.Client) -> None:
    conversation_id = new_id()
    answer = post(client, ended(conversation_id))
    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/json"
    assert "idempotent-replayed" not in answer.headers
    receipt = answer.json()
    assert receipt.keys() == {"conversation_id", "digest", "turns", "received_at", "links", "ignored", "unread"}
    assert (receipt["conversation_id"], receipt["turns"]) == (conversation_id, 3)
    assert re.fullmatch(r"2:[0-9a-f]{64}", receipt["digest"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", receipt["received_at"])
    link = f"/v1/conversations/{conversation_id}"
    assert receipt["links"] == {"self": link, "log": f"{link}/log"}
    assert answer.headers["location"] == link
    timing = r"read;dur=[\d.]+, decode;dur=[\d.]+, commit;dur=[\d.]+, total;dur=[\d.]+"
    assert re.fullmatch(timing, answer.headers["server-timing"])


def test_what_is_ignored_and_what_is_not_understood_stands_in_the_receipt_and_in_that_of_every_replay(
    client: httpx.Client,
) -> None:
    odd = [{"speaker": "narrator", "text": "hm"}, 3, {"role": "user", "content": "hi", "timestamp": "noon"}]
    body = ended(new_id(), mood=1)
    body["conversation_log"] += odd
    first, again = post(client, body), post(client, {**body, "mood": 2, "more": 3})
    receipt = first.json()
    assert (receipt["turns"], receipt["ignored"]) == (4, ["mood"])
    assert receipt["unread"] == [
        {"path": "$.conversation_log[3]", "fields": ["speaker", "text"]},
        {"path": "$.conversation_log[4]", "fields": []},
        {"path": "$.conversation_log[5]", "fields": ["timestamp"]},
    ]
    assert again.content == first.content


@pytest.mark.parametrize("form", [{}, {"indent": 3}, {"ensure_ascii": False}])
def test_the_log_is_read_back_as_it_was_sent(client: httpx.Client, form: dict[str, Any]) -> None:
    log = [{"role": "user", "content": "Chó ơi", "x": {"y": [1.50, None]}}, {"a": 1}]
    sent = json.dumps(log, **form)
    body = json.dumps(ended(new_id(), log=[])).replace('"conversation_log": []', f'"conversation_log": {sent}')
    link = post(client, body.encode()).headers["location"]
    assert client.get(f"{link}/log?as=sent").content == sent.encode()
    assert [turn["text"] for turn in client.get(f"{link}/log?as=turns").json()["turns"]] == ["Chó ơi"]
    problem(client.get(f"{link}/log?as=received"), 422, "invalid")


def replays(body: dict[str, Any]) -> dict[str, bytes]:
    """Return the same content in other words."""
    log = [dict(reversed(one.items())) for one in body["conversation_log"]]
    renamed = {key: value for key, value in body.items() if key != "conversation_log"}
    return {
        "the same bytes": json.dumps(body).encode(),
        "other key order": json.dumps(dict(reversed({**body, "conversation_log": log}.items()))).encode(),
        "other white space": json.dumps(body, indent=7).encode() + b"\n\t ",
        "other escapes": json.dumps(body, ensure_ascii=False).replace("H", "\\u0048").encode(),
        "the log's other name": json.dumps({**renamed, "conversation_logs": body["conversation_log"]}).encode(),
        "the log under both names": json.dumps({**body, "conversation_logs": body["conversation_log"]}).encode(),
        "other ignored fields": json.dumps({**body, "trace_id": new_id()}).encode(),
    }


@pytest.mark.parametrize("name", replays(ended("abc")))
def test_the_same_content_again_gets_the_very_same_receipt(client: httpx.Client, name: str) -> None:
    body = ended(new_id(), bot_name="Chó Nhà", start_time="2026-03-02T08:00:00Z")
    first = post(client, body)
    again = post(client, replays(body)[name])
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another user": lambda body: {**body, "user_id": "user-2"},
    "another time": lambda body: {**body, "start_time": "2026-03-02T08:00:01Z"},
    "a name set to null": lambda body: {**body, "bot_name": None},
    "a turn less": lambda body: {**body, "conversation_log": body["conversation_log"][:-1]},
    "a space more": lambda body: {
        **body,
        "conversation_log": [*body["conversation_log"], {"character": "BOT", "content": " "}],
    },
    "another order": lambda body: {**body, "conversation_log": body["conversation_log"][::-1]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_content_under_the_same_id_is_a_conflict(client: httpx.Client, name: str) -> None:
    body = ended(new_id())
    first = post(client, body)
    told = problem(post(client, CHANGES[name](body)), 409, "conflict")
    assert told["conversation_id"] == body["conversation_id"]
    again = post(client, body)
    assert again.content == first.content


def test_a_replay_after_a_restart_of_the_process_is_still_one(database: str, tmp_path: Path) -> None:
    body = ended("kept-1")
    with running(tmp_path, database) as convo, httpx.Client(base_url=convo.url, timeout=30) as client:
        first = post(client, body)
        done = until_ended(client, "/v1/conversations/kept-1")
        assert convo.stop() == 0
    with running(tmp_path, database) as convo, httpx.Client(base_url=convo.url, timeout=30) as client:
        again = post(client, body)
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert until_ended(client, "/v1/conversations/kept-1") == done
        problem(post(client, ended("kept-1", log=[])), 409, "conflict")
    assert query(database, "SELECT count(*) FROM every_job")[0][0] == 1


def test_what_has_expired_is_still_a_replay_and_is_410_where_it_is_read(database: str, tmp_path: Path) -> None:
    body = ended("kept-1", mood=1)
    with running(tmp_path, database) as convo, httpx.Client(base_url=convo.url, timeout=30) as client:
        first = post(client, body)
        assert "state" not in first.json()
        link = first.json()["links"]["self"]
        until_ended(client, link)
        # As a retention does.
        for table in ("conversation", "conversation_log", "job", "outcome", "part", "run"):
            query(database, f"DELETE FROM {table}")
        query(database, "UPDATE receipt SET state = 'x'")
        again = post(client, body)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
        assert again.json() == {**first.json(), "state": "expired"}
        problem(post(client, ended("kept-1", log=[])), 409, "conflict")
        for below in ("", "/log", "/log?as=sent", "/explain", "?wait=5"):
            assert problem(client.get(f"{link}{below}"), 410, "expired")["conversation_id"] == "kept-1"
        for below in ("/retry", "/acknowledge"):
            problem(client.post(f"{link}{below}"), 410, "expired")
        assert client.get("/v1/conversations").json()["conversations"] == []


async def test_500_copies_at_once_are_one_row_and_one_receipt(database: str, tmp_path: Path) -> None:
    body = json.dumps(ended("once-1")).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answers: list[bytes] = []
    async with serving(tmp_path, database) as url:
        address = urlsplit(url)

        async def send() -> None:
            async with await trio.open_tcp_stream(address.hostname or "", address.port or 0) as stream:
                await stream.send_all(request)
                got = b""
                while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < announced(got):
                    got += await stream.receive_some()
                answers.append(got)

        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(send)
    assert all(answer.startswith(b"HTTP/1.1 202 ") for answer in answers)
    assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers}) == 1
    assert sum(b"idempotent-replayed" not in answer.lower() for answer in answers) == 1
    counted = await trio.to_thread.run_sync(query, database, "SELECT count(*) FROM conversation")
    assert (len(answers), counted[0][0]) == (500, 1)


# --- what cannot be served now


QUICK = {"database.acquire_seconds": "0.3", "database.statement_seconds": "0.7", "database.connect_seconds": "0.3"}


async def end(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post(END, content=json.dumps(body), headers=JSON)


async def test_a_lock_that_does_not_go_away_is_503_inside_the_deadline(database: str, tmp_path: Path) -> None:
    body = ended("locked-1")
    async with serving(tmp_path, database, QUICK) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        async with holding(database, "LOCK TABLE conversation"):
            told = problem(await end(client, body), 503, "deadline_exceeded")
            assert told["conversation_id"] == "locked-1"
            assert "db.accept" in told["detail"]
        assert (await end(client, body)).status_code == 202


async def test_while_the_database_is_away_it_is_503_and_afterwards_as_if_nothing_was(
    postgres_url: str, database: str, tmp_path: Path
) -> None:
    bodies = [ended(f"away-{number}") for number in range(8)]
    async with serving(tmp_path, database, QUICK) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        first = await end(client, bodies[0])
        async with away(postgres_url, database):
            for body in bodies:
                told = problem(await end(client, body), 503, "database_unavailable")
                assert told["conversation_id"] == body["conversation_id"]
        again = [await end(client, body) for body in bodies]
        assert [answer.status_code for answer in again] == [202] * 8
        assert again[0].content == first.content
        # What was refused was not stored behind the client's back.
        assert ["idempotent-replayed" in answer.headers for answer in again] == [True] + [False] * 7


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "never speaks"])
async def test_a_database_that_was_never_reached_is_503(refuses: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with dead_socket(refuses=refuses) as dead:
        serves = serving(tmp_path, dead, QUICK, prepared=False)
        async with serves as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            problem(await end(client, ended("never-1")), 503, "unavailable")


# --- overload


def slow_body(url: str, name: str, wait_for: trio.Event) -> Callable[[], Any]:
    """Make a post whose head comes at once, and whose last byte only when it is let go."""

    async def post_it() -> bytes:
        parts = urlsplit(url)
        body = json.dumps(ended(name)).encode()
        stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 0)
        async with stream:
            fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            await stream.send_all(f"POST {END} HTTP/1.1\r\n{fields}\r\n".encode() + body[:-1])
            await wait_for.wait()
            await stream.send_all(body[-1:])
            return bytes(await stream.receive_some())

    return post_it


async def test_beyond_what_is_let_in_a_request_is_refused_before_its_body(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database, {"intake.in_flight_max": "2"}) as url, trio.open_nursery() as nursery:
        let_go = trio.Event()
        answers: list[int] = []

        async def hold(name: str) -> None:
            answers.append((await client.post(END, json=ended(name))).status_code)

        async with httpx.AsyncClient(base_url=url) as client:
            nursery.start_soon(_hold_until, database, let_go)
            nursery.start_soon(hold, "held-1")
            nursery.start_soon(hold, "held-2")
            with trio.fail_after(10):
                while "convo_intake_in_flight 2.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            refused = await trio.to_thread.run_sync(_head_only, url)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b'"code":"overloaded"' in refused
            assert re.search(rb"\r\nretry-after: [1-9]", refused, re.IGNORECASE)
            assert re.search(rb"\r\nconnection: close", refused, re.IGNORECASE)
            assert (await client.get("/v1/conversations")).status_code == 200  # reading has its own bounds
            let_go.set()
            with trio.fail_after(10):
                while len(answers) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert answers == [202, 202]
            assert (await client.post(END, json=ended("after-1"))).status_code == 202


async def _hold_until(database: str, let_go: trio.Event) -> None:
    async with holding(database, "LOCK TABLE conversation IN SHARE MODE"):
        await let_go.wait()


async def test_a_slow_body_takes_no_room_from_others(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database, {"intake.in_flight_max": "1"}) as url:
        let_go = trio.Event()
        answers: list[bytes] = []

        async def slowly(name: str) -> None:
            answers.append(await slow_body(url, name, let_go)())

        async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=url) as client:
            for number in range(5):
                nursery.start_soon(slowly, f"slow-{number}")
            with trio.fail_after(10):
                while 'convo_connections{phase="body"} 5.0' not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            for number in range(3):
                assert (await client.post(END, json=ended(f"quick-{number}"))).status_code == 202
            let_go.set()
        # One at a time is under way; the others are told so.
        assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 202", b"HTTP/1.1 503"}
        assert b"HTTP/1.1 202" in {answer[:12] for answer in answers}


def _head_only(url: str) -> bytes:
    """Announce a body and send none of it."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 10) as connection:
        head = (
            f"POST {END} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )
        connection.sendall(head.encode())
        return read_answer(connection)


async def test_a_client_over_its_limit_gets_a_retry_after(database: str, tmp_path: Path) -> None:
    limits = {"clients.requests_per_second": "0.01", "clients.requests_burst": "2"}
    async with serving(tmp_path, database, limits) as url, httpx.AsyncClient(base_url=url) as client:
        taken = await client.post(END, json=ended("share-1"))
        assert (taken.status_code, taken.headers["ratelimit"]) == (202, '"requests";r=1;t=100')
        assert taken.headers["ratelimit-policy"] == '"requests";q=2;w=200'
        assert (await client.get("/v1/conversations")).headers["ratelimit"].startswith('"requests";r=0;')
        refused = await client.post(END, json=ended("share-2"))
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        assert refused.headers["ratelimit"].startswith('"requests";r=0;')
        assert (await client.get("/livez")).status_code == 200


async def test_a_clients_own_budget_is_what_the_database_gets(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        async with holding(database, "LOCK TABLE conversation IN ACCESS EXCLUSIVE MODE"):
            answer = await client.get("/v1/conversations/some-1", headers={"Request-Timeout": "0.3"})
        assert (answer.status_code, answer.json()["code"]) == (503, "deadline_exceeded")
        assert answer.json()["detail"] == "the 0.3 s of web.request ran out in db.read"
        wrong = await client.get("/livez", headers={"Request-Timeout": "soon"})
        assert (wrong.status_code, wrong.json()["path"]) == (400, "Request-Timeout")
