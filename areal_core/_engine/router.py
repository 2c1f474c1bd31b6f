"""Which server a generation goes to. Choosing and counting are one step, under one lock."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from areal_core._engine.server import Pin, Server, Waiter
from areal_core._engine.stats import ServerStats
from areal_core._engine.tally import Visit
from areal_core._engine.waking import wake
from areal_core.errors import ServerUnreachableError


class Router:
    """The servers, the conversations pinned to them, and who waits for one.

    *slots* is how many generations a server is given at once (None: no limit); *most_pins* how many
    conversations are remembered that have nothing in flight. *on_out* is told of each server that leaves
    rotation and *on_in* of each that comes into it, with the lock free, and *on_explained* when it is said
    anew why one is out.
    """

    def __init__(
        self,
        slots: int | None,
        most_pins: int,
        on_out: Callable[[Server], None],
        on_in: Callable[[Server], None] = lambda _: None,
        on_explained: Callable[[], None] = lambda: None,
    ) -> None:
        self._slots = slots
        self._most_pins = most_pins
        self._on_out = on_out
        self._on_in = on_in
        self._on_explained = on_explained
        self._lock = threading.RLock()
        self._servers: list[Server] = []
        self._deserted_since: float | None = time.monotonic()  # None while a server is in rotation
        self._turns = itertools.count()
        self._tickets = itertools.count()
        self._queue: deque[Waiter] = deque()  # of those who may go anywhere
        self._busy_pins: dict[str, Pin] = {}
        self._idle_pins: OrderedDict[str, Pin] = OrderedDict()  # the longest idle first

    # -- servers -----------------------------------------------------------------------------------

    @property
    def servers(self) -> Sequence[Server]:
        """All servers, in rotation or not."""
        return tuple(self._servers)

    @property
    def in_rotation(self) -> Sequence[Server]:
        """Those that are given generations."""
        return tuple(server for server in self._servers if server.why_out is None)

    @property
    def waiting(self) -> int:
        """How many generations wait for a slot at any server."""
        return len(self._queue)

    def add(self, server: Server) -> None:
        """Know *server* from now on, out of rotation yet. Raises ValueError when its address is known."""
        with self._lock:
            if any(known.exchange.address == server.exchange.address for known in self._servers):
                raise ValueError(f"{server.name} is one of the servers already")
            self._servers.append(server)

    def remove(self, server: Server) -> None:
        """Forget *server*; what it generates is cut off."""
        with self._lock:
            self._servers.remove(server)
            server.removed = True
        self.take_out(server, "removed")
        self.cut(server, "it was removed")

    def take_out(self, server: Server, why: str) -> None:
        """Give *server* no more generations; those that wait or sleep for it may go anywhere.

        What is under way there goes on, unless it is held in a pause, or may get tokens of any weights.
        """
        with self._lock:
            if server.why_out is not None:
                return
            server.why_out = why
            server.departures += 1
            server.proven.clear()
            server.labels_replies = False  # what comes back may not
            moved = sorted([*self._queue, *server.queue], key=_ticket)
            self._queue = deque(moved)
            server.queue.clear()
            if not self.in_rotation:
                self._deserted_since = time.monotonic()
            self._serve(*self._servers)
        for sleeper in tuple(server.sleepers):
            wake(sleeper)
        self._on_out(server)
        if server.may_be_paused or server.weights_unknown:
            self.cut(server, why)

    def put_in(self, server: Server, still_right: Callable[[], bool]) -> bool:
        """Give *server* generations, if *still_right*; return whether it is in rotation."""
        with self._lock:
            why_out, server.why_out = server.why_out, None
            # Afterwards: who changes what is right does so before looking who is in rotation.
            if server.removed or not still_right():
                server.why_out = why_out
                return False
            self._deserted_since = None
            server.awaits_weights = False  # not before: an update that begins until then is to include it
            if why_out is not None:
                server.standing.clear()
            self._serve(*self._servers)
        if why_out is not None:
            self._on_in(server)
        return True

    def explain(self, server: Server, why: str) -> None:
        """Note why *server* is still out of rotation. Nothing happens when it is in."""
        with self._lock:
            if server.why_out is not None and not server.removed:
                server.why_out = why
        self._on_explained()

    def renew_patience(self) -> None:
        """Count the time without a server from now on: nobody looked after them before."""
        with self._lock:
            if self._deserted_since is not None:
                self._deserted_since = time.monotonic()

    def cut(self, server: Server, why: str) -> None:
        """End every call that is under way at *server*."""
        for call in tuple(server.calls):
            call.cut(why)

    def stats_of(self, server: Server) -> ServerStats:
        """Return how things stand at *server*, and what it has done."""
        with self._lock:
            server.count(0)
            return ServerStats(
                name=server.name,
                why_out=server.why_out,
                in_flight=server.in_flight,
                waiting=len(server.queue),
                version=server.weights,
                departures=server.departures,
                tokens=server.tally.tokens,
                seconds=server.tally.seconds,
                **server.tally.endings,
                streams=server.tally.streams,
            )

    # -- generations -------------------------------------------------------------------------------

    def pin(self, conversation: str | None) -> Pin:
        """Return what keeps all that has one *conversation* on one server, until each has called `unpin`.

        None is a conversation of its own.
        """
        if conversation is None:
            return Pin()
        with self._lock:
            pin = self._busy_pins.get(conversation) or self._idle_pins.pop(conversation, None) or Pin()
            self._busy_pins[conversation] = pin
            pin.in_flight += 1
        return pin

    def unpin(self, conversation: str | None) -> None:
        """Let go of what `pin` gave for *conversation*."""
        if conversation is None:
            return
        with self._lock:
            pin = self._busy_pins[conversation]
            pin.in_flight -= 1
            if not pin.in_flight:
                self._idle_pins[conversation] = self._busy_pins.pop(conversation)
                while len(self._idle_pins) > self._most_pins:
                    self._idle_pins.popitem(last=False)

    async def take(self, pin: Pin, patience_s: float) -> Server:
        """Wait for a server with a slot free, in the order of calls, and count one more in flight there.

        Raises ServerUnreachableError when for *patience_s* seconds no server has been in rotation.
        """
        with self._lock:
            server = self._choose(pin)
            if server is not None:
                return server
            waiter = Waiter(pin, next(self._tickets))
            self._enqueue(waiter)
        try:
            while waiter.server is None:
                await waiter.arrive(self._patience_left(patience_s))
            return waiter.server
        except BaseException:
            with self._lock:
                waiter.gone = True
                if waiter.server is not None:
                    self.give_back(waiter.server)
            raise

    def give_back(self, server: Server, visit: Visit | None = None) -> None:
        """Count one less in flight at *server*, and let the next one have the slot.

        *visit* is what came of it; None: nothing was sent.
        """
        with self._lock:
            server.count(-1)
            if visit is not None:
                server.tally.end(visit)
            if self._queue or server.queue:
                self._serve(server)

    def serve(self) -> None:
        """Give out slots that are free: a server may be chosen again because time has passed."""
        with self._lock:
            if self._queue:
                self._serve(*self._servers)

    def note_tokens(self, server: Server) -> None:
        """Take note that an attempt at *server* has brought its first tokens."""
        if server.standing.failures:
            with self._lock:
                server.standing.clear()
                self._serve(server)

    def note_failure(self, server: Server) -> int:
        """Count an attempt that *server* failed.

        Return how many it has failed in a row if it is given less than others for that, which is to be told
        now; 0: it is not, or that was told.
        """
        standing = server.standing
        with self._lock:
            if standing.fail():
                self._serve(*self._servers)  # if it was the last that was not, others take new work again
            if standing.is_told or self._takes_new(server):
                return 0
            standing.is_told = True
            return standing.failures

    def _choose(self, pin: Pin) -> Server | None:
        home = pin.server
        if home is not None and home.why_out is None:
            server = home if self._has_slot(home) else None
        else:
            free = [one for one in self.in_rotation if self._has_slot(one) and self._takes_new(one)]
            first = next(self._turns) % max(1, len(free))  # of those with as few in flight, another each time
            server = min(free[first:] + free[:first], key=_in_flight, default=None)
        if server is not None:
            pin.server = server
            self._give(server)
        return server

    def _give(self, server: Server) -> None:
        server.count(1)
        server.standing.give()

    def _takes_new(self, server: Server) -> bool:
        """Return whether *server* is given what may go anywhere: one that is avoided if all are."""
        return not server.standing.is_avoided or all(one.standing.is_avoided for one in self.in_rotation)

    def _has_slot(self, server: Server) -> bool:
        return self._slots is None or server.in_flight < self._slots

    def _enqueue(self, waiter: Waiter) -> None:
        home = waiter.pin.server
        (self._queue if home is None or home.why_out is not None else home.queue).append(waiter)

    def _serve(self, *servers: Server) -> None:
        for server in servers:
            while self._serve_one(server):
                pass

    def _serve_one(self, server: Server) -> bool:
        """Look at who has waited longest for a slot of *server*, if one is free; return whether to go on.

        It gets the slot, unless it has to wait for another server or is not there any more.
        """
        if server.why_out is not None or not self._has_slot(server):
            return False
        open_to = (server.queue, self._queue) if self._takes_new(server) else (server.queue,)
        queues = [queue for queue in open_to if _drop_gone(queue)]
        if not queues:
            return False
        waiter = min(queues, key=lambda queue: queue[0].ticket).popleft()
        home = waiter.pin.server
        if home is not server and home is not None and home.why_out is None:
            # Another of its conversation was served there meanwhile. No slot is free there: it would have it.
            bisect.insort(home.queue, waiter, key=_ticket)
        elif waiter.wake():
            waiter.pin.server = waiter.server = server
            self._give(server)
        else:
            waiter.gone = True
        return True

    def _patience_left(self, patience_s: float) -> float:
        """Return how many seconds to wait. Raises ServerUnreachableError when no server came for too long."""
        if self._deserted_since is None:
            return patience_s
        left_s = self._deserted_since + patience_s - time.monotonic()
        if left_s > 0:
            return left_s
        servers = "; ".join(f"{server.name} is out: {server.why_out}" for server in self._servers) or "none"
        raise ServerUnreachableError(
            f"no server has been in rotation for setup_timeout={patience_s:g} s ({servers})"
        )


def _drop_gone(queue: deque[Waiter]) -> bool:
    """Drop from the front those who wait no longer; return whether somebody is left."""
    while queue and queue[0].gone:
        queue.popleft()
    return bool(queue)


def _in_flight(server: Server) -> int:
    return server.in_flight


def _ticket(waiter: Waiter) -> int:
    return waiter.ticket
