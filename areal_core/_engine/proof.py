"""Make sure that tokens come from the weights a server was given, not from those it started with.

A server that crashed and was restarted answers as if nothing had happened. Either its replies tell
(those of SGLang carry a label), or it is asked: once per connection, since a restart ends them all.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from areal_core._engine.backend import HttpCall, Piece, ReplyError
from areal_core._engine.insisting import insist
from areal_core._engine.retries import AtOnceError, may_try_again
from areal_core._engine.server import Server
from areal_core.errors import InferenceError, MalformedReplyError, ServerStatusError
from areal_core.workflow_context import get_control_session

_TIMEOUT_S = 10.0
_BETWEEN_TRIES_S = (0.1, 0.5)  # when a server cannot say just now


class OldWeightsError(AtOnceError):
    """A server does not have the weights that it was given: it was restarted, or changed by others."""


async def prove(server: Server, expected: int, piece: Piece, connection: Any) -> None:
    """Raise OldWeightsError unless *piece*, from *connection*, was made by version *expected* or later.

    A server that tells no version is believed. Raises InferenceError for one that cannot say now.
    """
    label = min(piece.versions) if piece.versions else piece.label
    if label is not None:
        server.labels_replies = True
        _compare(server, expected, label)
    elif server.labels_replies:
        raise OldWeightsError(f"the replies of {server.name} bear no version any more")
    elif connection not in server.proven:
        version = await ask_weights(server, in_a_crowd=True)
        if version is not None:
            server.tells_version = True
            _compare(server, expected, version)
        elif server.tells_version:
            raise OldWeightsError(f"{server.name} does not know its version any more")
        server.proven.add(connection)


async def ask_weights(server: Server, *, in_a_crowd: bool = False) -> int | None:
    """Return the version that *server* says it has; None where it has none to tell: no call, or no integer.

    One that cannot say just now is asked again, a few times. *in_a_crowd*: it may be asked for each of many
    generations, which wait for each other. Raises InferenceError when it never says.
    """
    call = server.backend.weight_version()
    if call is None:
        return None
    return await insist(_BETWEEN_TRIES_S, _may_pass, _ask, server, call, in_a_crowd)


async def _ask(server: Server, call: HttpCall, in_a_crowd: bool) -> int | None:
    try:
        session = await get_control_session()
        async with server.exchange.turn(session) if in_a_crowd else nullcontext():
            body = await server.exchange.call(session, call, _TIMEOUT_S)
        return server.backend.read_weight_version(body)
    except ServerStatusError as error:
        if is_passing(error):
            raise
        return None
    except ReplyError as error:
        refused = server.exchange.refused(call, error)
    raise refused


def _may_pass(error: InferenceError) -> bool:
    return may_try_again(error) or isinstance(error, MalformedReplyError)


def is_passing(error: ServerStatusError) -> bool:
    """Return whether a server that refused to say something of itself may say it later."""
    return may_try_again(error) and error.status != 501


def _compare(server: Server, expected: int, version: int) -> None:
    if version < expected:
        raise OldWeightsError(f"{server.name} has version {version}, and was given {expected}")
