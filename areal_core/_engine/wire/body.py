"""The body of a request, which notes what becomes of it."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp.abc import AbstractStreamWriter

_USED = "_areal_core_used"  # set on a connection that has brought a reply to us


def mark_used(connection: object) -> None:
    """Note that *connection* has brought a reply."""
    setattr(connection, _USED, True)


class Body(aiohttp.Payload):
    """The body of a request, of any size: aiohttp's own warns of large ones that are bytes.

    It notes when the request leaves, and on which connection.
    """

    _value: bytes
    autoclose = True
    """There is nothing to close."""

    connection: object = None
    transport: asyncio.WriteTransport | None = None
    reused = False
    """Whether that connection has brought a reply before."""
    left_at: float | None = None
    """When the first of it was written, by the loop's clock; None: not yet."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, content_type="application/json")

    @property
    def size(self) -> int:
        """Return its length in bytes."""
        return len(self._value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write it. The headers go out with it, not before."""
        self.connection = getattr(writer, "protocol", self.connection)
        self.transport = writer.transport
        self.reused = hasattr(self.connection, _USED)
        if self.transport is not None and not self.transport.is_closing():
            self.left_at = asyncio.get_running_loop().time()
        await writer.write(self._value)  # *content_length* is its own
