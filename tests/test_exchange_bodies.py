"""What aiohttp may ask of the body of a request, and what the body notes."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

from areal_core._engine.wire.body import Body


def test_a_body_is_a_payload_like_those_of_aiohttp() -> None:
    body = Body("é".encode())
    assert (body.decode(), body.decode("latin-1"), body.decode("ascii", "ignore")) == ("é", "Ã©", "")
    assert body.autoclose


def test_a_body_has_left_unless_its_connection_was_closing() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            transport, protocol = await loop.create_connection(lambda: BaseProtocol(loop), sock=ours)
            writer = StreamWriter(protocol, loop)
            first, second = Body(b"first"), Body(b"second")
            await first.write(writer)
            transport.abort()
            with pytest.raises(aiohttp.ClientConnectionResetError):
                await second.write(writer)
            assert theirs.recv(100) == b"first"
            assert first.connection is second.connection is protocol
            assert first.left_at is not None
            assert second.left_at is None

    asyncio.run(main())
