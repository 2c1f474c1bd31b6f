"""The engine of a worker: which server a request goes to, and what becomes of it when that dies.

The router is the library's own, and each worker's has its own view of the servers. Who waits for a slot waits
for a call in virtual time, not for a future.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from areal_core._engine.backend import Backend
from areal_core._engine.router import Router
from areal_core._engine.server import Pin, Server, Waiter
from areal_core._engine.wire.exchange import Exchange
from areal_core._simulation.clock import VirtualClock
from areal_core._simulation.server import InferenceServer, Request

_MOST_PINS = 1  # no conversation has a name here


class _VirtualWaiter(Waiter):
    """Waits for a server in virtual time."""

    __slots__ = ("_clock", "_go_on")

    def __init__(
        self, pin: Pin, ticket: int, clock: VirtualClock, go_on: Callable[[_VirtualWaiter], None]
    ) -> None:
        # Not super's, which makes a future of the loop that runs: here none does.
        self.pin = pin
        self.ticket = ticket
        self.server: Server | None = None
        self.gone = False
        self._clock = clock
        self._go_on = go_on

    def wake(self) -> bool:
        """Let it go on, as soon as it knows its server; return that it will."""
        self._clock.at(self._clock.time(), self._go_on, self)
        return True


class VirtualRouter(Router):
    """The engine's router, for callers in virtual time."""

    def __init__(self, slots: int | None, clock: VirtualClock) -> None:
        super().__init__(slots, _MOST_PINS, on_out=lambda _: None)
        self._clock = clock

    def take_or_wait(self, pin: Pin, go_on: Callable[[Waiter], None]) -> Server | Waiter:
        """Do what `take` does: return a server, or who waits for one, for whom *go_on* is called then."""
        server = self._choose(pin)
        if server is not None:
            return server
        waiter = _VirtualWaiter(pin, next(self._tickets), self._clock, go_on)
        self._enqueue(waiter)
        return waiter


class Asked:
    """A request of a worker, at whichever server it is."""

    __slots__ = ("pin", "request", "server", "waiter")

    def __init__(self, request: Request, pin: Pin) -> None:
        self.request = request
        self.pin = pin
        self.server: Server | None = None
        """That which works on it, as the router knows it."""
        self.waiter: Waiter | None = None


class VirtualEngine:
    """Gets a worker its tokens from *servers*, those it knows."""

    def __init__(
        self, clock: VirtualClock, servers: Sequence[InferenceServer], slots: int | None, token_s: float
    ) -> None:
        self._token_s = token_s
        self._router = VirtualRouter(slots, clock)
        self._servers: dict[Server, InferenceServer] = {}
        self._known: dict[InferenceServer, Server] = {}
        self._asked: dict[Server, dict[Asked, None]] = {}
        self._waiting: dict[Waiter, Asked] = {}
        for number, server in enumerate(servers):
            known = Server(cast(Exchange, _exchange(number)), cast(Backend, None))
            self._servers[known], self._known[server], self._asked[known] = server, known, {}
            self._router.add(known)
            if server.is_up:
                self._put_in(known)

    def ask(self, tokens: int, pace: float, pin: Pin, on_end: Callable[[Asked], None]) -> Asked:
        """Have *tokens* made; *on_end* is called when they are there."""
        request = Request(tokens, self._token_s * pace, lambda: self._ended(asked, on_end))
        asked = Asked(request, pin)
        self._route(asked)
        return asked

    def cancel(self, asked: Asked) -> None:
        """End what *asked*."""
        if asked.server is not None:
            self._servers[asked.server].cancel(asked.request)
            self._leave(asked)
        elif asked.waiter is not None:
            asked.waiter.gone = True
            self._waiting.pop(asked.waiter, None)

    def died(self, server: InferenceServer, left: set[Request]) -> list[Asked]:
        """Have what was *left* by a server that died go on elsewhere; return what does."""
        known = self._known.get(server)
        if known is None:
            return []
        mine = [asked for asked in self._asked[known] if asked.request in left]
        self._router.take_out(known, "it died")
        for asked in mine:
            self._leave(asked)
            self._route(asked)
        return mine

    def came_back(self, server: InferenceServer) -> None:
        """Take a server into rotation again."""
        known = self._known.get(server)
        if known is not None:
            self._put_in(known)

    def _put_in(self, known: Server) -> None:
        self._router.put_in(known, lambda: True)

    def _route(self, asked: Asked) -> None:
        found = self._router.take_or_wait(asked.pin, self._arrived)
        if isinstance(found, Server):
            self._begin(asked, found)
        else:
            asked.waiter = found
            self._waiting[found] = asked

    def _arrived(self, waiter: Waiter) -> None:
        asked = self._waiting.pop(waiter, None)
        server = waiter.server
        assert server is not None
        if asked is None:  # it was cancelled in the same moment
            self._router.give_back(server)
            return
        asked.waiter = None
        if server.why_out is not None:  # it left in the same moment
            self._router.give_back(server)
            self._route(asked)
        else:
            self._begin(asked, server)

    def _begin(self, asked: Asked, server: Server) -> None:
        asked.server = server
        self._asked[server][asked] = None
        self._servers[server].begin(asked.request)

    def _leave(self, asked: Asked) -> None:
        server, asked.server = asked.server, None
        assert server is not None
        del self._asked[server][asked]
        self._router.give_back(server)

    def _ended(self, asked: Asked, on_end: Callable[[Asked], None]) -> None:
        self._leave(asked)
        on_end(asked)


class BoundlessEngine:
    """Has tokens for all, from one server without limits; nobody chooses."""

    def __init__(self, server: InferenceServer, token_s: float) -> None:
        self._server = server
        self._token_s = token_s

    def ask(self, tokens: int, pace: float, pin: Pin, on_end: Callable[[Asked], None]) -> Asked:
        """Have *tokens* made; *on_end* is called when they are there."""
        asked = Asked(Request(tokens, self._token_s * pace, lambda: on_end(asked)), pin)
        self._server.begin(asked.request)
        return asked

    def cancel(self, asked: Asked) -> None:
        """End what *asked*."""
        self._server.cancel(asked.request)

    def died(self, server: InferenceServer, left: set[Request]) -> list[Asked]:
        """Do nothing: that server does not die."""
        return []

    def came_back(self, server: InferenceServer) -> None:
        """Do nothing either."""


def _exchange(number: int) -> Any:
    """Return what a router wants to know of where a server is."""
    return SimpleNamespace(address=SimpleNamespace(name=f"server {number}"))
