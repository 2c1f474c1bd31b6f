"""End attempts at servers, so that none runs on when the next one is sent."""

from __future__ import annotations

import asyncio

from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.errors import InferenceError, ServerUnreachableError
from areal_core.workflow_context import get_control_session

_TIMEOUT_S = 10.0
_AFTER_CANCELLATION_S = 2.0  # less than the grace of a task that was cancelled


async def abort(router: Router, server: Server, wire_id: str) -> None:
    """End one attempt at *server*; return when that answered, or could not be reached.

    One that cannot be reached leaves rotation, and ends the attempt before it comes back.
    """
    call = server.backend.abort(wire_id)
    if call is None:
        return  # hanging up has ended it
    try:
        await server.exchange.call(await get_control_session(), call, _TIMEOUT_S)
    except ServerUnreachableError as error:
        server.unaborted.add(wire_id)
        router.take_out(server, str(error))
    except InferenceError:
        pass  # it answered: there is no such attempt any more


async def abort_after_cancellation(router: Router, server: Server, wire_id: str) -> None:
    """Do that within two seconds, in a task that was cancelled and is about to end."""
    try:
        async with asyncio.timeout(_AFTER_CANCELLATION_S):
            await abort(router, server, wire_id)
    except TimeoutError:
        server.unaborted.add(wire_id)


async def abort_leftovers(server: Server) -> None:
    """End the attempts that could not be ended before. Raises ServerUnreachableError."""
    for wire_id in tuple(server.unaborted):
        call = server.backend.abort(wire_id)
        if call is not None:
            try:
                await server.exchange.call(await get_control_session(), call, _TIMEOUT_S)
            except ServerUnreachableError:
                raise
            except InferenceError:
                pass
        server.unaborted.discard(wire_id)
