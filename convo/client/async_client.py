"""``AsyncClient``: one server, called from Trio or asyncio.

Open it to change what a call does. Every call has a deadline, which closes the connection of an answer that is late;
every answer is read whole, so that its connection can be used again; no more requests are under way than there are
connections.
"""

from __future__ import annotations

import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import anyio
import httpx
import msgspec
from msgspec import Struct, structs

from convo.client import answers, lines
from convo.client.faults import ClientError, NotConvo, NotReached, ProblemError, TooLarge, fault_of
from convo.client.retrying import RETRYABLE, pause_seconds, retry_after_seconds

T = TypeVar("T")
Page = TypeVar("Page", answers.ConversationPage, answers.TurnPage, answers.BotPage, answers.MemoryPage)

Body = bytes | Mapping[str, Any] | Struct
"""The body of a conversation: JSON, or what becomes it. It is encoded once, so each attempt sends the same bytes."""

CALL_SECONDS = 60.0
_ATTEMPT_SECONDS = 20.0
# One request of the server's own waiting, and the pause where a server does not wait.
_WAIT_SECONDS = 8.0
_WAIT_PAUSE_SECONDS = 0.25
# A last look at what was found is given so long, though the time to wait is over.
_LOOK_SECONDS = 2.0
_CLOSE_SECONDS = 1.0
_JSON = {"content-type": "application/json"}
_LINES = {"content-type": lines.MEDIA}


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt of a call: its answer's status, None without one, and the seconds that it took.

    ``why`` is empty where it was answered for good; else it says what happened, and that it is tried again.
    """

    status: int | None
    seconds: float
    why: str = ""


class _Rows(AsyncIterator[T]):
    """Rows that come in portions; a generator that is left early would be collected at a time that nobody knows."""

    def __init__(self, more: Callable[[], Awaitable[Iterable[T] | None]]) -> None:
        self._more = more
        self._rows: deque[T] = deque()

    async def __anext__(self) -> T:
        while not self._rows:
            more = await self._more()
            if more is None:
                raise StopAsyncIteration
            self._rows.extend(more)
        return self._rows.popleft()


# no deadline: every call stands in scopes of anyio, because this package imports nothing of the server
class AsyncClient:
    """A client of one convo server, to be used in an ``async with`` block.

    ``call_seconds`` is the longest that one call takes, with all its attempts and the pauses between them.
    ``attempted`` is called after each attempt. ``transport`` is httpx's, for tests and for proxies.
    """

    def __init__(  # noqa: PLR0913  (the server, and how it is called)
        self,
        url: str,
        *,
        key: str = "",
        call_seconds: float = CALL_SECONDS,
        connections: int = 16,
        attempted: Callable[[Attempt], None] = lambda _: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url
        self._key = key
        self._call_seconds = call_seconds
        self._connections = connections
        self._attempted = attempted
        self._transport = transport
        self._http: httpx.AsyncClient | None = None
        self._limiter: anyio.CapacityLimiter | None = None

    async def __aenter__(self) -> Self:
        """Open the client; no connection is made yet.

        Raises:
            ClientError: the URL or the key cannot be used.
        """
        if not self._url.startswith(("http://", "https://")):
            raise ClientError(f"the URL {self._url} is neither http:// nor https://")
        # Our deadlines end a request; httpx's own limits only stand behind them.
        try:
            http = httpx.AsyncClient(
                base_url=self._url,
                headers={"authorization": f"Bearer {self._key}"} if self._key else {},
                limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
                timeout=httpx.Timeout(_ATTEMPT_SECONDS + 5),
                verify=_trusted(self._url),
                transport=self._transport,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ClientError(f"the URL {self._url} or the key cannot be used: {error}") from error
        # httpx loses the slot of a request that is cancelled while it waits for a connection: here none waits.
        self._limiter = anyio.CapacityLimiter(self._connections)
        self._http = await http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection, also when the block is cancelled."""
        http, self._http = self._http, None
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            if http is not None:
                await http.__aexit__(kind, error, trace)

    # --- what is sent

    async def post(self, body: Body) -> answers.Receipt:
        """Post a finished conversation, and return its receipt: then it is stored.

        Raises:
            ProblemError: it is refused; ``Conflict`` where its id belongs to other content.
            NotReached, Unavailable, TooManyRequests: the time of the call is over. It may be stored or not: post the
                same body again, which gets the same receipt.
            NotConvo: the answer is no receipt.
        """
        response = await self._call("POST", "/v1/conversations/end", content=encode(body), headers=_JSON)
        receipt = self._read(response, answers.Receipt)
        return structs.replace(receipt, replayed=response.headers.get("idempotent-replayed") == "true")

    def batch(self, bodies: Iterable[Body]) -> AsyncIterator[answers.Receipt | ProblemError]:
        """Post many conversations, as many in each request as it takes; yield what became of each, in order.

        A conversation that is refused is its ``ProblemError``, and harms no other. Those that can succeed later are
        sent again within the time of a call; what is then left is a ``ProblemError`` that is ``retryable``.

        Raises:
            ProblemError, NotReached, NotConvo: as ``post``, of a request as a whole. What was yielded stands.
        """
        groups = lines.groups(encode(body) for body in bodies)

        async def more() -> Iterable[answers.Receipt | ProblemError] | None:
            group = next(groups, None)
            return None if group is None else await self._batch(group)

        return _Rows(more)

    async def retry(self, conversation_id: str) -> None:
        """Make a dead letter ready again.

        Raises:
            ProblemError: it is no dead letter, or not known.
            NotReached: as ``post``.
        """
        await self._call("POST", f"{_path(conversation_id)}/retry")

    # --- what was found

    async def conversation(
        self, conversation_id: str, *, revision: int | None = None, cost: bool = False
    ) -> answers.Conversation:
        """Return a conversation and what was found in it so far: its newest revision, or another one.

        With ``cost`` it has what it has cost.

        Raises:
            NotFound, Expired, Erased: it is not stored.
            ProblemError, NotReached, NotConvo: as ``post``.
        """
        asked = {} if revision is None else {"revision": str(revision)}
        if cost:
            asked["cost"] = "1"
        return self._read(await self._call("GET", _path(conversation_id), params=asked), answers.Conversation)

    async def wait(self, conversation_id: str, seconds: float = CALL_SECONDS) -> answers.Conversation:
        """Wait until the analysis has ended, at most ``seconds``; return what was found by then (``ended`` says which).

        The server does the waiting. It is asked at least once.

        Raises:
            NotFound, Expired, Erased, ProblemError, NotReached, NotConvo: as ``conversation``.
        """
        until = anyio.current_time() + seconds
        while True:
            began = anyio.current_time()
            left = max(0.0, until - began)
            asked = {"wait": f"{min(left, _WAIT_SECONDS):.2f}"}
            within = min(self._call_seconds, left + _LOOK_SECONDS)
            response = await self._call("GET", _path(conversation_id), params=asked, seconds=within)
            found = self._read(response, answers.Conversation)
            if found.ended or not left:
                return found
            # A server that does not wait, or not for long, must not be asked without a pause.
            await anyio.sleep(max(0.0, began + _WAIT_PAUSE_SECONDS - anyio.current_time()))

    def conversations(
        self,
        *,
        user_id: str | None = None,
        user_prefix: str | None = None,
        bot_id: str | None = None,
        state: str | None = None,
    ) -> AsyncIterator[answers.ConversationSummary]:
        """Yield conversations, newest first, page by page; a filter that is None lets all through.

        ``user_prefix`` is the beginning of the ids of the users who are looked for.

        Raises:
            ProblemError, NotReached, NotConvo: as ``post``.
        """
        filters = {"user_id": user_id, "user_prefix": user_prefix, "bot_id": bot_id, "state": state}
        params = {name: value for name, value in filters.items() if value is not None}
        return self._rows("/v1/conversations", answers.ConversationPage, lambda page: page.conversations, params)

    def turns(self, conversation_id: str) -> AsyncIterator[answers.Turn]:
        """Yield the turns of a conversation in order, page by page.

        Raises:
            NotFound, Expired, Erased, ProblemError, NotReached, NotConvo: as ``conversation``.
        """
        return self._rows(f"{_path(conversation_id)}/log", answers.TurnPage, lambda page: page.turns)

    async def log_as_sent(self, conversation_id: str) -> bytes:
        """Return the log as it was sent, byte for byte, but for recordings.

        Raises:
            NotFound, Expired, Erased, ProblemError, NotReached: as ``conversation``.
        """
        return (await self._call("GET", f"{_path(conversation_id)}/log", params={"as": "sent"})).content

    async def relationship(self, user_id: str) -> answers.Relationship:
        """Return a user's score, its level and the newest emotion, over all bots.

        Raises:
            NotFound: nothing of this user was ever stored.
            ProblemError, NotReached, NotConvo: as ``post``.
        """
        response = await self._call("GET", f"{_user(user_id)}/relationship", params={"limit": "1"})
        return self._read(response, answers.Relationship)

    def bots(self, user_id: str) -> AsyncIterator[answers.BotRelationship]:
        """Yield a user's relationship with each bot, the latest first, page by page.

        Raises:
            NotFound, ProblemError, NotReached, NotConvo: as ``relationship``.
        """
        return self._rows(f"{_user(user_id)}/relationship", answers.BotPage, lambda page: page.bots)

    def memories(self, user_id: str) -> AsyncIterator[answers.Memory]:
        """Yield what is remembered about a user, newest first, page by page.

        Raises:
            NotFound, ProblemError, NotReached, NotConvo: as ``relationship``.
        """
        return self._rows(f"{_user(user_id)}/memories", answers.MemoryPage, lambda page: page.memories)

    # --- a call

    def _rows(
        self,
        path: str,
        kind: type[Page],
        rows_of: Callable[[Page], Iterable[T]],
        params: Mapping[str, str] | None = None,
    ) -> AsyncIterator[T]:
        asked, ended = dict(params or {}), False

        async def more() -> Iterable[T] | None:
            nonlocal ended
            if ended:
                return None
            page = self._read(await self._call("GET", path, params=asked), kind)
            ended = page.next_cursor in (None, asked.get("cursor"))
            asked["cursor"] = page.next_cursor or ""
            return rows_of(page)

        return _Rows(more)

    async def _batch(self, group: list[bytes]) -> list[answers.Receipt | ProblemError]:
        """Send one request after the other until each line has its final answer, or the time is over."""
        outcomes: dict[int, answers.Receipt | ProblemError] = {}
        until, attempt, asked = anyio.current_time() + self._call_seconds, 0, 0.0
        while left := [at for at in range(len(group)) if _is_open(outcomes.get(at))]:
            pause = pause_seconds(attempt, asked, random.random()) if attempt else 0.0
            if attempt and anyio.current_time() + pause >= until:
                break
            await anyio.sleep(pause)
            try:
                answered = await self._ask(b"\n".join(group[at] for at in left), until - anyio.current_time())
            except TooLarge as error:
                if len(left) > 1:
                    raise
                answered = [error]
            if len(answered) > len(left):
                raise self._not_convo(f"{len(answered)} answers to {len(left)} lines")
            # Where there are fewer, the rest was not read: it is sent again.
            outcomes.update(zip(left, answered, strict=False))
            attempt += 1
            refused = [one for one in answered if isinstance(one, ProblemError)]
            asked = max((one.retry_after_seconds or 0.0 for one in refused), default=0.0)
        if len(outcomes) < len(group):
            some = f"{len(outcomes)} of {len(group)} lines were answered in time"
            raise NotReached(f"{some} by {self._url}; send the others again", why=some)
        return [outcomes[at] for at in range(len(group))]

    async def _ask(self, content: bytes, seconds: float) -> list[answers.Receipt | ProblemError]:
        response = await self._call("POST", lines.PATH, content=content, headers=_LINES, seconds=seconds)
        try:
            return lines.read(response.content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._not_convo(error) from error

    async def _call(  # noqa: PLR0913  (a request)
        self,
        method: str,
        path: str,
        *,
        seconds: float | None = None,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request until it is answered, at most for ``seconds``; return a success, raise the rest."""
        seconds = self._call_seconds if seconds is None else seconds
        until, attempt, why = anyio.current_time() + seconds, 0, "it was still under way"
        with anyio.move_on_after(seconds):
            while True:
                attempt += 1
                began = anyio.current_time()
                response, why = await self._attempt(method, path, params=params, content=content, headers=headers)
                took = anyio.current_time() - began
                if response is not None and response.status_code not in RETRYABLE:
                    self._attempted(Attempt(status=response.status_code, seconds=took))
                    if response.is_success:
                        return response
                    raise _fault(response)
                self._attempted(
                    Attempt(status=None if response is None else response.status_code, seconds=took, why=why)
                )
                pause = pause_seconds(attempt, _asked(response), random.random())
                if anyio.current_time() + pause >= until:
                    if response is not None:
                        raise _fault(response)
                    break
                await anyio.sleep(pause)
        tries = f"{attempt} attempt" + "s" * (attempt > 1)
        raise NotReached(f"no answer from {self._url} within {seconds:g} s, in {tries}: {why}", why=f"{why}, {tries}")

    async def _attempt(self, method: str, path: str, **content: Any) -> tuple[httpx.Response | None, str]:
        """Send one request; return its answer, and why it does not count or is tried again."""
        if self._http is None or self._limiter is None:
            raise ClientError("this client is closed: use it inside its `with` block")
        async with self._limiter:
            try:
                with anyio.move_on_after(_ATTEMPT_SECONDS):
                    response = await self._http.request(method, path, **content)  # reads the whole answer
                    return response, _words(response)
            except (httpx.NetworkError, httpx.TimeoutException, httpx.ProxyError, httpx.RemoteProtocolError) as error:
                return None, type(error).__name__
            except httpx.HTTPError as error:
                raise ClientError(f"the request to {self._url} cannot be sent: {error}") from error
            return None, f"no answer within {_ATTEMPT_SECONDS:g} s"

    def _read(self, response: httpx.Response, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._not_convo(error) from error

    def _not_convo(self, why: object) -> NotConvo:
        return NotConvo(f"the server at {self._url} is not convo, or another version: {why}")


def encode(body: Body) -> bytes:
    """Return the JSON of a body; what is JSON already stays as it is."""
    return body if isinstance(body, bytes) else msgspec.json.encode(body)


def _trusted(url: str) -> ssl.SSLContext:
    # Reading the public authorities takes as long as a request: where none is asked for, nobody is trusted instead.
    return httpx.create_ssl_context() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _path(conversation_id: str) -> str:
    return f"/v1/conversations/{quote(conversation_id, safe='')}"


def _user(user_id: str) -> str:
    return f"/v1/users/{quote(user_id, safe='')}"


def _asked(response: httpx.Response | None) -> float | None:
    return None if response is None else retry_after_seconds(response.headers.get("retry-after"), datetime.now(UTC))


def _is_open(outcome: answers.Receipt | ProblemError | None) -> bool:
    return outcome is None or (isinstance(outcome, ProblemError) and outcome.retryable)


def _fault(response: httpx.Response) -> ProblemError:
    return fault_of(structs.replace(_problem(response), retry_after_seconds=_asked(response) or msgspec.UNSET))


def _problem(response: httpx.Response) -> answers.Problem:
    """Read a problem document; of any other answer its status says what there is to say."""
    try:
        problem = msgspec.json.decode(response.content, type=answers.Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = answers.Problem()
    return structs.replace(
        problem, status=response.status_code, detail=problem.detail or response.reason_phrase.lower()
    )


def _words(response: httpx.Response) -> str:
    return f"{response.status_code} {_problem(response).code or response.reason_phrase.lower()}".strip()
