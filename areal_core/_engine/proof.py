"""Make sure that tokens come from the weights a server was given, not from those it started with.

A server that crashed and was restarted answers as if nothing had happened. Either its replies tell
(those of SGLang carry a label), or it is asked: once per connection, since a restart ends them all.
"""

from __future__ import annotations

import contextlib
from typing import Any

from areal_core._engine.backend import Piece, ReplyError
from areal_core._engine.retries import AtOnceError
from areal_core._engine.server import Server
from areal_core.errors import MalformedReplyError, ServerStatusError
from areal_core.workflow_context import get_control_session

_TIMEOUT_S = 10.0


class OldWeightsError(AtOnceError):
    """A server does not have the weights that it was given: it was restarted, or changed by others."""


async def prove(server: Server, expected: int, piece: Piece, connection: Any) -> None:
    """Raise OldWeightsError unless *piece*, from *connection*, was made by version *expected* or later.

    A server that tells no version is believed.
    """
    label = min(piece.versions) if piece.versions else piece.label
    if label is not None:
        server.labels_replies = True
        _compare(server, expected, label)
    elif server.labels_replies:
        raise OldWeightsError(f"the replies of {server.name} bear no version any more")
    elif connection not in server.proven:
        version = await ask_weights(server)
        if version is not None:
            server.tells_version = True
            _compare(server, expected, version)
        elif server.tells_version:
            raise OldWeightsError(f"{server.name} does not know its version any more")
        server.proven.add(connection)


async def ask_weights(server: Server) -> int | None:
    """Return the version that *server* says it has; None when it does not say.

    Raises ServerUnreachableError.
    """
    call = server.backend.weight_version()
    if call is None:
        return None
    with contextlib.suppress(ServerStatusError, MalformedReplyError, ReplyError):
        body = await server.exchange.call(await get_control_session(), call, _TIMEOUT_S)
        return server.backend.read_weight_version(body)
    return None


def _compare(server: Server, expected: int, version: int) -> None:
    if version < expected:
        raise OldWeightsError(f"{server.name} has version {version}, and was given {expected}")
