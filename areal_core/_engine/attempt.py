"""One request for tokens at one server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from areal_core._engine.backend import Ask, Piece, Reader, ReplyError
from areal_core._engine.cut import Cut, GivenUpError
from areal_core._engine.proof import prove as prove_given
from areal_core._engine.retries import AtOnceError
from areal_core._engine.server import Server
from areal_core._engine.wire.exchange import Reply
from areal_core.errors import InferenceError, ServerUnreachableError
from areal_core.workflow_context import get_aiohttp_session


class CutError(AtOnceError):
    """An attempt was ended because its server was given up."""


class Attempt:
    """Sends *ask* to *server*, and hands what comes back to *take*, piece by piece.

    *prove* is awaited with the first piece that has tokens, and its connection, and raises when they are of
    the wrong weights; None: they are if they are of others than *server* was given here.
    """

    def __init__(
        self,
        server: Server,
        ask: Ask,
        take: Callable[[Piece, bool], None],
        prove: Callable[[Piece, Any], Awaitable[None]] | None = None,
    ) -> None:
        self._server = server
        self._ask = ask
        self._take = take
        self._backend = server.backend
        expected = server.weights
        if prove is None and expected is not None:
            prove = partial(prove_given, server, expected)
        self._proof = prove
        self._departures = server.departures

    async def run(self) -> None:
        """Return when the server has said that there are no more tokens.

        Raises the errors of the exchange, MalformedReplyError, CutError, and AtOnceError when the server
        turns out to have other weights than it was given.
        """
        call = self._backend.generate(self._ask)
        try:
            with Cut(self._server):
                why_out = self._server.why_out  # since it was chosen; who comes after this cuts it
                if why_out is not None:
                    message = f"{self._server.name} left rotation: {why_out}"
                    raise ServerUnreachableError(message, server=self._server.name)
                session = await get_aiohttp_session()
                async with self._server.exchange.open(session, call) as reply:
                    await self._read(reply, self._backend.reader(self._ask))
                    return
        except GivenUpError as error:
            raise CutError(str(error)) from None
        except ReplyError as error:
            refused = self._server.exchange.refused(call, error)
        raise refused  # here, where nothing is chained to it: the key may be in what the server said

    async def _read(self, reply: Reply, reader: Reader) -> None:
        self._server.tally.streams = reply.streamed
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
        if self._proof is not None and piece.tokens:
            await self._prove(self._proof, piece, reply)
        self._take(piece, reply.streamed)

    async def _prove(
        self, prove: Callable[[Piece, Any], Awaitable[None]], piece: Piece, reply: Reply
    ) -> None:
        try:
            await prove(piece, reply.connection)
        except InferenceError as error:  # of what it was asked; what was sent here may run on there
            message = f"{self._server.name} does not tell its weights: {error}"
            untold = ServerUnreachableError(message, server=self._server.name, sent=True)
            if isinstance(error, ServerUnreachableError):  # which may be no fault of the server's
                untold.errno, untold.unresolved = error.errno, error.unresolved
            raise untold from error
        if self._server.departures != self._departures:  # it may have got them after it made these
            raise CutError(f"{self._server.name} left rotation before its weights were known")
        self._proof = None
