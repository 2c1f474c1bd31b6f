"""A worker: the floor it plays on, its loop, its engine, and what it tells of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from msgspec import Struct

from areal_core import _record
from areal_core._distributed.leases import Ended, Report
from areal_core._distributed.pace import enough
from areal_core._distributed.wire import HELD
from areal_core._engine.server import Pin
from areal_core._executor.freshness import UNKNOWN, Ages
from areal_core._executor.rollout import Verdict
from areal_core._simulation.clock import VirtualClock, VirtualThread
from areal_core._simulation.items import FAILED, REJECTED, Item, Part
from areal_core._simulation.outbox import VirtualOutbox
from areal_core._simulation.routing import Asked
from areal_core._simulation.scenario import Costs
from areal_core._simulation.server import InferenceServer, Request, Spans

_JUDGE = -1
_NOTHING = Part(0, (), 0.0, 0)
_WHOLE: dict[str, Any] = {"rewards": None}
"""Stands for a trajectory of one version: the driver never has to look into that."""
_HELD = Verdict(HELD)
_SAID_NO = Verdict(None, "as it was drawn")
_WITHOUT_VERSIONS = Verdict(_WHOLE)
_RAISED = RuntimeError("the episode raised, as it was drawn")


class Given(NamedTuple):
    """What is lent: a parcel, whether it is new there, its item, its size, and who of it is to be played."""

    parcel: int
    is_first: bool
    item: Item
    size: int
    places: Sequence[int]


class Message(Struct):
    """What the driver sends a worker at once."""

    version: int
    is_paused: bool
    give: list[Given] = []
    cancel: list[tuple[int, int]] = []
    forget: list[int] = []
    takes_back: bool = False


class Engine(Protocol):
    """What a worker gets its tokens from."""

    def ask(self, tokens: int, pace: float, pin: Pin, on_end: Callable[[Asked], None]) -> Asked:
        """Have *tokens* made; *on_end* is called when they are there."""

    def cancel(self, asked: Asked) -> None:
        """End what *asked*."""

    def died(self, server: InferenceServer, left: set[Request]) -> list[Asked]:
        """Have what was *left* by a server that died go on elsewhere; return what does."""

    def came_back(self, server: InferenceServer) -> None:
        """Take a server into rotation again."""


class Play(Struct, eq=False):
    """An episode at a worker."""

    parcel: int
    place: int
    size: int
    part: Part
    began: float = 0.0
    turn: int = 0
    segments: int = 0
    newest: int | None = None
    asked: Asked | None = None
    pin: Pin | None = None
    spans: Spans = []
    error: BaseException | None = None
    is_gone: bool = False
    """Whether its end is decided."""


class VirtualWorker:
    """Plays what it is given, *slots* episodes at once. *send* takes its reports to the driver."""

    def __init__(
        self,
        number: int,
        slots: int,
        clock: VirtualClock,
        costs: Costs,
        compute_s: float,
        engine: Engine,
        send: Callable[[VirtualWorker, Report], None],
    ) -> None:
        self.number = number
        self._slots = slots
        self._clock = clock
        self._costs = costs
        self._episode_s = costs.worker_episode_s + compute_s
        self.engine = engine
        self._send = send
        self.loop = VirtualThread(clock)
        self.outbox = VirtualOutbox(clock, enough(slots), self._ship)
        self.is_alive = True
        self._version = 0
        self._is_held = False
        self._pending: deque[Play] = deque()
        self._running: dict[tuple[int, int], Play] = {}
        self._asking: dict[Asked, Play] = {}
        self._groups: dict[int, list[Spans]] = {}  # what members brought, for their judges
        self._items: dict[int, tuple[Item, int]] = {}
        self._news: dict[tuple[int, int], Play] = {}  # whose stages are others since the last report
        self._returns: list[tuple[int, int]] = []

    # -- what comes from the driver ----------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message, which has just arrived."""
        if self.is_alive:
            costs = self._costs
            self.loop.put((costs.worker_exchange_s + costs.ray_worker_s) / 2, self._follow, message)

    def fetch(self, linger_s: float, beat_s: float) -> None:
        """Take a call for what has ended, which has just arrived."""
        if self.is_alive:
            self.outbox.fetch(linger_s, beat_s)

    def _follow(self, message: Message) -> None:
        if not self.is_alive:
            return
        self._version, self._is_held = message.version, message.is_paused
        for given in message.give:
            if given.is_first:
                self._items[given.parcel] = given.item, given.size
            item, size = self._items[given.parcel]
            if size == 1:
                del self._items[given.parcel]
            for place in given.places:
                part = item[place] if place != _JUDGE else _NOTHING
                self._pending.append(Play(given.parcel, place, size, part))
        for key in message.cancel:
            self._cancel(key)
        for parcel in message.forget:
            self._items.pop(parcel, None)
            self._groups.pop(parcel, None)
        if message.takes_back:
            self._returns += [(play.parcel, play.place) for play in self._pending]
            self._pending.clear()
            self.outbox.put((), is_last=True)
        self._start()

    def _cancel(self, key: tuple[int, int]) -> None:
        play = self._running.get(key)
        if play is None:
            play = next((one for one in self._pending if (one.parcel, one.place) == key), None)
            if play is None:
                return
            self._pending.remove(play)
            play.began = self._clock.time()
        if play.is_gone:
            return
        play.error = asyncio.CancelledError()
        if play.asked is not None:
            self.engine.cancel(play.asked)
            self._heard(play, play.asked)
        self._end(play)

    # -- its loop ----------------------------------------------------------------------------------

    def _start(self) -> None:
        room = self._slots - len(self._running)
        if self._is_held or room <= 0 or not self._pending:
            return
        plays = [self._pending.popleft() for _ in range(min(room, len(self._pending)))]
        now, instant = self._clock.time(), []
        for play in plays:
            play.began = now
            self._running[play.parcel, play.place] = play
            if play.part.tokens or play.part.tool_s:
                self.loop.put(self._episode_s, self._began, [play])
            else:
                instant.append(play)
        if instant:  # they end in one turn of the loop, and are told of together
            self.loop.put(len(instant) * self._episode_s, self._began, instant)

    def _began(self, plays: Iterable[Play]) -> None:
        if not self.is_alive:
            return
        ended = [play for play in plays if not play.is_gone and not self._go_on(play)]
        if ended:
            self._publish(ended)

    def _go_on(self, play: Play) -> bool:
        """Have an episode do what comes next; return whether there is anything."""
        part = play.part
        if play.turn >= len(part.paces):
            return False
        if part.tokens:
            self.loop.put(self._costs.worker_request_s, self._ask, play)
        else:
            self._use_tools(play)
        return True

    def _ask(self, play: Play) -> None:
        if not self.is_alive or play.is_gone:
            return
        play.pin = play.pin or Pin()
        part = play.part
        self._sent(play)
        play.asked = asked = self.engine.ask(part.tokens, part.paces[play.turn], play.pin, self._answered)
        self._asking[asked] = play

    def _answered(self, asked: Asked) -> None:
        play = self._asking[asked]
        tokens = play.part.tokens
        self._heard(play, asked)
        self.loop.put(tokens * self._costs.worker_token_s, self._use_tools, play)

    def _heard(self, play: Play, asked: Asked) -> None:
        del self._asking[asked]
        play.asked = None
        play.spans = [*play.spans, *asked.request.spans]

    def _use_tools(self, play: Play) -> None:
        if play.part.tool_s:
            self._clock.at(self._clock.time() + play.part.tool_s, self._wake, play)
        else:
            self._used_tools(play)

    def _wake(self, play: Play) -> None:
        if self.is_alive and not play.is_gone:
            self.loop.put(self._costs.worker_pause_s, self._used_tools, play)

    def _used_tools(self, play: Play) -> None:
        play.turn += 1
        if self.is_alive and not play.is_gone and not self._go_on(play):
            self._end(play)

    def _end(self, play: Play) -> None:
        play.is_gone = True
        self.loop.put(0.0, self._publish, [play])

    def _publish(self, plays: Sequence[Play]) -> None:
        """Send what has ended, and begin what waited for its slots."""
        if not self.is_alive:
            return
        for play in plays:
            play.is_gone = True
            self._running.pop((play.parcel, play.place), None)
            self._news.pop((play.parcel, play.place), None)
        self._start()
        ended = [self._ended(play) for play in plays]
        self.outbox.put(ended, is_last=not self._running and not self._pending)

    # -- what it tells of --------------------------------------------------------------------------

    def _ended(self, play: Play) -> Ended:
        error = play.error or (_RAISED if play.part.end == FAILED else None)
        verdict = None if error is not None else self._verdict(play)
        seconds = self._clock.time() - play.began
        figures = (play.segments, play.newest, seconds, 0.0, 0.0)
        return Ended(play.parcel, play.place, verdict, error, False, seconds, figures)

    def _verdict(self, play: Play) -> Verdict:
        if play.place == _JUDGE:
            spans = [span for one in self._groups.pop(play.parcel, ()) for span in one]
            return _judged(spans)
        if play.part.end == REJECTED:
            return _SAID_NO
        if play.size > 1:
            self._groups.setdefault(play.parcel, []).append(play.spans)
            return _HELD
        return _judged(play.spans)

    def _ship(self, things: list[Ended]) -> None:
        costs = self._costs
        self.loop.put((costs.worker_exchange_s + costs.ray_worker_s) / 2, self._shipped, things)

    def _shipped(self, things: list[Ended]) -> None:
        if not self.is_alive:
            return
        stages = [
            (play.parcel, play.place, (_record.GENERATING, "a server", 0.0, play.segments, play.newest))
            for play in self._news.values()
        ]
        self._news.clear()
        returned, self._returns = self._returns, []
        self._send(self, Report(things, returned, stages))

    def _sent(self, play: Play) -> None:
        play.segments += 1
        play.newest = self._version
        self._news[play.parcel, play.place] = play

    # -- what happens to it ------------------------------------------------------------------------

    def continued(self, version: int) -> None:
        """Send again what was interrupted for new weights, at their *version*."""
        self._version = max(self._version, version)
        self._send_again(self._asking.values())

    def lost_server(self, server: InferenceServer, left: set[Request]) -> None:
        """Have what was *left* by a server that died go on elsewhere."""
        self._send_again([self._asking[asked] for asked in self.engine.died(server, left)])

    def _send_again(self, plays: Iterable[Play]) -> None:
        count = 0
        for play in plays:
            self._sent(play)
            count += 1
        if count:
            self.loop.put(count * self._costs.worker_request_s, _nothing)

    def die(self) -> float:
        """Be no more; return how many seconds of episodes are lost with it."""
        self.is_alive = False
        now = self._clock.time()
        lost_s = sum(now - play.began for play in self._running.values())
        lost_s += sum(one.seconds for one in self.outbox.things)
        for asked in list(self._asking):
            self.engine.cancel(asked)
        return lost_s


def _judged(spans: Spans) -> Verdict:
    """Return what is made of tokens of these versions; arrays only where it takes some to mask them."""
    if not spans:
        return _WITHOUT_VERSIONS
    versions = [version for version, _ in spans]
    counts = [tokens for _, tokens in spans]
    ages = Ages(min(versions), max(versions), sum(counts)) if sum(counts) else UNKNOWN
    if ages.oldest == ages.newest:
        return Verdict(_WHOLE, ages=ages)
    made = np.repeat(np.array(versions), counts)
    return Verdict({"versions": made, "loss_mask": np.ones_like(made)}, ages=ages)


def _nothing() -> None:
    pass
