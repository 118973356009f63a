from __future__ import annotations

import hashlib
import os
import ssl
from pathlib import Path

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from convo.errors import Refused
from convo.http.certificate import Certificate, read_certificate
from convo.settings import ServerSettings
from tests.support.certificates import der, made, openssl, trusting_all


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name, kind in (("one", "ec"), ("two", "ec"), ("three", "rsa")):
        made(folder, name, kind=kind)
    return folder


@pytest.fixture
def files(originals: Path, tmp_path: Path) -> Path:
    """A folder with the certificates, in which a test may change anything."""
    for file in originals.iterdir():
        copy = tmp_path / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o600)
    return tmp_path


def settings(folder: Path, cert: str = "one", key: str = "one") -> ServerSettings:
    return ServerSettings(certfile=str(folder / f"{cert}.pem"), keyfile=str(folder / f"{key}.key"))


def shown(certificate: Certificate) -> bytes | None:
    """Shake hands in memory; return the certificate that the client is shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificate.wrap_bio(to_server, to_client, server_side=True)
    client = trusting_all().wrap_bio(to_client, to_server)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert(binary_form=True)


def refusal(of: ServerSettings) -> str:
    with pytest.raises(Refused) as refused:
        read_certificate(of)
    return str(refused.value)


def test_a_certificate_with_its_key_is_shown(files: Path) -> None:
    for name in ("one", "three"):
        assert shown(Certificate(settings(files, name, name))) == der(files / f"{name}.pem")


# --- what is refused


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660, 0o722])
def test_a_key_that_others_can_write_is_refused(files: Path, mode: int) -> None:
    (files / "one.key").chmod(mode)
    said = refusal(settings(files))
    assert "one.key can be written by others" in said
    assert "chmod 600" in said


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o644])
def test_a_key_that_others_can_only_read_is_used(files: Path, mode: int) -> None:
    (files / "one.key").chmod(mode)
    read_certificate(settings(files))


def test_a_key_behind_a_link_is_judged_by_its_file(files: Path) -> None:
    (files / "link.key").symlink_to(files / "one.key")
    read_certificate(settings(files, key="link"))
    (files / "one.key").chmod(0o666)
    assert "written by others" in refusal(settings(files, key="link"))


def test_a_key_in_a_folder_where_everybody_may_replace_it_is_refused(files: Path) -> None:
    open_to_all = files / "open"
    (open_to_all / "deep").mkdir(parents=True)
    (files / "one.key").rename(open_to_all / "deep" / "one.key")
    of = ServerSettings(certfile=str(files / "one.pem"), keyfile=str(open_to_all / "deep" / "one.key"))
    open_to_all.chmod(0o777)
    assert "can be replaced by others" in refusal(of)
    open_to_all.chmod(0o1777)
    read_certificate(of)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_key_of_another_user_is_refused(files: Path) -> None:
    os.chown(files / "one.key", 12345, -1)
    assert "uid 12345" in refusal(settings(files))


@pytest.mark.parametrize("kind", ["pkcs8", "traditional"])
def test_an_encrypted_key_is_named_as_such_and_nobody_is_asked(files: Path, kind: str) -> None:
    form = ["pkcs8", "-topk8"] if kind == "pkcs8" else ["ec", "-aes128"]
    cipher = ["-passout", "pass:secret"]
    openssl(*form, "-in", str(files / "one.key"), "-out", str(files / "locked.key"), *cipher)
    (files / "locked.key").chmod(0o600)
    said = refusal(settings(files, key="locked"))
    assert "locked.key is encrypted" in said
    assert "openssl pkey" in said


@pytest.mark.parametrize("key", ["two", "three"])
def test_a_key_of_another_certificate_is_named_as_such(files: Path, key: str) -> None:
    said = refusal(settings(files, key=key))
    assert "do not fit" in said
    assert "one.pem" in said
    assert f"{key}.key" in said


def test_a_chain_in_the_wrong_order_is_one_that_does_not_fit(files: Path) -> None:
    chain = files / "chain.pem"
    chain.write_bytes((files / "two.pem").read_bytes() + (files / "one.pem").read_bytes())
    assert "must come first" in refusal(settings(files, cert="chain"))


@pytest.mark.parametrize("name", ["certfile", "keyfile"])
def test_a_file_that_is_missing_or_is_no_pem_is_named(files: Path, name: str) -> None:
    missing = structs.replace(settings(files), **{name: str(files / "none.pem")})
    assert f"server.{name} {files / 'none.pem'} cannot be read: No such file" in refusal(missing)
    nonsense = files / "nonsense.pem"
    nonsense.write_text("nonsense")
    nonsense.chmod(0o600)
    assert str(nonsense) in refusal(structs.replace(settings(files), **{name: str(nonsense)}))


# --- while serving


def replace(files: Path, name: str) -> None:
    for kind in ("pem", "key"):
        (files / f"one.{kind}").write_bytes((files / f"{name}.{kind}").read_bytes())


def test_new_connections_have_the_certificate_that_was_read_last(files: Path) -> None:
    certificate = Certificate(settings(files))
    replace(files, "three")
    assert shown(certificate) != der(files / "three.pem")
    with capture_logs() as lines:
        certificate.reload()
    assert shown(certificate) == der(files / "three.pem")
    fingerprint = hashlib.sha256(der(files / "three.pem")).hexdigest()
    assert [(line["event"], line["sha256"]) for line in lines] == [("certificate_reloaded", fingerprint)]


@pytest.mark.parametrize("broken", ["key", "nonsense", "missing", "writable"])
def test_a_broken_new_certificate_is_an_error_and_the_old_one_stays(files: Path, broken: str) -> None:
    old = der(files / "one.pem")
    certificate = Certificate(settings(files))
    replace(files, "two")
    if broken == "key":
        (files / "one.key").write_bytes((files / "three.key").read_bytes())
    elif broken == "nonsense":
        (files / "one.pem").write_text("nonsense")
    elif broken == "missing":
        (files / "one.pem").unlink()
    else:
        (files / "one.key").chmod(0o666)
    with capture_logs() as lines:
        certificate.reload()
    assert [(line["event"], line["log_level"]) for line in lines] == [("certificate_kept", "error")]
    assert shown(certificate) == old
