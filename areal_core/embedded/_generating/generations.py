"""The generations a server runs, whatever dialect asked for them.

```text
  start() --> gated --> queued --> running --> ended
             (paused)   (slots)       |
                          ^-requeue()-'   each tick: make what is due, show it, end what has ended
```

How a dialect uses it: it turns a request into `Ask` objects and starts them; leaving the block cancels
what has not ended, so that a client that hangs up takes its generations along:

```python
with generations.start(asks) as started:  # raises DuplicateIdError, PromptError
    for generation in await started.ended():  # a whole reply
        generation.tokens(), generation.logprobs(), generation.spans(), generation.finish
with generations.start(asks, streamed=True) as started:
    async for generation in started:  # each time one has more tokens, or has ended
        generation.tokens(seen)  # those from number `seen` on
```

Its words for control are these. `abort` ends those that a predicate picks, with the tokens they have.
`close` has what comes from now on wait ("gated"); `freeze` stops the clock of those that run; `requeue`
sends them back to wait for a slot; `resume` undoes all of it. `idle` waits until none is queued or
running. `swap` changes the weights between two tokens; inside ``async with drained()`` none is running.
A pause that aborts is ``close(); abort(generations.live)``, one that keeps is ``close(); freeze()``.

All of it is called on the loop's thread, and what does not await happens at once: nothing is generated
between two calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from areal_core.embedded._fault_script import ABORT_AFTER
from areal_core.embedded._generating.agenda import Agenda
from areal_core.embedded._generating.clock import RunningClock
from areal_core.embedded._generating.drafts import make
from areal_core.embedded._generating.generation import Ask, Generation
from areal_core.embedded._generating.log import EventLog
from areal_core.embedded._generating.pace import ms_per_token, request_of
from areal_core.embedded._generating.started import Started
from areal_core.embedded._models.model import Model
from areal_core.embedded._models.tokens import Finish, Prefix
from areal_core.embedded._models.weights import Weights
from areal_core.embedded._options import ServerOptions
from areal_core.embedded._stats import Counters

# At most so often are those that are due looked at: a thousand that run make one timer, not a thousand.
_TICK_S = 0.004


class DuplicateIdError(Exception):
    """A request with the id that is the only argument is running already."""


class Generations:
    """Run generations, each at its own pace, with one timer for all of them."""

    def __init__(
        self,
        options: ServerOptions,
        counters: Counters,
        model: Model,
        weights: Weights,
        clock: RunningClock | None = None,
    ) -> None:
        self.model = model
        self.weights = weights
        """Those that make the next token."""
        self.log = EventLog()
        self._options = options
        self._counters = counters
        self._clock = clock or RunningClock()
        self._numbers = itertools.count()
        self._listeners: dict[Generation, Started] = {}
        # Each generation that has not ended is in one of these, by its id.
        self._gated: dict[str, Generation] = {}
        self._queued: dict[str, Generation] = {}
        self._running: dict[str, Generation] = {}
        self._draining = 0
        self._idle: list[asyncio.Future[None]] = []
        self.log.write("weights", version=weights.version, label=weights.label)
        self._agenda = Agenda(self._clock, _TICK_S if options.ms_per_token else 0.0, self._tick)

    @property
    def paused(self) -> bool:
        """Whether what comes now waits until `resume`."""
        return self._counters.stats.paused

    @property
    def frozen(self) -> bool:
        """Whether the time of those that run stands still."""
        return self._clock.frozen

    @property
    def running(self) -> int:
        """How many have a slot."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """How many wait for a slot."""
        return len(self._queued)

    def live(self, generation: Generation) -> bool:
        """Return whether *generation* runs or waits for a slot: what waits for the end of a pause is not."""
        return generation.id in self._running or generation.id in self._queued

    def new_id(self) -> str:
        """Make up the id of a request that came without one.

        Drawn from the seed and the order of arrival, so that the paces of a run repeat in the next.
        All have one length, so that none is a prefix of another.
        """
        key = f"{self._options.seed}/{next(self._numbers)}".encode()
        return hashlib.blake2b(key, digest_size=16).hexdigest()

    # Starting and ending

    @contextmanager
    def start(self, asks: Sequence[Ask], streamed: bool = False) -> Iterator[Started]:
        """Take *asks* on; at the end of the block, cancel what has not ended.

        Raises DuplicateIdError, and takes none on, if an id is in use already; PromptError for a
        prompt that the model cannot read.
        """
        self._check(asks)
        generations = [self._accept(ask) for ask in asks]
        started = Started(generations, streamed)
        for generation in generations:
            self._listeners[generation] = started
        try:
            self._admit()
            yield started
        finally:
            left = [one for one in generations if one.finish is None]
            for generation in left:
                generation.show(self._clock.now())
                self._end(generation, Finish("abort", message="the client went away"), "disconnect")
            if left:
                self._admit()

    def abort(self, chosen: Callable[[Generation], bool], running: str, queued: str) -> int:
        """End those that are *chosen*, with the tokens they have; return how many.

        *running* is the message for those that run, *queued* for those that wait.
        """
        waiting = [one for one in (*self._queued.values(), *self._gated.values()) if chosen(one)]
        cut = self._caught_up(list(filter(chosen, self._running.values())))
        for generation in (*cut, *waiting):
            message = running if generation.id in self._running else queued
            self._end(generation, Finish("abort", message=message), "abort")
        self._admit()
        return len(cut) + len(waiting)

    # Pausing

    def close(self) -> None:
        """Have what comes from now on wait until `resume`."""
        self._counters.set_paused(True)

    def freeze(self) -> None:
        """Stop the time of those that run until `resume`: they have the tokens that are due now."""
        self._caught_up(self._running.values())
        self._clock.freeze()
        self._admit()

    def requeue(self) -> None:
        """Send those that run back to wait for a slot, before all others, with the tokens they have."""
        now = self._clock.now()
        halted = self._caught_up(self._running.values())
        for generation in halted:
            generation.halt(now)
        self._queued = self._running | self._queued
        self._running = {}
        self._admit()

    def resume(self) -> None:
        """Let those run that wait, and the time of the others go on."""
        self._counters.set_paused(False)
        self._clock.thaw()
        self._admit()

    async def idle(self) -> None:
        """Wait until none runs or waits for a slot."""
        while self._running or self._queued:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            try:
                await waiter
            finally:
                self._idle.remove(waiter)

    # Weights

    def swap(self, weights: Weights) -> None:
        """Make all tokens from now on with *weights*, those of running generations too."""
        self._caught_up(self._running.values())
        for generation in (*self._running.values(), *self._queued.values()):
            generation.cut()
        self.weights = weights
        self.log.write("weights", version=weights.version, label=weights.label)
        self._draft(self._running.values())
        self._admit()

    @asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Run the block when none runs or waits for a slot, and keep others from doing so meanwhile."""
        self._draining += 1
        try:
            await self.idle()
            yield
        finally:
            self._draining -= 1
            self._admit()

    # How it is done

    def _check(self, asks: Sequence[Ask]) -> None:
        ids: set[str] = set()
        for ask in asks:
            if ask.id in ids or any(ask.id in some for some in (self._gated, self._queued, self._running)):
                raise DuplicateIdError(ask.id)
            ids.add(ask.id)
            self.model.room(ask.prompt)

    def _accept(self, ask: Ask) -> Generation:
        prefix = Prefix(f"{self._options.seed}:{request_of(ask.id)}", ask.prompt, ask.sampling)
        most = min(ask.sampling.max_new_tokens, self.model.room(ask.prompt))
        pace_s = ms_per_token(ask.id, self._options) / 1000
        generation = Generation(ask, prefix, most, pace_s, time.monotonic(), ABORT_AFTER.get())
        self._gated[ask.id] = generation
        self._counters.add(generations=1, in_flight=1)
        return generation

    def _admit(self) -> None:
        """Let as many run as may: every decision about who runs is made here."""
        if not self.paused and not self._draining and self._gated:
            for generation in self._gated.values():
                more = {"input_ids": list(generation.prompt)} if self._options.log_tokens else {}
                self.log.write("start", id=generation.id, prompt_tokens=len(generation.prompt), **more)
            self._queued |= self._gated
            self._gated = {}
        slots = self._options.slots
        beginning = []
        while self._queued and not self._clock.frozen and (not slots or len(self._running) < slots):
            generation = self._queued.pop(next(iter(self._queued)))
            generation.begin(self._clock.now())
            self._running[generation.id] = generation
            beginning.append(generation)
        # Only now: what begins at once has not waited.
        waiting = len(self._gated) + len(self._queued)
        self._counters.add(waiting=waiting - self._counters.stats.waiting)
        if beginning:
            self._draft(beginning)
        elif not self._running and not self._queued:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
        self._agenda.arm()

    def _draft(self, generations: Iterable[Generation]) -> None:
        """Make what *generations* need now, and say when to look at them again."""
        make(self.model, generations, self.weights, self._clock.now())
        for generation in generations:
            self._agenda.put(generation, generation.news_at(self._listeners[generation].streamed))

    def _tick(self) -> None:
        self._draft(self._caught_up(self._agenda.take(self._clock.now())))
        self._admit()

    def _caught_up(self, generations: Iterable[Generation]) -> list[Generation]:
        """Bring *generations* to what they are now; return those that have not ended by that."""
        now = self._clock.now()
        generations = list(generations)
        make(self.model, generations, self.weights, now)
        for generation in generations:
            news = generation.show(now)
            if generation.drafted is not None and len(generation) == generation.made:
                self._end(generation, generation.drafted, generation.drafted.kind)
            elif news and self._listeners[generation].streamed:
                self._listeners[generation].tell(generation)
        return [one for one in generations if one.finish is None]

    def _end(self, generation: Generation, finish: Finish, how: str) -> None:
        if self.live(generation):
            more = {"output_ids": generation.tokens()} if self._options.log_tokens else {}
            self.log.write(
                "end",
                id=generation.id,
                prompt_tokens=len(generation.prompt),
                tokens=len(generation),
                versions=[[one.weights.version, one.end - one.start] for one in generation.spans()],
                how=how,
                **more,
            )
        for place in (self._gated, self._queued, self._running):
            place.pop(generation.id, None)
        self._agenda.drop(generation)
        generation.finish = finish
        counter = {"abort": "aborted", "disconnect": "cancelled"}.get(how, "completed")
        self._counters.add(**{counter: 1, "in_flight": -1})
        self._listeners.pop(generation).tell(generation)
