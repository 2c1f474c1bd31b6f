"""Server-sent events of an embedded server, read one at a time without a client library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from areal_core.embedded import EmbeddedServer


@contextmanager
def streaming(server: EmbeddedServer, path: str, body: dict[str, Any]) -> Iterator[Iterator[Any]]:
    """Ask for a stream; give an iterator over the decoded data of its events, up to ``[DONE]``."""
    host, port = server.addr.split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("POST", path, json.dumps({**body, "stream": True}))
        response = connection.getresponse()
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        yield _events(response)


def stream(server: EmbeddedServer, path: str, body: dict[str, Any]) -> list[Any]:
    """Return the data of all the events of a stream."""
    with streaming(server, path, body) as events:
        return list(events)


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    while (line := response.readline()) != b"data: [DONE]\n":
        assert line.startswith(b"data: "), line
        assert response.readline() == b"\n"
        yield json.loads(line[6:])
    assert response.read() == b"\n"
