"""How the HTTP clients of a loop behave."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """Say how the HTTP clients behave; give it to `configure_http`.

    Raises ValueError and TypeError for values no client could work with.
    """

    total: float | None = None
    """Seconds for a whole request, its reply included; None: no limit."""

    connect: float = 30.0
    """Seconds until a connection is there: name resolution, TCP and TLS together."""

    sock_read: float | None = 3600.0
    """Seconds in which nothing moves: no byte arrives, or (httpx) none is taken; None: no limit.
    A server that does not stream is silent for as long as it generates."""

    control_connect: float = 5.0
    """Like ``connect``, for control calls; waiting for a free connection to that server is included."""

    keepalive_expiry: float = 4.0
    """Seconds an idle connection is kept. Common servers close theirs after 5, and a request that leaves
    while the server closes is lost."""

    connections: int = 4096
    """For how many connections at once descriptors are made sure of. No limit: the pool has none."""

    trust_env: bool = False
    """Whether the proxy variables of the environment (and ``.netrc``) count."""

    ssl_context: ssl.SSLContext | None = None
    """For every https connection; None: aiohttp's own, made once per process, which trusts the system's
    authorities."""

    def __post_init__(self) -> None:
        for name in ("total", "sock_read"):
            if getattr(self, name) is not None:
                self._check_seconds(name, "give seconds, or None for no limit")
        for name in ("connect", "control_connect", "keepalive_expiry"):
            self._check_seconds(name, "give seconds")
        check_connections(self.connections)
        if not isinstance(self.trust_env, bool):
            raise TypeError(f"trust_env={self.trust_env!r} is not a bool; give True or False")
        if not isinstance(self.ssl_context, ssl.SSLContext | None):
            raise TypeError(f"ssl_context={self.ssl_context!r} is not an ssl.SSLContext; give one, or None")

    def _check_seconds(self, name: str, advice: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}={value!r} is not a number; {advice}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r} is not positive and finite; {advice}")


def check_connections(connections: object) -> None:
    """Raise ValueError or TypeError unless *connections* is a number of connections."""
    if isinstance(connections, bool) or not isinstance(connections, int):
        raise TypeError(f"connections={connections!r} is not an int; give a number of connections")
    if connections < 1:
        raise ValueError(f"connections={connections} is not positive; give a number of connections")
