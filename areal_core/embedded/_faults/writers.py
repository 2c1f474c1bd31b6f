"""Between aiohttp and the connection: replies that break off, and streams spoilt on their way."""

from __future__ import annotations

import socket
import struct
from typing import Any

from aiohttp import ClientConnectionResetError, web
from aiohttp.abc import AbstractStreamWriter

from areal_core.embedded._fault_script import Malformed
from areal_core.embedded._faults.bodies import spoil_events


def hang_up(request: web.Request, reset: bool) -> None:
    """Close the connection of *request* after what was written, or at once by a *reset*."""
    transport = request.transport
    if transport is None:
        return
    if reset:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


class _Through(AbstractStreamWriter):
    """Pass everything on to the writer of *request*, whose place it takes."""

    def __init__(self, request: web.Request) -> None:
        self._inner: Any = request.writer
        # The response takes its writer from here, and nothing public replaces it.
        request._payload_writer = self

    @property
    def length(self) -> int | None:
        """What is left of the Content-Length; None without one."""
        return self._inner.length  # type: ignore[no-any-return]

    @length.setter
    def length(self, value: int | None) -> None:
        self._inner.length = value

    @property
    def output_size(self) -> int:  # type: ignore[override]
        """The bytes written."""
        return self._inner.output_size  # type: ignore[no-any-return]

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        await self._inner.write(chunk)

    async def write_eof(self, chunk: bytes = b"") -> None:
        await self._inner.write_eof(chunk)

    async def drain(self) -> None:
        await self._inner.drain()

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        self._inner.enable_compression(encoding, strategy)

    def enable_chunking(self) -> None:
        self._inner.enable_chunking()

    async def write_headers(self, status_line: str, headers: Any) -> None:
        await self._inner.write_headers(status_line, headers)

    def send_headers(self) -> None:
        self._inner.send_headers()


class CutWriter(_Through):
    """Hang up after *size* bytes of the body, one less than there are at most; 0 sends no head either."""

    def __init__(self, request: web.Request, size: int, reset: bool) -> None:
        super().__init__(request)
        self._request = request
        self._size = size
        self._left = size
        self._reset = reset

    async def write_headers(self, status_line: str, headers: Any) -> None:
        if self._size == 0:
            self._cut()
        await super().write_headers(status_line, headers)

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if len(chunk) < self._left:
            self._left -= len(chunk)
            await super().write(chunk)
            return
        await super().write(chunk[: self._left])
        self._cut()

    async def write_eof(self, chunk: bytes = b"") -> None:
        if chunk:
            await super().write(chunk[: min(self._left, len(chunk) - 1)])
        self._cut()

    def _cut(self) -> None:
        hang_up(self._request, self._reset)
        raise ClientConnectionResetError("hung up by a fault")


class SpoilingWriter(_Through):
    """Spoil each event of a stream, and the type of any reply."""

    def __init__(self, request: web.Request, how: Malformed) -> None:
        super().__init__(request)
        self._how = how

    async def write_headers(self, status_line: str, headers: Any) -> None:
        if self._how is Malformed.CONTENT_TYPE:
            headers["Content-Type"] = "text/html"
        await super().write_headers(status_line, headers)

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        await super().write(spoil_events(bytes(chunk), self._how))
