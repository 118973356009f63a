"""The TLS certificate: reads it with its key, explains what is wrong with them, and reads them again while serving.

Open it when convo refuses a certificate, or to change what TLS allows.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import threading
from pathlib import Path

from convo.errors import Refused
from convo.observe import log_records
from convo.settings import ServerSettings

# What OpenSSL calls it; the last where the key is of another kind, and its certificate is looked for in vain.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class _EncryptedKey(Exception):
    """A password was asked for."""


class Certificate:
    """What new connections shake hands with; it stands in the place of an ``SSLContext``.

    A context of its own is made for each reading, and replaces the last one only when it is complete: loaded into the
    one in use, a certificate whose key does not fit would leave connections with neither.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._reading = threading.Lock()
        self._context = read_certificate(settings)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> ssl.SSLObject:
        """Return the encryption of one connection, with the certificate that was read last."""
        return self._context.wrap_bio(
            incoming, outgoing, server_side=server_side, server_hostname=server_hostname
        )  # fmt: skip

    def reload_soon(self) -> None:
        """Read the files again in a thread: the loop must not wait for a file system that hangs."""
        threading.Thread(target=self.reload, name="certificate", daemon=True).start()

    def reload(self) -> None:
        """Read the files again; log an error and keep the present certificate if they cannot be used."""
        with self._reading:
            try:
                self._context = read_certificate(self._settings)
                found = _fingerprint(self._settings.certfile)
            except (Refused, OSError, ValueError) as error:
                log_records.certificate_kept(reason=str(error))
                return
        log_records.certificate_reloaded(certfile=self._settings.certfile, sha256=found)


def _fingerprint(certfile: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(_first(Path(certfile).read_text("ascii", "replace")))).hexdigest()


def _first(chain: str) -> str:
    begin, end = ssl.PEM_HEADER, ssl.PEM_FOOTER
    return f"{begin}{chain.partition(begin)[2].partition(end)[0]}{end}"


def read_certificate(settings: ServerSettings) -> ssl.SSLContext:
    """Read ``server.certfile`` and ``server.keyfile``; return the context of connections.

    Raises:
        Refused: a file cannot be read, others can write the key, it is encrypted, or it is not the certificate's.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    # A client could otherwise make us shake hands again and again on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    for name in ("certfile", "keyfile"):
        _check_readable(name, getattr(settings, name))
    _check_writers(Path(settings.keyfile))
    try:
        context.load_cert_chain(settings.certfile, settings.keyfile, password=_refuse_password)
    except _EncryptedKey:
        raise Refused(
            f"server.keyfile {settings.keyfile} is encrypted, and convo asks nobody for its password: decrypt it with"
            f" `openssl pkey -in {settings.keyfile} -out FILE`, and keep FILE readable by convo's user only"
        ) from None
    except OSError as error:
        raise Refused(_unusable(settings, error)) from error
    return context


def _refuse_password() -> str:
    # Without this, OpenSSL would ask at the terminal and wait for ever.
    raise _EncryptedKey


def _unusable(settings: ServerSettings, error: OSError) -> str:
    files = f"server.certfile {settings.certfile} and server.keyfile {settings.keyfile}"
    if isinstance(error, ssl.SSLError) and error.reason in _MISMATCHES:
        return (
            f"{files} do not fit: the key is not that of the first certificate in the file; the server's own"
            " certificate must come first, then the chain"
        )
    return f"{files} cannot be used: {error}; name a PEM file with the certificate chain and one with its key"


def _check_readable(name: str, file: str) -> None:
    try:
        Path(file).read_bytes()
    except OSError as error:
        raise Refused(f"server.{name} {file} cannot be read: {error.strerror}") from error


def _check_writers(keyfile: Path) -> None:
    """Check that only root and the user of this process can change or replace the key."""
    found = keyfile.resolve()
    status = found.stat()
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(
            f"server.keyfile {keyfile} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}): whoever"
            f" changes it can read all traffic. Run `chmod 600 {keyfile}`, and make a new key if somebody may have"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise Refused(
            f"server.keyfile {keyfile} belongs to another user (uid {status.st_uid}), who can write it; give it to"
            f" root or to convo's user (uid {os.geteuid()})"
        )
    for folder in found.parents:
        mode = folder.stat().st_mode
        # In a folder with the sticky bit, like /tmp, only the owner of a file can replace it.
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise Refused(
                f"server.keyfile {keyfile} can be replaced by others: the folder {folder} is writable for everybody"
                f" (mode {stat.S_IMODE(mode):04o}). Run `chmod o-w {folder}`"
            )
