"""One HTTP exchange with one server. What comes back may be anything, of any size, or nothing.

    call -> request -> status -> body                            a control call, within its timeout
    open -> request -> status -> events of a stream, or body     a generation, within its caller's deadline

What goes wrong is raised as one of our errors, never with aiohttp's behind it: those hold the headers of
the request, and with them the API key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import aiohttp
from yarl import URL

from areal_core._engine.backend import HttpCall, ReplyError
from areal_core._engine.wire import complaint, connection_errors
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.api_key import ApiKey
from areal_core._engine.wire.body import Body, mark_used
from areal_core._engine.wire.server_sent import EventParser
from areal_core._http.pool import ConnectionPool
from areal_core.errors import (
    InferenceError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
)

_CHUNK_BYTES = 2**18  # read more at once, and aiohttp unpacks more at once

# A server that refuses may take its time over the words, and one that is done over the end of its stream.
_WORDS_S = 5.0
_END_S = 0.5
_END_BYTES = 2**16

# A server that ends an idle connection as the request leaves has done so before it saw the request. One
# that is silent for longer had it, and broke off.
_RACE_S = 1.0

_STALE_IN_A_ROW = 3  # connections; the next one is new, or the server does this for ever


class StaleConnectionError(ServerUnreachableError):
    """The server was ending an idle connection as the request left on it: it can be sent again at once."""


class Exchange:
    """Sends requests to one server. It holds nothing of a loop: any loop's session will do."""

    def __init__(self, address: Address, api_key: str | None, most_bytes: int) -> None:
        self.address = address
        self._key = ApiKey(api_key)
        self._most_bytes = most_bytes

    async def call(self, session: aiohttp.ClientSession, call: HttpCall, timeout_s: float) -> bytes:
        """Return the body of a successful reply, within *timeout_s* seconds.

        It is sent again at once when the server was ending the connection it left on: it must be a call
        that does no harm twice.

        Raises ServerStatusError, ServerUnreachableError or MalformedReplyError, and InferenceError for a
        request that cannot be made.
        """
        request = _Request(self, call)
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(_STALE_IN_A_ROW):
                    with contextlib.suppress(StaleConnectionError):
                        return await self._read(session, request)
                    request = _Request(self, call)
                return await self._read(session, request)
        except TimeoutError:
            pass
        raise request.unreachable(f"gave no whole answer within {timeout_s:g} s")

    def turn(self, session: aiohttp.ClientSession) -> asyncio.Semaphore:
        """Return what a `call` waits for, before its time begins, that comes in a crowd of its like.

        Waiting for a connection of our own is no fault of the server's. *session* is one for control calls.
        """
        pool = session.connector
        assert isinstance(pool, ConnectionPool)
        return pool.turns[self.address.name]

    async def _read(self, session: aiohttp.ClientSession, request: _Request) -> bytes:
        async with _Open(session, request, self._most_bytes) as reply:
            return await reply.read()

    def open(self, session: aiohttp.ClientSession, call: HttpCall) -> AbstractAsyncContextManager[Reply]:
        """Send *call* and give the `Reply` once its status says success; hang up when it is left early.

        There is no limit of time but the session's. Raises like `call`.
        """
        return _Open(session, _Request(self, call), self._most_bytes)

    def refused(self, call: HttpCall, error: ReplyError) -> MalformedReplyError | ServerStatusError:
        """Return our error for a reply to *call* that its reader refuses."""
        words = complaint.shortened(self._key.scrub(str(error)))
        if error.status is not None:
            return ServerStatusError(self.address.name, call.name, error.status, words)
        return MalformedReplyError(self.address.name, call.name, words)

    def __repr__(self) -> str:
        return f"<Exchange with {self.address}>"


class _Open:
    """Sends *request* on entry, and hangs up on exit, unless its reply has come in whole."""

    def __init__(self, session: aiohttp.ClientSession, request: _Request, most_bytes: int) -> None:
        self._session = session
        self._request = request
        self._most_bytes = most_bytes

    async def __aenter__(self) -> Reply:
        self._response = response = await self._request.send(self._session)
        try:
            if not 200 <= response.status < 300:
                raise await self._request.refusal(response)
            self._reply = Reply(self._request, response, self._most_bytes)
        except BaseException:
            self._close()
            raise
        return self._reply

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self._reply.end()
        finally:
            self._close()

    def _close(self) -> None:
        if self._response.connection is not None:  # else the reply is complete, and others may be using it
            self._request.hang_up()
        self._response.close()


class Reply:
    """A successful reply, as it comes in: iterate over its `events` if it is `streamed`, else `read` it."""

    def __init__(self, request: _Request, response: aiohttp.ClientResponse, most_bytes: int) -> None:
        self.streamed = response.content_type == "text/event-stream"
        """Whether it is a stream of events; a server may answer with one document though asked for one."""
        self.connection = request.connection
        """Stands for the connection: the same object, weakly referable, for as long as that lasts."""
        self._request = request
        self._content = response.content
        self._most_bytes = most_bytes
        self._announced_bytes = response.content_length or 0

    async def read(self) -> bytes:
        """Return the whole body. Raises MalformedReplyError (it is too large too), ServerUnreachableError."""
        body = bytearray()
        while max(len(body), self._announced_bytes) <= self._most_bytes:
            chunk = await self._chunk()
            if not chunk:
                return bytes(body)
            body += chunk
        raise self._request.malformed(f"it has more than {self._most_bytes} bytes")

    def events(self) -> AsyncIterator[bytes]:
        """Return what gives the data of each event as it comes. Raises like `read`."""
        return _Events(self._chunk, self._request, self._most_bytes)

    async def end(self) -> None:
        """Take what little is left, so that the connection can serve again; or give up soon."""
        if self._content.at_eof():
            return
        left = _END_BYTES
        try:
            async with asyncio.timeout(_END_S):
                while left > 0 and (chunk := await self._content.read(left)):
                    left -= len(chunk)
        except Exception:
            pass  # everything that was wanted is here

    async def _chunk(self) -> bytes:
        """Return some more of the body; nothing at its end."""
        try:
            return await self._content.read(_CHUNK_BYTES)
        except Exception as error:
            came_before = _unread(self._content, error)
            failure = self._request.failure(error, answering=True)
        if came_before:
            return came_before
        raise failure


class _Events:
    """The events of a stream. No generator: one that is left early is ended later, by a task of its own."""

    def __init__(self, chunk: Callable[[], Awaitable[bytes]], request: _Request, most_bytes: int) -> None:
        self._chunk = chunk
        self._request = request
        self._parser = EventParser(most_bytes)
        self._events: deque[bytes] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            chunk = await self._chunk()
            if not chunk:
                raise StopAsyncIteration
            try:
                self._events.extend(self._parser.feed(chunk))
            except ReplyError as error:
                raise self._request.malformed(str(error)) from None
        return self._events.popleft()


class _Unknown:
    """Stands for a connection that is not known, and is like no other."""


class _Request:
    """One request, and the errors that may come of it."""

    def __init__(self, exchange: Exchange, call: HttpCall) -> None:
        self._exchange = exchange
        self._call = call
        # One that sends nothing has a body too: what becomes of a request is seen there.
        self._body = Body(call.body or b"") if call.body is not None or call.method != "GET" else None
        self.connection: object = None

    async def send(self, session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        """Send it and return the reply, whose headers have come. Raises InferenceError."""
        exchange = self._exchange
        try:
            response = await session.request(
                self._call.method,
                exchange.address.url(self._call.path, self._call.params),
                data=self._body,
                # aiohttp asks for packed replies if nothing is said, and unpacking takes time.
                headers={"Accept-Encoding": "identity", **exchange._key.headers()},
                allow_redirects=False,
            )
        except Exception as error:
            failure = self.failure(error)
        except BaseException:
            self.hang_up()
            raise
        else:
            self.connection = self._connection(response)
            mark_used(self.connection)
            return response
        self.hang_up()
        raise failure

    def hang_up(self) -> None:
        """End the connection at once: what the server has not taken yet it must not get any more."""
        if self._body is not None and self._body.transport is not None:
            self._body.transport.abort()

    def _connection(self, response: aiohttp.ClientResponse) -> object:
        """Return the connection of *response*; aiohttp does not tell it any more when that is complete."""
        if self._body is not None and self._body.connection is not None:
            return self._body.connection
        return response.connection.protocol if response.connection is not None else _Unknown()

    async def refusal(self, response: aiohttp.ClientResponse) -> ServerStatusError:
        """Return the error for a reply whose status is not success."""
        if 300 <= response.status < 400:
            words = f"a redirect to {_origin(response.headers.get('Location', ''))}, which is not followed"
        else:
            words = complaint.words_of(await _error_body(response.content))
        words = complaint.shortened(self._exchange._key.scrub(words))
        wait_s = complaint.retry_after_s(response.headers)
        return ServerStatusError(self._server, self._call.name, response.status, words, wait_s)

    def malformed(self, problem: str) -> MalformedReplyError:
        """Return the error for a reply that its protocol does not allow."""
        return MalformedReplyError(self._server, self._call.name, problem)

    def unreachable(self, what: str, *, sent: bool | None = None) -> ServerUnreachableError:
        """Return the error for a server that did *what*. Where it is not known, it may have the request."""
        message = f"{self._server} {what} ({self._call.name})"
        return ServerUnreachableError(message, server=self._server, sent=self._sent if sent is None else sent)

    @property
    def _server(self) -> str:
        return self._exchange.address.name

    @property
    def _sent(self) -> bool:
        return self._body is None or self._body.left_at is not None

    def failure(self, error: Exception, *, answering: bool = False) -> InferenceError:
        """Return our error for *error* of aiohttp's."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return self.unreachable("cannot be reached: no connection in time", sent=False)
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
            failure = self.unreachable(f"cannot be reached: {self._why(error)}", sent=False)
            if isinstance(error, aiohttp.ClientConnectorDNSError):
                failure.unresolved = not connection_errors.is_no_such_name(error.os_error)
            else:
                failure.errno = connection_errors.errno_of(error)
            return failure
        if connection_errors.is_garbage(error):
            return self.malformed(self._why(error))
        if isinstance(error, TimeoutError):
            return self.unreachable("was silent for too long")
        if answering:
            return self.unreachable("hung up in the middle of its answer")
        if self._is_stale(error):
            message = f"{self._server} was ending the connection that was used ({self._call.name})"
            return StaleConnectionError(message, server=self._server, sent=self._sent)
        if isinstance(error, aiohttp.ClientError | OSError):
            return self.unreachable("hung up before it answered")
        return InferenceError(f"{self._server} could not be asked ({self._call.name}): {self._why(error)}")

    def _is_stale(self, error: Exception) -> bool:
        body = self._body
        if body is None or not body.reused or not isinstance(error, aiohttp.ClientConnectionError):
            return False
        if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
            return False  # an answer had begun
        return body.left_at is None or asyncio.get_running_loop().time() - body.left_at < _RACE_S

    def _why(self, error: Exception) -> str:
        """Return the reason *error* gives, without what the server sent: parts of the key may be in that."""
        cause: Any = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
        cause = cause or (isinstance(error, aiohttp.ClientPayloadError) and error.__cause__) or error
        text = getattr(cause, "strerror", None) or getattr(cause, "message", None) or str(cause)
        first = str(text).split("\n")[0].split(": b'")[0].split(': b"')[0].rstrip(":")
        return complaint.shortened(self._exchange._key.scrub(first[:300])) or type(error).__name__


def _origin(location: str) -> str:
    """Return where a redirect leads, without path and query: those may hold anything."""
    try:
        url = URL(location)
        return str(url.origin()) if url.absolute else "another path of the server" if location else "nowhere"
    except ValueError:
        return "no URL"


async def _error_body(content: aiohttp.StreamReader) -> bytes:
    """Return what a server says with an error, or as much of it as comes soon."""
    body = bytearray()
    try:
        async with asyncio.timeout(_WORDS_S):
            while len(body) <= complaint.MOST_BYTES and (chunk := await content.read(_CHUNK_BYTES)):
                body += chunk
    except Exception:
        pass  # the status counts
    return bytes(body)


def _unread(content: aiohttp.StreamReader, error: Exception) -> bytes:
    """Return what came in before *error*, which aiohttp would not give any more."""
    content.set_exception(None)  # type: ignore[arg-type]
    try:
        return content.read_nowait()
    except Exception:
        return b""
    finally:
        content.set_exception(error)
