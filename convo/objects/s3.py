"""The bucket that old logs lie in: how convo writes, reads, lists and deletes objects of an S3.

Open it to change how convo speaks to an S3. Which logs go into which object is decided in ``packing``. obstore does the
talking, and is imported before a bucket is opened, so a process whose logs are in PostgreSQL needs none. What obstore
does not know, older versions above all, stands in ``signed_requests``.

It tries nothing again and opens no deadline: its callers do, by ``Dependency.call``. obstore's own retries are off, and
its time limits are looser than the callers' deadlines.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec import Struct

from convo.dependencies import OLD_LOGS
from convo.errors import ConfigError, ConvoError, DatabaseUnavailable, Refused, RemoteDenied, RemoteUnavailable
from convo.objects.signed_requests import SignedRequests
from convo.resilience.dependency import Dependency
from convo.runtime import threads
from convo.runtime.bridge import Bridge
from convo.runtime.deadline import deadline
from convo.settings import LogsSettings, RemoteSettings

T = TypeVar("T")

_BACKSTOP = 2.0
_CONNECT_SECONDS = 2.0
_IMPORT_SECONDS = 60.0
# An S3 says in its answers what is wrong, in a word: shown, and never compared.
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")


class ObjectMissing(ConvoError):
    """The bucket answers, and has no object of this key."""

    code = "object_missing"
    title = "An object of logs is not there"


class ListedObject(Struct, frozen=True, kw_only=True):
    """An object as the bucket lists it."""

    key: str
    bytes: int


class ListedFolder(Struct, frozen=True, kw_only=True):
    """What is in a folder of the bucket; the names of its folders end with a stroke."""

    objects: Sequence[ListedObject]
    folders: Sequence[str]


class Bucket:
    """The bucket of the settings, an async context manager.

    Raises:
        Refused: a library that it needs is not installed.
        ConfigError: ``logs.ca_file`` cannot be read.
    """

    def __init__(self, bridge: Bridge, settings: LogsSettings) -> None:
        self._bridge = bridge
        self._library = _obstore()
        self._errors = import_module("obstore.exceptions")
        self._store = _store_of(settings)
        self._signed = SignedRequests(settings)
        self.address = f"{settings.endpoint or 'S3'}/{settings.bucket}"
        """Where it is, for a person."""

    async def __aenter__(self) -> Self:
        await self._signed.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._signed.__aexit__(kind, error, trace)  # noqa: ASYNC102  (shields itself, with a bound)

    async def put(self, key: str, body: bytes) -> None:
        """Write an object whose key nobody else can have; one that is there was written by an earlier attempt.

        Raises:
            RemoteUnavailable: the answer was lost, or is a refusal for now: whether it is there is not known.
            RemoteDenied: a key, a right or the bucket is wrong.
        """
        # Of one that is written in parts, nobody would ask whether it is there.
        try:
            await self._call(self._library.put_async, key, body, mode="create", use_multipart=False)
        except self._errors.AlreadyExistsError:
            pass
        except FileNotFoundError as error:
            raise self._denied("there is no such bucket") from error

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read a part of an object.

        Raises:
            ObjectMissing: there is none.
            RemoteUnavailable, RemoteDenied: as ``put``.
        """
        return bytes(await self._found(key, self._library.get_range_async, key, start=offset, length=length))

    async def list_folder(self, folder: str) -> ListedFolder:
        """List a folder: what is in it, and the folders in it, without what is in those.

        Raises:
            RemoteUnavailable, RemoteDenied: as ``put``.
        """
        # Not `obstore.list`: where its stream is cancelled, it is freed outside obstore's own threads while a request
        # is under way. That panics, and no request succeeds any more (seen with obstore 0.12.1).
        try:
            found = await self._call(self._library.list_with_delimiter_async, folder)
        except FileNotFoundError as error:
            raise self._denied("there is no such bucket") from error
        return ListedFolder(
            objects=[ListedObject(key=row["path"], bytes=row["size"]) for row in found["objects"]],
            folders=[f"{one.rstrip('/')}/" for one in found["common_prefixes"]],
        )

    async def erase(self, key: str) -> None:
        """Delete an object with all versions that the bucket keeps of it; one that is not there is no failure.

        Raises:
            RemoteUnavailable, RemoteDenied: as ``put``.
        """
        if await self._signed.keeps_versions():
            await self._signed.erase_versions(key)
        else:
            with suppress(FileNotFoundError):
                await self._call(self._library.delete_async, key)

    async def inspect(self) -> str:
        """Return what the bucket is like, in words.

        Raises:
            Refused: the bucket keeps objects from being deleted.
            RemoteUnavailable, RemoteDenied: as ``put``.
        """
        if await self._signed.locks_objects():
            raise Refused(
                f"the bucket {self.address} has object lock, under which nothing in it can be erased for good: give"
                " logs.bucket one without"
            )
        versions = "with" if await self._signed.keeps_versions() else "without"
        await self.list_folder("convo-check")
        return f"{self.address}, {versions} older versions"

    async def _found(self, key: str, function: Callable[..., Awaitable[T]], *args: object, **named: object) -> T:
        try:
            return await self._call(function, *args, **named)
        except FileNotFoundError as error:
            # The same for a bucket that is gone: that one cannot be listed.
            await self.list_folder("convo-check")
            raise ObjectMissing(f"the object {key} is not in the bucket {self.address}") from error

    async def _call(self, function: Callable[..., Awaitable[T]], *args: object, **named: object) -> T:
        async def unit() -> T:
            return await function(self._store, *args, **named)

        known = self._errors
        try:
            return await self._bridge.cross(unit)  # no deadline: the callers have one
        except (FileNotFoundError, known.AlreadyExistsError):
            raise
        except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
            raise self._denied(_code_in(error)) from error
        except (known.BaseError, OSError) as error:
            raise RemoteUnavailable(OLD_LOGS, f"{self.address}: {_code_in(error)}") from error
        except DatabaseUnavailable as error:  # the crossing's word for a library that cancels its own futures
            raise RemoteUnavailable(OLD_LOGS, "the connection was closed") from error

    def _denied(self, words: str) -> RemoteDenied:
        return RemoteDenied(OLD_LOGS, f"{self.address} refuses convo: {words}; see the keys, the bucket and its rights")


def dependency_of_reads(settings: LogsSettings) -> Dependency:
    """Return the breaker, bulkhead and budget of reading single logs."""
    return Dependency(OLD_LOGS, _rules(settings, settings.attempt_seconds, settings.concurrency))


def dependency_of_packing(settings: LogsSettings) -> Dependency:
    """Return the breaker, bulkhead and budget of all that writes: no read ever waits for it."""
    return Dependency("s3_pack", _rules(settings, settings.write_seconds, 2))


def _rules(settings: LogsSettings, attempt_seconds: float, concurrency: int) -> RemoteSettings:
    return RemoteSettings(
        attempt_seconds=attempt_seconds,
        attempts=settings.attempts,
        backoff_seconds=settings.backoff_seconds,
        backoff_max_seconds=settings.backoff_seconds,
        concurrency=concurrency,
        breaker_failures=settings.breaker_failures,
        breaker_open_seconds=settings.breaker_open_seconds,
    )


def _store_of(settings: LogsSettings) -> Any:
    longest = timedelta(seconds=_BACKSTOP * max(settings.attempt_seconds, settings.write_seconds))
    client: dict[str, Any] = {
        "allow_http": settings.endpoint.startswith("http:"),
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "timeout": longest,
        "allow_invalid_certificates": not settings.verify,
    }
    if settings.ca_file:
        client["root_certificate"] = _certificate(settings.ca_file)
    config: dict[str, Any] = {
        "region": settings.region,
        "virtual_hosted_style_request": not settings.path_style,
        **({"endpoint": settings.endpoint} if settings.endpoint else {}),
    }
    if settings.access_key_id:
        config["access_key_id"] = settings.access_key_id.reveal()
        config["secret_access_key"] = settings.secret_access_key.reveal()
    never = {"max_retries": 0, "retry_timeout": longest}
    try:
        store = import_module("obstore.store").S3Store
        return store(settings.bucket, client_options=client, retry_config=never, **config)
    except ValueError as error:
        raise ConfigError(f"[logs] cannot be used: {error}") from error


def _certificate(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"logs.ca_file = {file!r} cannot be read: {error.strerror}") from error


def _code_in(error: BaseException) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else type(error).__name__


async def import_obstore() -> None:
    """Import the library in a thread: the first import takes about a second, and the loop must not wait for it.

    Raises:
        Refused: it is not installed.
    """
    with deadline("s3.library", _IMPORT_SECONDS):
        await threads.run_in_thread(_obstore, limiter=threads.JOBS)


def _obstore() -> Any:
    try:
        return import_module("obstore")
    except ModuleNotFoundError:
        raise Refused(
            "logs.store is s3, and obstore, which convo speaks to an S3 with, is not installed: run"
            " `pip install 'convo[s3]'` (scripts/serve installs it by itself), or set logs.store = postgres"
        ) from None
