"""Calls that are given up with their server."""

from __future__ import annotations

from typing import Any, Self

from areal_core._engine.server import Server
from areal_core._interruption import Interruption
from areal_core.errors import ServerUnreachableError


class GivenUpError(ServerUnreachableError):
    """A server was given up by somebody else, in the middle of a call."""


class Cut(Interruption):
    """A context that ends as soon as *server* is given up. Raises GivenUpError then.

    *when_removed*: only when it is removed, not when it is silent.
    """

    def __init__(self, server: Server, *, when_removed: bool = False) -> None:
        super().__init__()
        self._server = server
        self._when_removed = when_removed
        self._why: str | None = None

    def cut(self, why: str) -> None:
        """End it; any thread may."""
        if self._when_removed and not self._server.removed:
            return
        self._why = self._why or why
        self._interrupt_soon()

    def __enter__(self) -> Self:
        super().__enter__()
        self._server.calls.add(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._server.calls.discard(self)
        super().__exit__(*raised)

    def _error(self) -> Exception:
        message = f"{self._server.name} was given up: {self._why}"
        return GivenUpError(message, server=self._server.name, sent=True)
