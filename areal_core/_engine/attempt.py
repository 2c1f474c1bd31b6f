"""One request for tokens at one server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from areal_core._engine.backend import Ask, Piece, Reader, ReplyError
from areal_core._engine.exchange import Reply
from areal_core._engine.proof import prove
from areal_core._engine.retries import AtOnceError
from areal_core._engine.server import Server
from areal_core.errors import ServerUnreachableError
from areal_core.workflow_context import get_aiohttp_session


class CutError(AtOnceError):
    """An attempt was ended because its server was given up."""


class Attempt:
    """Sends *ask* to *server*, and hands what comes back to *take*, piece by piece."""

    def __init__(self, server: Server, ask: Ask, take: Callable[[Piece, bool], None]) -> None:
        self._server = server
        self._ask = ask
        self._take = take
        self._backend = server.backend
        self._expected = server.weights
        self._proven = self._expected is None
        self._departures = server.departures
        self._loop = asyncio.get_running_loop()
        self._clock = asyncio.timeout(None)
        self._why_cut: str | None = None
        self._over = False

    async def run(self) -> None:
        """Return when the server has said that there are no more tokens.

        Raises the errors of the exchange, MalformedReplyError, CutError, and AtOnceError when the server
        turns out to have other weights than it was given.
        """
        call = self._backend.generate(self._ask)
        self._server.attempts.add(self)
        try:
            why_out = self._server.why_out  # since it was chosen; who comes after this cuts it
            if why_out is not None:
                message = f"{self._server.name} left rotation: {why_out}"
                raise ServerUnreachableError(message, server=self._server.name)
            async with self._clock:
                session = await get_aiohttp_session()
                async with self._server.exchange.open(session, call) as reply:
                    await self._read(reply, self._backend.reader(self._ask))
                    return
        except TimeoutError:
            if self._why_cut is None:
                raise
            raise CutError(f"{self._server.name} was given up: {self._why_cut}") from None
        except ReplyError as error:
            refused = self._server.exchange.refused(call, error)
        finally:
            self._over = True
            self._server.attempts.discard(self)
        raise refused  # here, where nothing is chained to it: the key may be in what the server said

    def cut(self, why: str) -> None:
        """End it with CutError; any thread may."""
        with contextlib.suppress(RuntimeError):  # its loop is closed, and it is over
            self._loop.call_soon_threadsafe(self._cut, why)

    def _cut(self, why: str) -> None:
        if not self._over and self._why_cut is None:
            self._why_cut = why
            self._clock.reschedule(self._loop.time())

    async def _read(self, reply: Reply, reader: Reader) -> None:
        if not reply.streamed:
            await self._see(reader.whole(await reply.read()), reply)
            return
        async for data in reply.events():
            piece = reader.event(data)
            if piece is not None:
                await self._see(piece, reply)
                if piece.finish is not None:
                    return
        raise ServerUnreachableError(
            f"{self._server.name} ended a stream in the middle", server=self._server.name, sent=True
        )

    async def _see(self, piece: Piece, reply: Reply) -> None:
        if not self._proven and piece.tokens and self._expected is not None:
            await self._prove(self._expected, piece, reply)
        self._take(piece, reply.streamed)

    async def _prove(self, expected: int, piece: Piece, reply: Reply) -> None:
        try:
            await prove(self._server, expected, piece, reply.connection)
        except ServerUnreachableError as error:  # to be asked; what was sent here may run on there
            raise ServerUnreachableError(str(error), server=self._server.name, sent=True) from error
        if self._server.departures != self._departures:  # it may have got them after it made these
            raise CutError(f"{self._server.name} left rotation before its weights were known")
        self._proven = True
