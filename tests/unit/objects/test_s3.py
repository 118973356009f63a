from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from convo.errors import ConfigError, Refused
from convo.objects.s3 import Bucket, import_obstore
from convo.objects.signed_requests import SignedRequests
from convo.settings import LogsSettings
from tests.support.buckets import logs_settings

S3 = LogsSettings(**logs_settings("http://127.0.0.1:1", "logs"))


def test_a_process_whose_logs_are_in_postgresql_imports_no_library_for_objects() -> None:
    program = "import sys, convo.service, convo.commands.cli; assert not {'obstore', 'botocore'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("library", ["obstore", "botocore"])
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("convo.objects.signed_requests.find_spec", lambda name: None if name == library else name)
    with pytest.raises(Refused, match=rf"{library}.*pip install 'convo\[s3\]'"):
        Bucket(None, S3)  # type: ignore[arg-type]


async def test_the_library_is_imported_in_a_thread_so_that_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    imported_in: list[int] = []

    def importing(name: str) -> object:
        imported_in.append(threading.get_ident())
        return sys

    monkeypatch.setattr("convo.objects.s3.import_module", importing)
    await import_obstore()
    assert len(imported_in) == 1
    assert imported_in != [threading.get_ident()]


async def test_a_library_that_is_missing_is_refused_from_the_thread_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(Refused, match=r"pip install 'convo\[s3\]'"):
        await import_obstore()


def test_an_authority_that_cannot_be_read_is_a_wrong_setting(tmp_path_factory: pytest.TempPathFactory) -> None:
    import msgspec  # noqa: PLC0415

    with pytest.raises(ConfigError, match="ca_file"):
        Bucket(None, msgspec.structs.replace(S3, ca_file=str(tmp_path_factory.mktemp("ca") / "none.pem")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({}, "http://127.0.0.1:1/logs"),
        ({"path_style": False, "endpoint": "https://s3.example.com/"}, "https://logs.s3.example.com"),
        ({"endpoint": "", "region": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com/logs"),
    ],
)
def test_requests_go_where_the_bucket_is(more: dict[str, object], url: str) -> None:
    settings = LogsSettings(**{**logs_settings("http://127.0.0.1:1", "logs"), **more})
    assert SignedRequests(settings)._url == url
