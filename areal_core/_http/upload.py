"""The body of an httpx request on its way out through aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Any, Self

import httpx

# aiohttp waits for the peer only once more than this has been handed to it.
_PIECE_BYTES = 2**16


def body_of(request: httpx.Request, stall_s: float | None) -> bytes | Upload | None:
    """Return what aiohttp is to send for *request*: None, a small body as it is, or an `Upload`."""
    try:
        content = request.content
    except httpx.RequestNotRead:
        stream: Any = request.stream  # an async one: the client has seen to that
        return Upload(stream, stall_s)
    if len(content) > _PIECE_BYTES:
        return Upload(_Pieces(content), stall_s)
    return content or None


class Upload:
    """A body that takes time. A peer that takes none of it for *stall_s* seconds ends the request.

    aiohttp has no such limit: it would wait for a peer that stopped reading for ever. Use it as a
    context around the request; aiohttp iterates it in a task of its own.
    """

    def __init__(self, chunks: AsyncIterable[bytes], stall_s: float | None) -> None:
        self._chunks = aiter(chunks)
        self._stall_s = stall_s
        self._clock = asyncio.timeout(None)
        self._watching = False
        self._failure: Exception | None = None

    async def __aenter__(self) -> None:
        await self._clock.__aenter__()
        self._watching = True

    async def __aexit__(self, *raised: Any) -> None:
        self._watching = False  # the reply may come before the peer has taken everything
        await self._clock.__aexit__(*raised)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._expect_progress_within(None)
        try:
            chunk = await anext(self._chunks)
        except Exception as failure:
            if not isinstance(failure, StopAsyncIteration):
                self._failure = failure
            raise
        self._expect_progress_within(self._stall_s)
        return chunk

    def raise_cause(self, error: Exception) -> None:
        """Raise what lies behind *error*: the peer's refusal to take this body, or what the body raised."""
        if self._clock.expired():
            raise httpx.WriteTimeout(f"the peer took nothing for {self._stall_s} s") from error
        if self._failure is not None:
            raise self._failure

    def _expect_progress_within(self, seconds: float | None) -> None:
        if self._watching and self._stall_s is not None:
            now = asyncio.get_running_loop().time()
            self._clock.reschedule(None if seconds is None else now + seconds)


class _Pieces:
    """Bytes in pieces, so that progress can be seen."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._taken = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._taken >= len(self._content):
            raise StopAsyncIteration
        piece = self._content[self._taken : self._taken + _PIECE_BYTES]
        self._taken += _PIECE_BYTES
        return piece
