"""A worker on virtual time: the library's floor and outbox, and a loop that the test lets turn or hang."""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from areal_core._distributed.floor import Floor
from areal_core._distributed.outbox import Outbox
from areal_core._distributed.wire import Shipment, decode, ship
from areal_core._executor.local_desk import EpisodeJob
from areal_core._executor.playing import Player
from areal_core._runner.life import Life
from areal_core.types import InferenceEngine
from core_stage import Act, Play, Script

if TYPE_CHECKING:
    from far_world import FarWorld


class FarWorker:
    """A worker: its floor, on a loop that turns when nothing hangs on it, and the plays of its episodes."""

    def __init__(self, world: FarWorld, number: int, slots: int) -> None:
        self._world = world
        self.number = number
        self.version = 0
        self.slots = slots
        self.letters: deque[bytes] = deque()
        self.reports: deque[Shipment] = deque()
        self.plans: dict[Any, int] = {}
        self.plays: dict[EpisodeJob, Play] = {}
        self.now: Play | None = None
        """Whose workflow runs at this moment."""
        self.is_dead = False
        self.is_buried = False
        """Whether the dispatcher was told."""
        self.hangs_since: float | None = None
        self._waiting: list[Callable[[], None]] = []
        self._order = -1
        self._returns = False
        self._out = Outbox(1)
        player = Player(
            cast(InferenceEngine, self), checks_format=False, masks=world.rules.on_stale == "mask"
        )
        self.floor = Floor(cast(Life, self), player, slots, None, self._out, pickle.loads)

    # -- the runner, as the floor knows it ---------------------------------------------------------

    @property
    def thread(self) -> FarWorker:
        return self

    def host(self, guest: object) -> FarWorker:
        return self

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        if self.hangs_since is None:
            callback(*args)
        else:
            self._waiting.append(lambda: callback(*args))

    def launch(self, jobs: Sequence[EpisodeJob]) -> None:
        for job in jobs:
            act = cast(Script, job.episode.rollout.data).act_of(job.episode)
            play = self.plays[job] = Play(job.episode, act, self._world.time())
            assert len(self.plays) <= self.slots
            if act.segments:
                self.send_segment(play)

    def cancel(self, job: EpisodeJob) -> None:
        self._world.clock.call_later(0.0, lambda: self.post(self._end_cancelled, job))

    def _end_cancelled(self, job: EpisodeJob) -> None:
        if job in self.plays:
            self.end(job)

    # -- what its calls do -------------------------------------------------------------------------

    def get_version(self) -> int:
        return self.version

    def read_letter(self) -> None:
        orders = decode(self.letters.popleft())
        if orders.number > self._order:
            self._order, self.version = orders.number, orders.version
        self.floor.give(orders)
        self._returns = self._returns or orders.takes_back

    def write_report(self) -> None:
        ended, returned = self._out.take(0.0, 0.0), []
        if self._returns:
            self._returns, returned = False, self.floor.returned()
        stalled_s = 0.0 if self.hangs_since is None else self._world.time() - self.hangs_since
        self.reports.append(ship(ended, returned, self.floor.stages(), stalled_s, pickle.dumps))

    def has_unsaid_ends(self) -> bool:
        """Return whether something has ended that the dispatcher does not know of."""
        return bool(self.reports or self._out._things)

    # -- what happens there ------------------------------------------------------------------------

    def hang(self) -> None:
        if self.hangs_since is None:
            self.hangs_since = self._world.time()

    def turn(self) -> None:
        """Let its loop turn again."""
        self.hangs_since = None
        while self._waiting:
            self._waiting.pop(0)()

    def send_segment(self, play: Play) -> None:
        play.sent.append(self.version)
        play.episode.record.segment_sent(self.version)

    def end(self, job: EpisodeJob, act: Act | None = None) -> None:
        """Let an episode end, by another *act* than planned if one is given."""
        play = self.plays.pop(job)
        play.act = act or play.act
        job.create_time = 1 + int(play.began * 1e9)
        job.end(1 + int(self._world.time() * 1e9))
        if job.decision is not None:
            job.error = asyncio.CancelledError()
        elif play.act.ending == "times_out":
            job.decision = "timed_out"
        else:
            self._perform(job, play)
        self.floor.publish([job])

    def _perform(self, job: EpisodeJob, play: Play) -> None:
        self.now = play
        coroutine = job.fn(*job.args)
        try:
            job.context.run(coroutine.send, None)
        except StopIteration as end:
            job.data = end.value
            if job.episode.rollout.plan.group_size > 1 and not job.episode.is_judge and job.data.trajectory:
                job.data.trajectory["input_ids"][0, 0] = job.episode.sample_idx
        except BaseException as error:
            job.error = error
        else:
            raise AssertionError("the player waits for something")
        finally:
            self.now = None
