"""End attempts at servers, so that none runs on when the next one is sent."""

from __future__ import annotations

import asyncio

from areal_core._engine.backend import HttpCall
from areal_core._engine.insisting import AFTER_CANCELLATION_S as _AFTER_CANCELLATION_S
from areal_core._engine.insisting import insist
from areal_core._engine.retries import may_try_again
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.errors import InferenceError, ServerStatusError, ServerUnreachableError
from areal_core.workflow_context import get_control_session

_TIMEOUT_S = 10.0
_BETWEEN_TRIES_S = (0.1, 0.5)  # when a server answers that it cannot just now
_WHILE_SHORT_S = (0.5, 1.0, 2.0, 4.0)  # when something is short here: descriptors come back as calls end


async def abort(router: Router, server: Server, wire_id: str) -> None:
    """End one attempt at *server*; return when that answered, or could not be reached.

    One that cannot be reached leaves rotation, and ends the attempt before it comes back; where it is
    something here that keeps us from it, it is tried for some seconds first. A task that is cancelled
    meanwhile ends within two seconds, and the abort goes on without it.
    """
    task = _begin(router, server, wire_id)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        await asyncio.wait((task,), timeout=_AFTER_CANCELLATION_S)
        raise


async def abort_after_cancellation(router: Router, server: Server, wire_id: str) -> None:
    """Do that for two seconds at most, in a task that was cancelled; after that it goes on by itself."""
    await asyncio.wait((_begin(router, server, wire_id),), timeout=_AFTER_CANCELLATION_S)


async def abort_leftovers(server: Server) -> None:
    """End the attempts that could not be ended before. Raises ServerUnreachableError."""
    try:
        while server.unaborted:  # there may be more meanwhile
            async with asyncio.TaskGroup() as group:
                for wire_id in tuple(server.unaborted):
                    group.create_task(_abort_leftover(server, wire_id))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _abort_leftover(server: Server, wire_id: str) -> None:
    call = server.backend.abort(wire_id)
    if call is not None:
        await _insist(server, call, False)
    server.unaborted.discard(wire_id)


def _begin(router: Router, server: Server, wire_id: str) -> asyncio.Task[None]:
    """Start it in a task of its own: whoever wants it may be cancelled any number of times."""
    task = asyncio.create_task(_abort(router, server, wire_id), name=f"areal_core abort at {server.name}")
    server.aborting.add(task)
    task.add_done_callback(server.aborting.discard)
    return task


async def _abort(router: Router, server: Server, wire_id: str) -> None:
    call = server.backend.abort(wire_id)
    if call is None:
        return  # hanging up has ended it
    try:
        await insist(_WHILE_SHORT_S, _is_shortage, _insist, server, call, True)
    except ServerUnreachableError as error:
        server.unaborted.add(wire_id)
        router.take_out(server, str(error))
    except asyncio.CancelledError:  # its loop ends
        server.unaborted.add(wire_id)
        raise


async def _insist(server: Server, call: HttpCall, unless_lost: bool) -> None:
    """Make *call* until it is answered, a few times at most. Raises ServerUnreachableError."""
    try:
        await insist(_BETWEEN_TRIES_S, _cannot_now, _call, server, call, unless_lost)
    except ServerUnreachableError:
        raise
    except InferenceError:
        return  # it answered: there is no such attempt any more


async def _call(server: Server, call: HttpCall, unless_lost: bool) -> None:
    session = await get_control_session()
    async with server.exchange.turn(session):
        if unless_lost and server.why_out is not None and server.unaborted:
            # Another's did not get through meanwhile: hundreds need not each wait to find that out.
            raise ServerUnreachableError(f"{server.name} took no abort", server=server.name)
        await server.exchange.call(session, call, _TIMEOUT_S)


def _is_shortage(error: InferenceError) -> bool:
    return isinstance(error, ServerUnreachableError) and error.is_shortage


def _cannot_now(error: InferenceError) -> bool:
    return isinstance(error, ServerStatusError) and may_try_again(error)
