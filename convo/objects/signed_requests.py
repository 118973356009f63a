"""Requests to an S3 that obstore has no call for: whether a bucket keeps versions or locks objects, and older versions.

Open it to ask a bucket for something else. botocore signs them, and finds the keys of this machine's role where none
are set; it is imported with the first request.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

import trio

from convo.dependencies import OLD_LOGS
from convo.errors import Refused, RemoteDenied, RemoteGarbage
from convo.outbound import OutboundClient, RemoteAnswer, failure
from convo.runtime.deadline import deadline
from convo.settings import LogsSettings

_LOGIN_SECONDS = 10.0
_ROUNDS_MAX = 100
# What answers an S3 that does not know such a question at all.
_UNKNOWN = (405, 501)
_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class SignedRequests:
    """Sends them to the bucket of the settings, an async context manager.

    Raises:
        Refused: botocore is not installed.
    """

    def __init__(self, settings: LogsSettings) -> None:
        _require_botocore()
        self._settings = settings
        self._client = OutboundClient(
            "logs", seconds=settings.write_seconds, ca_file=settings.ca_file, verify=settings.verify
        )
        self._credentials: Any = None
        self._url = _url_of(settings)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)  # noqa: ASYNC102  (shields itself, with a bound)

    async def keeps_versions(self) -> bool:
        """Return whether the bucket keeps a version that is deleted or written over, or did so once.

        Raises:
            RemoteUnavailable, RemoteDenied: it cannot be asked.
        """
        answer = await self._send("GET", "", "versioning=")
        if answer.status in _UNKNOWN:
            return False
        return _text_of(_parsed(_good(answer)), "Status") in {"Enabled", "Suspended"}

    async def locks_objects(self) -> bool:
        """Return whether the bucket can keep objects from being deleted, by a lock or a legal hold.

        Raises:
            RemoteUnavailable, RemoteDenied: it cannot be asked.
        """
        answer = await self._send("GET", "", "object-lock=")
        if answer.status in (404, *_UNKNOWN):
            return False
        return _text_of(_parsed(_good(answer)), "ObjectLockEnabled") == "Enabled"

    async def erase_versions(self, key: str) -> None:
        """Delete every version of an object, and the marks that it was deleted.

        Raises:
            RemoteUnavailable, RemoteDenied: one of them cannot be deleted.
        """
        for _ in range(_ROUNDS_MAX):
            listed = await self._send("GET", "", f"prefix={quote(key, safe='')}&versions=")
            versions = list(_versions(_parsed(_good(listed)), key))
            if not versions:
                return
            for version in versions:
                answer = await self._send("DELETE", key, f"versionId={quote(version, safe='')}")
                if answer.status != 404:
                    _good(answer)
        raise RemoteGarbage(OLD_LOGS, f"{key} has versions still after {_ROUNDS_MAX} rounds of deleting them")

    async def _send(self, method: str, key: str, query: str) -> RemoteAnswer:
        url = f"{self._url}/{quote(key)}?{query}"
        auth, request = import_module("botocore.auth"), import_module("botocore.awsrequest")
        unsigned = request.AWSRequest(method=method, url=url, headers={"x-amz-content-sha256": _EMPTY_SHA256})
        auth.S3SigV4Auth(await self._login(), "s3", self._settings.region).add_auth(unsigned)
        headers = dict(unsigned.headers.items())
        if method == "DELETE":
            return await self._client.delete(url, headers)  # no deadline: the callers have one
        return await self._client.get(url, headers)  # no deadline: the callers have one

    async def _login(self) -> Any:
        if self._credentials is None:
            keys = self._settings.access_key_id.reveal(), self._settings.secret_access_key.reveal()
            if all(keys):
                self._credentials = import_module("botocore.credentials").Credentials(*keys)
            else:
                with deadline("s3.login", _LOGIN_SECONDS):
                    self._credentials = await trio.to_thread.run_sync(_of_machine, abandon_on_cancel=True)
        if hasattr(self._credentials, "refresh_needed") and self._credentials.refresh_needed():
            with deadline("s3.login", _LOGIN_SECONDS):
                await trio.to_thread.run_sync(self._credentials.get_frozen_credentials, abandon_on_cancel=True)
        return self._credentials


def _require_botocore() -> None:
    if find_spec("botocore") is None:
        raise Refused(
            "logs.store is s3, and botocore, which signs requests for older versions, is not installed: run"
            " `pip install 'convo[s3]'`"
        )


def _of_machine() -> Any:
    found = import_module("botocore.session").Session().get_credentials()
    if found is None:
        raise RemoteDenied(
            OLD_LOGS, "there are no keys: set CONVO_LOGS__ACCESS_KEY_ID and CONVO_LOGS__SECRET_ACCESS_KEY"
        )
    return found


def _url_of(settings: LogsSettings) -> str:
    endpoint = (settings.endpoint or f"https://s3.{settings.region}.amazonaws.com").rstrip("/")
    if settings.path_style:
        return f"{endpoint}/{settings.bucket}"
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{settings.bucket}.{parts.netloc}").geturl()


def _good(answer: RemoteAnswer) -> RemoteAnswer:
    if not answer.good:
        raise failure(OLD_LOGS, answer)
    return answer


def _parsed(answer: RemoteAnswer) -> ET.Element:
    try:
        # Python's expat bounds what entities grow to.
        return ET.fromstring(answer.body)  # noqa: S314
    except ET.ParseError as error:
        raise RemoteGarbage(OLD_LOGS, "its answer is no XML") from error


def _text_of(element: ET.Element, name: str) -> str:
    return next((one.text or "" for one in element if _name_of(one) == name), "")


def _versions(element: ET.Element, key: str) -> Iterator[str]:
    for one in element:
        if _name_of(one) in {"Version", "DeleteMarker"} and _text_of(one, "Key") == key:
            yield _text_of(one, "VersionId")


def _name_of(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
