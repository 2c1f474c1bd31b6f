"""Requests to an embedded server, a connection each, without a client library."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

from areal_core.embedded import EmbeddedServer


def call(server: EmbeddedServer, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and decoded body (None if empty); bytes are sent as they are, all else as JSON."""
    host, port = server.addr.split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")


def generate(server: EmbeddedServer, **body: Any) -> Any:
    """Return the reply to a generation that must succeed."""
    status, reply = call(server, "POST", "/generate", body)
    assert status == 200, reply
    return reply


class Asking(ThreadPoolExecutor):
    """Have threads ask a server; at the end of the block, wait for their replies."""

    def __init__(self, server: EmbeddedServer) -> None:
        super().__init__()
        self._server = server

    def generate(self, **body: Any) -> Future[Any]:
        """Return the reply to come."""
        return self.submit(generate, self._server, **body)

    def call(self, method: str, path: str, body: Any = None) -> Future[tuple[int, Any]]:
        """Return status and decoded body to come."""
        return self.submit(call, self._server, method, path, body)
