"""Sends alerts by e-mail, through the mail server of ``[smtp]``; it is imported where one is set.

Open it to change what an e-mail holds. Python's own client for SMTP blocks, so it works in a thread. A thread whose
deadline is over has its connection cut, so that it ends soon, whatever the server does.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.policy import SMTP as MAIL_LINES
from email.utils import format_datetime

import trio

from convo.alerts import formats
from convo.alerts.formats import Notification
from convo.errors import DeadlineExceeded, RemoteDenied, RemoteRefused, RemoteUnavailable
from convo.outbound import trusted_authorities
from convo.runtime.deadline import deadline
from convo.runtime.threads import run_in_thread
from convo.settings import SmtpSettings

# One that waits for a name server cannot be cut: others must still have a thread.
_THREADS = trio.CapacityLimiter(4)
_SUBJECT_CHARS = 200


class MailSink:
    """Sends alerts to some addresses, one e-mail to all of them.

    Raises:
        ConfigError: ``smtp.ca_file`` cannot be read.
    """

    def __init__(self, name: str, to: tuple[str, ...], settings: SmtpSettings, seconds: float) -> None:
        self.name = name
        self._to = to
        self._settings = settings
        self._seconds = seconds
        self._trusted = trusted_authorities("smtp", settings.ca_file, verify=settings.verify)

    async def send(self, message: Notification) -> None:
        """Send one message once, under the deadline ``alerts.deliver``.

        Raises:
            RemoteError: it is not taken; retryable where it may be a moment later.
        """
        mail = alert_mail(message, self._settings.sender, self._to)
        call = _SmtpCall(self.name, self._settings, self._seconds, self._trusted)
        try:
            with deadline("alerts.deliver", self._seconds):
                await run_in_thread(call.send, mail, self._to, limiter=_THREADS)
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, error.detail) from error
        finally:
            call.cut()


def alert_mail(message: Notification, sender: str, to: tuple[str, ...]) -> EmailMessage:
    """Write the e-mail of a message."""
    alert = message.alert
    mail = EmailMessage(policy=MAIL_LINES)
    subject = _storable(f"{alert.level} {alert.type} {message.change}: {alert.component}")
    # No text of ours breaks a line, but a header must not even where one does.
    mail["Subject"] = " ".join(subject.split())[:_SUBJECT_CHARS]
    mail["From"] = sender
    mail["To"] = ", ".join(to)
    mail["Date"] = format_datetime(message.at)
    # The same at every attempt: where the answer to one was lost, mail programs show it once.
    mail["Message-ID"] = f"<{message.id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(_storable("\n".join(formats.plain_lines(message)) + "\n"), cte="quoted-printable")
    return mail


def _storable(text: str) -> str:
    # Half of a surrogate pair can be in a text, and in no e-mail.
    return text.encode("utf-8", "replace").decode()


async def check_mail_server(settings: SmtpSettings, seconds: float) -> str:
    """Connect to the mail server, sign in and leave, under the deadline ``smtp.check``; return what was found.

    Raises:
        ConfigError: ``smtp.ca_file`` cannot be read.
        RemoteError, DeadlineExceeded: it cannot be used.
    """
    call = _SmtpCall("smtp", settings, seconds, trusted_authorities("smtp", settings.ca_file, verify=settings.verify))
    try:
        with deadline("smtp.check", seconds):
            await run_in_thread(call.look, limiter=_THREADS)
    finally:
        call.cut()
    return f"{settings.host}:{settings.port} takes e-mails, {'signed in' if settings.user else 'without a login'}"


class _SmtpCall:
    """One conversation with the mail server, in a thread."""

    def __init__(self, name: str, settings: SmtpSettings, seconds: float, trusted: ssl.SSLContext) -> None:
        self._name = name
        self._settings = settings
        self._seconds = seconds
        self._trusted = trusted
        self._smtp: smtplib.SMTP | None = None
        self._is_cut = False

    def send(self, mail: EmailMessage, to: tuple[str, ...]) -> None:
        with self._mapped(), self._connected() as smtp:
            refused = smtp.send_message(mail, self._settings.sender, to)
        if refused:
            raise RemoteRefused(self._name, f"{len(refused)} of {len(to)} recipients were refused")

    def look(self) -> None:
        with self._mapped(), self._connected() as smtp:
            smtp.noop()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except smtplib.SMTPAuthenticationError as error:
            raise RemoteDenied(self._name, f"the server refuses the login (answered {error.smtp_code})") from error
        except smtplib.SMTPRecipientsRefused as error:
            raise self._refusal(min(code for code, _ in error.recipients.values()), "every recipient") from error
        except smtplib.SMTPResponseException as error:
            raise self._refusal(error.smtp_code, "it") from error
        except smtplib.SMTPNotSupportedError as error:
            what = "STARTTLS, or no login" if self._settings.security == "starttls" else "a login"
            raise RemoteDenied(self._name, f"the server does not offer {what}") from error
        except ssl.SSLCertVerificationError as error:
            raise RemoteDenied(self._name, f"its certificate is not trusted ({error.verify_message})") from error
        except (smtplib.SMTPException, OSError) as error:
            raise RemoteUnavailable(self._name, f"the connection failed ({type(error).__name__})") from error
        except ValueError as error:
            # What socket and ssl raise of a name that none can have.
            raise RemoteDenied(self._name, f"smtp.host = {self._settings.host!r} cannot be used") from error

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        s = self._settings
        here = socket.gethostname()
        self._smtp = smtp = (
            smtplib.SMTP_SSL(local_hostname=here, timeout=self._seconds, context=self._trusted)
            if s.security == "tls"
            else smtplib.SMTP(local_hostname=here, timeout=self._seconds)
        )
        try:
            # Connected by its constructor it would be known too late to be cut; without it TLS does not know the name.
            setattr(smtp, "_host", s.host)  # noqa: B010  (it has no public name)
            smtp.connect(s.host, s.port)
            if self._is_cut:
                # It was given up while it had no connection yet: another try is under way, which sends the message.
                raise smtplib.SMTPServerDisconnected("given up")
            if s.security == "starttls":
                smtp.starttls(context=self._trusted)
            if s.user:
                smtp.login(s.user, s.password.reveal())
            yield smtp
            # Its answer is not waited for: the message is taken, and another try would send it twice.
            with suppress(smtplib.SMTPException, OSError):
                smtp.putcmd("QUIT")
        finally:
            smtp.close()

    def _refusal(self, code: int, what: str) -> RemoteRefused | RemoteUnavailable:
        detail = f"the server refuses {what} (answered {code})"
        return RemoteRefused(self._name, detail) if code >= 500 else RemoteUnavailable(self._name, detail)

    def cut(self) -> None:
        """Cut the connection, where there is one still, and begin none."""
        self._is_cut = True
        sock = None if self._smtp is None else self._smtp.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
