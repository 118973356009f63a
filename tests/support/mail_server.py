"""A mail server for tests: it speaks SMTP on a real socket, keeps what it takes, and has the faults that it is told."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from typing import Literal, cast

import trio
from msgspec import Struct

MailFault = Literal[
    "", "hangs", "hangs_after_data", "drops_after_data", "busy", "refuses", "refuses_some", "drips", "no_starttls"
]


class TakenMail(Struct, frozen=True, kw_only=True):
    """One e-mail: from whom and to whom it was sent, by the envelope, whether encrypted, and signed in as whom."""

    sender: str
    to: tuple[str, ...]
    encrypted: bool
    user: str
    mail: EmailMessage

    @property
    def text(self) -> str:
        return cast("str", self.mail.get_content())


class MailServer:
    """The server; ``fault`` may be changed while it runs."""

    def __init__(self, trusted: ssl.SSLContext | None, *, tls: bool, password: str) -> None:
        self.taken: list[TakenMail] = []
        self.fault: MailFault = ""
        self.port = 0
        self.connections = 0
        self._context = trusted
        self._tls = tls
        self._password = password

    async def connection(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            await _Session(self, stream, self._context, tls=self._tls, password=self._password).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.connections -= 1


class _Session:
    def __init__(
        self, server: MailServer, stream: trio.abc.Stream, context: ssl.SSLContext | None, *, tls: bool, password: str
    ) -> None:
        self._server = server
        self._stream = stream
        self._context = context
        self._encrypted = False
        self._tls = tls
        self._password = password
        self._buffer = b""
        self._user = ""
        self._sender = ""
        self._to: list[str] = []

    async def run(self) -> None:
        if self._tls:
            await self._encrypt()
        fault = self._server.fault
        if fault == "hangs":
            await trio.sleep_forever()
        if fault == "drips":
            # A greeting without an end, each line of which comes in time.
            while True:
                await self._answer("220-not yet")
                await trio.sleep(0.05)
        await self._answer("220 mail ready")
        while line := await self._line():
            word, _, rest = line.partition(" ")
            if not await self._obey(word.upper(), rest.strip()):
                return

    async def _obey(self, word: str, rest: str) -> bool:
        match word:
            case "EHLO" | "HELO":
                offered = ["AUTH PLAIN", "8BITMIME"]
                if self._context and not self._encrypted and self._server.fault != "no_starttls":
                    offered.append("STARTTLS")
                await self._answer(
                    "\r\n".join(["250-mail", *(f"250-{one}" for one in offered[:-1]), f"250 {offered[-1]}"])
                )
            case "STARTTLS":
                await self._answer("220 go on")
                await self._encrypt()
            case "AUTH":
                _, self._user, password = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")
                await self._answer("235 welcome" if password == self._password else "535 wrong")
            case "MAIL":
                self._sender, self._to = _address(rest), []
                await self._answer("451 busy" if self._server.fault == "busy" else "250 ok")
            case "RCPT":
                some = self._server.fault == "refuses_some" and self._to
                if self._server.fault == "refuses" or some:
                    await self._answer("550 nobody here")
                else:
                    self._to.append(_address(rest))
                    await self._answer("250 ok")
            case "DATA":
                return await self._data()
            case "QUIT":
                await self._answer("221 bye")
                return False
            case _:
                await self._answer("250 ok")
        return True

    async def _data(self) -> bool:
        await self._answer("354 go on")
        lines: list[str] = []
        while (line := await self._line()) != ".":
            lines.append(line.removeprefix("."))
        match self._server.fault:
            case "hangs_after_data":
                await trio.sleep_forever()
            case "drops_after_data":
                return False
        mail = message_from_bytes("\r\n".join(lines).encode(), policy=default)
        self._server.taken.append(
            TakenMail(sender=self._sender, to=tuple(self._to), encrypted=self._encrypted, user=self._user, mail=mail)
        )
        await self._answer("250 taken")
        return True

    async def _encrypt(self) -> None:
        assert self._context is not None
        encrypted = trio.SSLStream(self._stream, self._context, server_side=True, https_compatible=True)
        await encrypted.do_handshake()
        self._stream, self._encrypted, self._buffer = encrypted, True, b""

    async def _answer(self, text: str) -> None:
        await self._stream.send_all(text.encode() + b"\r\n")

    async def _line(self) -> str:
        while b"\r\n" not in self._buffer:
            more = await self._stream.receive_some()
            if not more:
                raise trio.BrokenResourceError
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line.decode()


def _address(rest: str) -> str:
    return rest.partition("<")[2].partition(">")[0]


@asynccontextmanager
async def mail_server(
    context: ssl.SSLContext | None = None, *, tls: bool = False, password: str = ""
) -> AsyncIterator[MailServer]:
    """Run a mail server on a free port of 127.0.0.1; with ``context`` it offers STARTTLS or, with ``tls``, TLS."""
    server = MailServer(context, tls=tls, password=password)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, server.connection, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()
