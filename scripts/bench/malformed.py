"""Openings that no good client sends, and random mutations of those that good clients do.

The first three each end a process of hypercorn 0.18 on trio: an exception leaves the connection for the server's own
nursery (pgjones/hypercorn#225 is one of them).
"""

from __future__ import annotations

import json
import random

_HOST = b"Host: localhost\r\n"
_END = b"POST /v1/conversations/end HTTP/1.1\r\n" + _HOST + b"Content-Type: application/json\r\n"
_H2C = (
    b"GET / HTTP/1.1\r\n" + _HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: %s\r\n\r\n"
)
_WEBSOCKET = (
    b"GET / HTTP/1.1\r\n" + _HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

OPENINGS: dict[str, bytes] = {
    "h2c with settings that are no base64": _H2C % b"A",
    "h2c with a setting out of bounds": _H2C % b"AAIAAAAC",
    "websocket upgrade with bytes behind it": _WEBSOCKET + b"\x81\x85\x00\x00\x00\x00hello" * 3,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(32),
    "bare LF": b"GET / HTTP/1.1\n" + b"Host: localhost\n\n",
    "obs-fold": b"GET / HTTP/1.1\r\n" + _HOST + b"X-Folded: one\r\n two\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + _HOST + _HOST + b"\r\n",
    "length and chunked": _END
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "two lengths that differ": _END + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}abc",
    "negative length": _END + b"Content-Length: -1\r\n\r\n",
    "length that is no number": _END + b"Content-Length: 0x10\r\n\r\n",
    "length of 30 digits": _END + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "bad chunk size": _END + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk size past 64 bits": _END + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n{}",
    "chunk without its end": _END + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}X0\r\n\r\n",
    "HTTP/1.0 with chunked": _END.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n" + _HOST + b"X-Nul: a\x00b\r\n\r\n",
    "CR in a header": b"GET / HTTP/1.1\r\n" + _HOST + b"X-Cr: a\rb\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost : bench\r\n\r\n",
    "head of 1 MiB": b"GET / HTTP/1.1\r\n" + _HOST + b"X-Large: " + b"a" * 2**20 + b"\r\n\r\n",
    "target of 100 KB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + _HOST + b"\r\n",
    "10,000 headers": b"GET / HTTP/1.1\r\n" + _HOST + b"X: y\r\n" * 10_000 + b"\r\n",
    "random bytes": random.Random(4).randbytes(4096),
}


def _good() -> list[bytes]:
    log = [{"character": "USER", "content": "Why do dogs bark?"}, {"character": "BOT", "content": "To talk."}]
    ended = {"conversation_id": "mutated-1", "user_id": "user-1", "bot_id": "bench", "conversation_logs": log}
    body = json.dumps(ended).encode()
    sized = _END + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:50], body[50:]))
    get = b"GET /readyz HTTP/1.1\r\n" + _HOST + b"Accept: */*\r\n\r\n"
    return [
        sized,
        _END + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        _END + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        get + get + sized,
        _WEBSOCKET,
        _H2C % b"AAMAAABkAAQAAP__",
    ]


_GOOD = _good()
_TOKENS = (
    b"\r\n",
    b"\n",
    b"\x00",
    b":",
    b" ",
    b"chunked",
    b"-1",
    b"\xff\xfe",
    b"Content-Length: 7\r\n",
    b"close",
    b"0\r\n\r\n",
)


def mutation(number: int) -> bytes:
    """Make the request of this number, always the same: a good one with one to four things done to it."""
    chance = random.Random(number)
    request = bytearray(chance.choice(_GOOD))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(request) + 1)
        end = at + chance.randrange(1, 40)
        match chance.randrange(5):
            case 0:
                request[at : at + 1] = chance.randbytes(1)
            case 1:
                del request[at:end]
            case 2:
                request[at:at] = chance.choice(_TOKENS)
            case 3:
                request[at:at] = request[at:end]
            case _:
                del request[max(at, 10) :]
    return bytes(request)
