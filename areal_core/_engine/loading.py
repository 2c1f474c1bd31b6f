"""Give one server weights, and have it pause or continue. Raises what the exchange does."""

from __future__ import annotations

from areal_core._engine.backend import HttpCall
from areal_core._engine.policy import Weights
from areal_core._engine.proof import ask_weights
from areal_core._engine.server import Server
from areal_core.errors import (
    InferenceError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
)
from areal_core.workflow_context import get_control_session

_UNKNOWN_PATH = (404, 405, 501)


async def load(server: Server, weights: Weights, timeout_s: float) -> None:
    """Have one server load *weights*, and see that it has them. Raises InferenceError."""
    calls = server.backend.update_weights(weights.path, weights.version)
    if not calls:
        raise cannot_update(server)
    server.weights_unknown = True
    for call in calls:
        await _load(server, call, timeout_s)
    version = await ask_weights(server)
    if version is not None:
        server.tells_version = True
        if version != weights.version:
            raise MalformedReplyError(
                server.name, calls[-1].name, f"it says that it has version {version}, not {weights.version}"
            )
    server.weights = weights.version
    server.weights_unknown = server.awaits_weights = False


async def pause(server: Server, timeout_s: float) -> None:
    """Have *server* pause, if its dialect can. Raises InferenceError."""
    call = server.backend.pause()
    if call is None:
        return
    async with server.telling:
        before, server.may_be_paused = server.may_be_paused, True
        try:
            await server.exchange.call(await get_control_session(), call, timeout_s)
        except InferenceError as error:
            if _was_not_done(error):
                server.may_be_paused = before
            raise


async def resume(server: Server, timeout_s: float) -> None:
    """Have *server* go on, if its dialect can pause. Raises InferenceError."""
    call = server.backend.resume()
    if call is None:
        return
    async with server.telling:
        await server.exchange.call(await get_control_session(), call, timeout_s)
        server.may_be_paused = False


async def pause_or_resume(server: Server, is_open: bool, timeout_s: float) -> None:
    """Have a server that is out of rotation do what the others do, if it can. Raises InferenceError."""
    try:
        await (resume if is_open else pause)(server, timeout_s)
    except ServerStatusError as error:
        if error.status not in _UNKNOWN_PATH:
            raise


def _was_not_done(error: InferenceError) -> bool:
    """Return whether a call that failed has changed nothing for sure: it was refused, or not sent."""
    if isinstance(error, ServerStatusError):
        return error.status < 500 or error.status in _UNKNOWN_PATH
    return isinstance(error, ServerUnreachableError) and not error.sent


def cannot_update(server: Server) -> InferenceError:
    return InferenceError(
        f"backend {server.backend.name!r} cannot update weights; "
        "load them in a way of your own, and call set_version()"
    )


async def _load(server: Server, call: HttpCall, timeout_s: float) -> None:
    try:
        body = await server.exchange.call(await get_control_session(), call, timeout_s)
    except ServerStatusError as error:
        if not (call.optional and error.status in _UNKNOWN_PATH):
            raise
        return
    problem = server.backend.check_update(body)
    if problem is not None:
        raise MalformedReplyError(server.name, call.name, problem)
