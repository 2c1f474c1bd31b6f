"""What a dialect is to the server: routes, and the shape of its errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from areal_core.embedded._checks import BadRequestError


class Dialect(Protocol):
    """The words of one kind of server.

    A handler raises BadRequestError for the client's mistakes; whatever it raises that is the client's
    fault is told in the shape of `error`.
    """

    def routes(self) -> Sequence[web.RouteDef]:
        """Return its routes. No two dialects have the same path."""

    def error(self, message: str, status: int) -> dict[str, Any]:
        """Return the body that says *message*."""


async def json_body(request: web.Request) -> Any:
    """Return the decoded body; raises BadRequestError if it is not JSON."""
    body = await request.read()
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("body", body, f"is not JSON: {str(error)[:200]}") from None


def json_bytes(value: Any) -> bytes:
    """Return *value*, which may be thousands of tokens with their log-probabilities, as JSON."""
    try:
        return msgspec.json.encode(value)  # in a tenth of the time
    except UnicodeEncodeError:  # half of a surrogate pair, which only escaped can be JSON
        return json.dumps(value).encode()


def json_reply(value: Any) -> web.Response:
    """Return the response that has *value*."""
    return web.Response(body=json_bytes(value), content_type="application/json")
