"""Listens to what a server of the agent's own choice answers to its chat completions, and records it.

The server writes the chat as tokens itself, and has to say which: ``return_token_ids``, which vLLM has and
newer SGLangs. What the agent is told is passed on as it came.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from areal_core._agents import scope
from areal_core._agents.listening import Listener
from areal_core._agents.reply import RECORDED, error_body
from areal_core._agents.scope import Scope
from areal_core._engine.backend import ReplyError
from areal_core._engine.wire.decoding import encode
from areal_core._engine.wire.server_sent import EventParser
from areal_core.errors import MalformedReplyError

_MOST_BYTES = 256 * 2**20  # of a reply, or of one event: 32 000 tokens with log-probabilities take 3 MB
_ASKED_FOR = {"logprobs": True, "return_token_ids": True}


class ListeningTransport(httpx.AsyncBaseTransport):
    """Sends through *transport*. Outside of episodes it does nothing else."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; a reply without tokens is told as a failure with status 502."""
        here = scope.current.get()
        if here is None or request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            return await self._transport.handle_async_request(request)
        ear = _Ear(here, str(request.url.copy_with(query=None, userinfo=b"")))
        reply = await self._transport.handle_async_request(_asking_for_tokens(request, await request.aread()))
        if reply.status_code != httpx.codes.OK or any(name in reply.headers for name in RECORDED):
            return reply
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            headers = _without_length(reply.headers)
            return httpx.Response(200, headers=headers, stream=_Overheard(reply, ear))
        return await _overhear(reply, ear)

    async def aclose(self) -> None:
        """Close what it sends through."""
        await self._transport.aclose()


class _Ear:
    """Hears one reply."""

    def __init__(self, here: Scope, url: str) -> None:
        self._here = here
        self._url = url
        self._version = here.engine.get_version()
        self._listener = Listener(self._version, time.monotonic())
        self._parser = EventParser(_MOST_BYTES)

    def hear(self, document: bytes) -> None:
        """Take a whole reply, or the data of one event. Raises MalformedReplyError."""
        try:
            self._listener.take(document)
        except ReplyError as error:
            raise self._malformed(error) from None

    def hear_some(self, chunk: bytes) -> bool:
        """Take some of a stream; return whether that is all of it. Raises MalformedReplyError."""
        try:
            events = self._parser.feed(chunk)
        except ReplyError as error:
            raise self._malformed(error) from None
        for event in events:
            if event == b"[DONE]":
                return True
            self.hear(event)
        return False

    def record(self) -> None:
        """Record what was heard. Raises MalformedReplyError."""
        is_exact = self._here.engine.get_version() == self._version
        recording = self._here.recording
        taken = {call.id for call in recording.calls}
        try:
            for call in list(self._listener.calls(time.monotonic(), is_exact, taken)):
                recording.add(call)
        except ReplyError as error:
            raise self._malformed(error) from None

    def _malformed(self, error: ReplyError) -> MalformedReplyError:
        return MalformedReplyError(self._url, "POST", str(error))


class _Overheard(httpx.AsyncByteStream):
    """The body of a streamed reply, recorded when it is complete; one that is left early is not."""

    def __init__(self, reply: httpx.Response, ear: _Ear) -> None:
        self._reply = reply
        self._ear = ear

    async def __aiter__(self) -> AsyncIterator[bytes]:
        is_complete = False
        async for chunk in self._reply.aiter_bytes():
            if not is_complete and self._ear.hear_some(chunk):
                is_complete = True
                self._ear.record()
            yield chunk
        if not is_complete:  # there are servers that leave out the [DONE]
            self._ear.record()

    async def aclose(self) -> None:
        await self._reply.aclose()


async def _overhear(reply: httpx.Response, ear: _Ear) -> httpx.Response:
    body = bytearray()
    try:
        async for chunk in reply.aiter_bytes():
            body += chunk
            if len(body) > _MOST_BYTES:
                return _failure(f"the reply has more than {_MOST_BYTES} bytes")
        ear.hear(bytes(body))
        ear.record()
    except MalformedReplyError as error:
        return _failure(str(error))
    finally:
        await reply.aclose()
    return httpx.Response(200, headers=_without_length(reply.headers), content=bytes(body))


def _asking_for_tokens(request: httpx.Request, body: bytes) -> httpx.Request:
    """Return *request* with the wish for tokens in its body."""
    try:
        asked: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return request  # the server will say what is wrong with it
    if not isinstance(asked, dict):
        return request
    changed = encode({**asked, **_ASKED_FOR})
    headers = _without_length(request.headers)
    return httpx.Request(
        request.method, request.url, headers=headers, content=changed, extensions=request.extensions
    )


def _without_length(headers: httpx.Headers) -> list[tuple[bytes, bytes]]:
    """Return *headers* without what is no longer so of a body that was unpacked or changed."""
    changed = (b"content-length", b"content-encoding", b"transfer-encoding")
    return [(name, value) for name, value in headers.raw if name.lower() not in changed]


def _failure(text: str) -> httpx.Response:
    body = error_body(502, text)
    return httpx.Response(502, headers={"Content-Type": "application/json"}, content=body)
