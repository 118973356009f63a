"""Makes certificates with openssl, and looks which one a server shows."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def made(folder: Path, name: str, *, kind: str = "ec") -> tuple[Path, Path]:
    """Return the files of a new certificate and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    new = ["-newkey", "rsa:2048"] if kind == "rsa" else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    named = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    openssl("req", "-x509", *new, "-nodes", "-days", "1", "-keyout", str(key), "-out", str(cert), *named)
    return cert, key


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def der(cert: Path) -> bytes:
    """Return a certificate as a server shows it."""
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


def trusting_all() -> ssl.SSLContext:
    """Return a client's context that looks at no certificate: the test does."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
