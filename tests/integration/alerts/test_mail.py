from __future__ import annotations

import smtplib
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from convo.alerts import formats, mail
from convo.alerts.formats import Notification
from convo.alerts.mail import MailSink
from convo.alerts.rules import Alert, Evidence, condition
from convo.errors import ConfigError, DeadlineExceeded, RemoteDenied, RemoteError, RemoteRefused, RemoteUnavailable
from convo.settings import Secret, SmtpSettings
from tests.support.certificates import made
from tests.support.mail_server import MailFault, mail_server
from tests.support.making import AT

TO = ("anna@example.com", "ben@example.com")


def message(component: str = "jobs") -> Notification:
    evidence = Evidence(figures={"unreviewed": 2}, ids=("đêm",))
    alert = Alert(condition=condition("DEAD_LETTER", component, "there are “some”", evidence=evidence), since=0.0)
    view = formats.view(alert, raised_at=AT, ended_at=None, process="p", public_url="https://convo.example.com")
    return Notification(id="msg_1", change="raised", at=AT, alert=view)


def sink(port: int, seconds: float = 5.0, **smtp: Any) -> MailSink:
    usual = {"host": "localhost", "port": port, "security": "none", "sender": "convo@example.com"}
    return MailSink("email", TO, SmtpSettings(**{**usual, **smtp}), seconds)


async def test_an_alert_arrives_as_one_mail_to_all_with_what_to_do_and_its_handbook_page() -> None:
    async with mail_server() as server:
        await sink(server.port).send(message())
    (taken,) = server.taken
    assert (taken.sender, taken.to, taken.encrypted) == ("convo@example.com", TO, False)
    assert taken.mail["Subject"] == "CRITICAL DEAD_LETTER raised: jobs"
    assert taken.mail["To"] == "anna@example.com, ben@example.com"
    assert taken.mail["Message-ID"] == "<msg_1@example.com>"
    assert taken.mail["Auto-Submitted"] == "auto-generated"
    assert taken.text.splitlines() == [
        "CRITICAL DEAD_LETTER raised: jobs",
        f"there are “some” (since {AT:%Y-%m-%d %H:%M:%S}Z)",
        "unreviewed 2",
        "Do: convo dead, then convo retry ID or convo acknowledge ID.",
        "Handbook: https://convo.example.com/docs/alerts#dead_letter",
        "https://convo.example.com/v1/conversations/%C4%91%C3%AAm/explain",
    ]


async def test_a_component_cannot_add_a_header() -> None:
    async with mail_server() as server:
        await sink(server.port).send(message("jobs\r\nBcc: eve@example.com"))
    (taken,) = server.taken
    assert taken.mail["Bcc"] is None
    assert taken.mail["Subject"].endswith("jobs Bcc: eve@example.com")


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_an_encrypted_server_is_checked_against_the_authority_and_signed_in_to(
    tmp_path: Path, security: str
) -> None:
    cert, key = made(tmp_path, "mail")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    login: dict[str, Any] = {"user": "convo", "password": Secret("secret"), "security": security}
    async with mail_server(context, tls=security == "tls", password="secret") as server:
        await sink(server.port, ca_file=str(cert), **login).send(message())
        with pytest.raises(RemoteDenied, match="certificate is not trusted"):
            await sink(server.port, **login).send(message())
        await sink(server.port, verify=False, **login).send(message())
        with pytest.raises(RemoteDenied, match="refuses the login"):
            await sink(server.port, ca_file=str(cert), **(login | {"password": Secret("wrong")})).send(message())
    assert [(taken.encrypted, taken.user) for taken in server.taken] == [(True, "convo")] * 2


async def test_a_password_is_never_sent_where_the_server_offers_no_encryption() -> None:
    async with mail_server(password="secret") as server:
        with pytest.raises(RemoteDenied, match="STARTTLS, or no login"):
            await sink(server.port, security="starttls", user="convo", password=Secret("secret")).send(message())
    assert server.taken == []


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("hangs", RemoteUnavailable, "alerts.deliver"),
        ("hangs_after_data", RemoteUnavailable, "alerts.deliver"),
        ("drips", RemoteUnavailable, "alerts.deliver"),
        ("drops_after_data", RemoteUnavailable, "connection failed"),
        ("busy", RemoteUnavailable, "answered 451"),
        ("refuses", RemoteRefused, r"every recipient \(answered 550\)"),
        ("refuses_some", RemoteRefused, "1 of 2 recipients"),
    ],
)
async def test_a_fault_is_told_apart_by_whether_another_try_can_help(
    fault: MailFault, kind: type[RemoteError], words: str
) -> None:
    async with mail_server() as server:
        server.fault = fault
        with pytest.raises(kind, match=words):
            await sink(server.port, seconds=0.5).send(message())
        # A thread that was given up ends soon, because its connection is cut.
        with trio.fail_after(5):
            while mail._THREADS.borrowed_tokens:  # noqa: ASYNC110  (a thread rings no bell)
                await trio.sleep(0.01)


async def test_what_was_given_up_before_it_was_connected_sends_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    name_found = threading.Event()
    connect = smtplib.SMTP.connect

    def slowly(self: smtplib.SMTP, *given: Any, **named: Any) -> Any:
        name_found.wait(10)
        return connect(self, *given, **named)

    monkeypatch.setattr(smtplib.SMTP, "connect", slowly)
    async with mail_server() as server:
        with pytest.raises(RemoteUnavailable, match=r"alerts\.deliver"):
            await sink(server.port, seconds=0.2).send(message())
        name_found.set()
        with trio.fail_after(5):
            while mail._THREADS.borrowed_tokens:  # noqa: ASYNC110  (a thread rings no bell)
                await trio.sleep(0.01)
    assert server.taken == []


async def test_a_check_signs_in_and_sends_nothing() -> None:
    async with mail_server(password="secret") as server:
        login: dict[str, Any] = {"user": "convo", "password": Secret("secret")}
        settings = SmtpSettings(host="localhost", port=server.port, security="none", sender="c@example.com", **login)
        assert await mail.check_mail_server(settings, 5.0) == f"localhost:{server.port} takes e-mails, signed in"
        server.fault = "hangs"
        with pytest.raises(DeadlineExceeded, match=r"smtp\.check"):
            await mail.check_mail_server(settings, 0.3)
    assert server.taken == []


@pytest.mark.parametrize("host", ["a..b", ".example.com", "x" * 70])
async def test_a_name_that_no_server_can_have_is_a_fault_of_the_settings(host: str) -> None:
    with pytest.raises((RemoteDenied, RemoteUnavailable)):
        await sink(25, host=host).send(message())


async def test_nobody_listens() -> None:
    async with mail_server() as server:
        port = server.port
    with pytest.raises(RemoteUnavailable, match="connection failed"):
        await sink(port).send(message())


async def test_a_file_of_an_authority_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigError, match=r"smtp: ca_file"):
        sink(25, ca_file="/none.pem")
