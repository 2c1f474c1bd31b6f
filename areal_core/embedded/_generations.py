"""The generations a server is running, whatever dialect asked for them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ._options import ServerOptions
from ._pace import ms_per_token
from ._stats import Counters
from ._tokens import Completion, Sampling, complete


class DuplicateIdError(Exception):
    """A request with the id that is the only argument is running already."""


@dataclass(frozen=True)
class Ask:
    """One prompt to generate from, in the words of no dialect."""

    rid: str
    prompt: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True)
class Generated:
    """What became of an `Ask`."""

    completion: Completion
    started: float
    """On the loop's clock."""


class Generations:
    """Run generations: one timer each, set to the moment its last token is due."""

    def __init__(self, options: ServerOptions, counters: Counters) -> None:
        self._options = options
        self._counters = counters
        self._numbers = itertools.count()
        self._ends: dict[str, asyncio.Future[Generated]] = {}

    def new_id(self) -> str:
        """Make up the id of a request that came without one.

        Drawn from the seed and the order of arrival, so that the paces of a run repeat in the next.
        All have one length, so that none is a prefix of another.
        """
        key = f"{self._options.seed}/{next(self._numbers)}".encode()
        return hashlib.blake2b(key, digest_size=16).hexdigest()

    async def generate(self, asks: Sequence[Ask]) -> list[Generated]:
        """Return what became of each of *asks*, when the slowest is done. Cancelling cancels all.

        Raises DuplicateIdError, and starts none, if an id is in use already.
        """
        ids: set[str] = set()
        for ask in asks:
            if ask.rid in self._ends or ask.rid in ids:
                raise DuplicateIdError(ask.rid)
            ids.add(ask.rid)
        return await asyncio.gather(*[self._start(ask) for ask in asks])

    def _start(self, ask: Ask) -> asyncio.Future[Generated]:
        loop = asyncio.get_running_loop()
        completion = complete(ask.prompt, ask.sampling)
        seconds = len(completion.tokens) * ms_per_token(ask.rid, self._options) / 1000
        end: asyncio.Future[Generated] = loop.create_future()
        timer = loop.call_later(seconds, _finish, end, Generated(completion, loop.time()))
        # The first callback of the future: who waits for it finds the counters right.
        end.add_done_callback(partial(self._ended, ask.rid, timer))
        self._ends[ask.rid] = end
        self._counters.add(generations=1, in_flight=1)
        return end

    def _ended(self, rid: str, timer: asyncio.TimerHandle, end: asyncio.Future[Generated]) -> None:
        timer.cancel()
        del self._ends[rid]
        self._counters.add(**{"cancelled" if end.cancelled() else "completed": 1, "in_flight": -1})


def _finish(end: asyncio.Future[Generated], generated: Generated) -> None:
    if not end.done():
        end.set_result(generated)
