"""The same requests through our connection and through h11: what was understood, and whether another may follow."""

from __future__ import annotations

import re
from collections.abc import Iterator

import h11
import trio
from msgspec import Struct

from convo.http.asgi import AsgiMessage
from tests.support.doors import Receive, Send, answer, opened, rest_of
from tests.support.requests_200 import NEXT, REQUESTS, Case

# A refusal to switch: after a 2xx to CONNECT the connection would be nobody's in h11.
STATUS = 404


class Asked(Struct, frozen=True):
    """One request as it was understood, and whether another one may follow it."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    follows: bool


class Verdict(Struct, frozen=True):
    """What became of all that was sent."""

    asked: list[Asked]
    told_to_go_on: bool
    refused: bool


# --- ours


class Witness:
    """An app that keeps what it is asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[AsgiMessage, bytes]] = []

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.seen.append((scope, body))
        await answer(send, b"", status=STATUS)


async def said_by_ours(case: Case, stream: trio.SocketStream, witness: Witness) -> Verdict:
    witness.seen.clear()
    got = bytearray()

    async def read() -> None:
        got.extend(await rest_of(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await _send(case, stream)
    heads = re.findall(rb"HTTP/1\.1 (\d+)[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n", bytes(got))
    final = [(int(status), fields) for status, fields in heads if int(status) >= 200]
    kept = [b"connection: close" not in fields for _, fields in final]
    asked = [
        _as_asked(scope, body, follows=follows) for (scope, body), follows in zip(witness.seen, kept, strict=False)
    ]
    return Verdict(asked, len(final) < len(heads), len(final) > len(asked))


async def _send(case: Case, stream: trio.SocketStream) -> None:
    try:
        for number, piece in enumerate(case.pieces):
            # So that what was sent before is looked at by itself.
            await trio.sleep(0.02 if number else 0)
            last = number == len(case.pieces) - 1
            await stream.send_all(piece + NEXT if last and not case.ends else piece)
        if case.ends:
            await stream.send_eof()
    except trio.BrokenResourceError:
        pass  # refused before it was all sent


def _as_asked(scope: AsgiMessage, body: bytes, *, follows: bool) -> Asked:
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return Asked(scope["method"], target, scope["http_version"], scope["headers"], body, follows)


# --- the reference's


def said_by_h11(case: Case) -> Verdict:
    reference = Reference()
    try:
        for number, piece in enumerate(case.pieces):
            last = number == len(case.pieces) - 1
            reference.take(piece + NEXT if last and not case.ends else piece)
    except h11.RemoteProtocolError:
        return Verdict(reference.asked, reference.told_to_go_on, refused=True)
    return Verdict(reference.asked, reference.told_to_go_on, refused=False)


class Reference:
    """A server that h11 reads for."""

    def __init__(self) -> None:
        self._reader = h11.Connection(h11.SERVER)
        self.asked: list[Asked] = []
        self.told_to_go_on = False
        self._request: h11.Request | None = None
        self._body = b""

    def take(self, data: bytes) -> None:
        """Take what came. Raises: h11.RemoteProtocolError."""
        # It takes no more than the end of the connection for nothing.
        if data and self._reader.their_state is not h11.MUST_CLOSE:
            self._reader.receive_data(data)
            for event in self._events():
                self._note(event)

    def _events(self) -> Iterator[h11.Event]:
        while True:
            event = self._reader.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                break
            assert not isinstance(event, type)
            yield event
            if self._reader.their_state is h11.MUST_CLOSE:
                return  # what comes now is nobody's
        if self._reader.they_are_waiting_for_100_continue:
            self.told_to_go_on = True
            self._reader.send(h11.InformationalResponse(status_code=100, headers=[]))

    def _note(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            self._request, self._body = event, b""
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif isinstance(event, h11.EndOfMessage):
            self._answer()

    def _answer(self) -> None:
        request = self._request
        assert request is not None
        self._reader.send(h11.Response(status_code=STATUS, headers=[(b"content-length", b"0")]))
        self._reader.send(h11.EndOfMessage())
        follows = self._reader.their_state is h11.DONE
        self.asked.append(
            Asked(
                request.method.decode(),
                request.target,
                request.http_version.decode(),
                list(request.headers),
                self._body,
                follows,
            )
        )
        if follows:
            self._reader.start_next_cycle()


# --- both


def test_there_are_two_hundred_and_more() -> None:
    assert len(REQUESTS) >= 200


async def test_ours_and_h11_agree_but_for_what_is_explained() -> None:
    unexplained, agreed = [], []
    witness = Witness()
    async with opened(witness, {"connection.head_seconds": "5"}) as served:
        for name, case in REQUESTS.items():
            async with await served.connect() as stream:
                ours = await said_by_ours(case, stream, witness)
            theirs = said_by_h11(case)
            if ours != theirs and not case.differs:
                unexplained.append(f"{name}:\n  ours {ours}\n  h11  {theirs}"[:900])
            if ours == theirs and case.differs:
                agreed.append(name)
    print(*unexplained, sep="\n")
    assert [one.partition(":\n")[0] for one in unexplained] == []
    assert agreed == [], "these are explained, and do not differ any more"
