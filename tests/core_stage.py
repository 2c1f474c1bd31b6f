"""The stage of the executor's core in tests: episodes by script, on a clock whose time passes at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from areal_core._executor.playing import Player
from areal_core._executor.rollout import Episode, Rollout, Verdict
from areal_core.types import InferenceEngine, RolloutWorkflow

if TYPE_CHECKING:
    from core_world import World

BY_HAND = math.inf
"""How long an act takes that is to be ended by `Stage.end`."""

Ending = Literal["tokens", "bad", "none", "raises", "times_out", "cancels_itself", "filter_raises"]
ENDINGS: tuple[Ending, ...] = (
    "tokens",
    "bad",
    "none",
    "raises",
    "times_out",
    "cancels_itself",
    "filter_raises",
)


class ScriptedError(Exception):
    """What an act raises that is to raise."""


@dataclass(frozen=True, slots=True)
class Act:
    """How one episode goes."""

    seconds: float = BY_HAND
    ending: Ending = "tokens"
    """``tokens``: a trajectory; ``bad``: one that the filter refuses."""
    segments: int = 1
    """How many requests for tokens it sends, the first at once, the others evenly over its time."""
    versions: tuple[int, ...] | None = None
    """What it says made its tokens; None: the versions when they were sent. One token per segment."""
    loss_mask: tuple[int, ...] | None = None
    """None: 1 for each token."""
    has_versions: bool = True
    has_mask: bool = True
    swallows_s: float = 0.0
    """How long it cleans up when it is told to end."""
    back: int = 0
    """By how many versions it says its tokens to be older than they are."""
    is_over: bool = False
    """Whether it had ended, unnoticed, before it was told to end."""


@dataclass(frozen=True, slots=True)
class Script:
    """An item of data: how its members, and what judges them, go. Each member has the next of *acts*."""

    acts: tuple[Act, ...] = (Act(),)
    judge: Act = field(default=Act(0.0, segments=0))

    def act_of(self, episode: Episode) -> Act:
        return self.judge if episode.is_judge else self.acts[episode.sample_idx % len(self.acts)]


def script(seconds: float = BY_HAND, ending: Ending = "tokens", **act: Any) -> Script:
    """Return one for an episode, or for a group whose members all go alike."""
    return Script((Act(seconds, ending, **act),))


class VirtualTimer:
    """A call that is to come, unless it is cancelled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """A heap of timers; the time is that of the last that rang."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self._now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        assert 0 <= delay_s < math.inf
        timer = VirtualTimer(callback)
        heapq.heappush(self._timers, (self._now + delay_s, next(self._order), timer))
        return timer

    def step(self) -> bool:
        """Ring the next timer; return whether there was one."""
        if self._next() == math.inf:
            return False
        self._now, _, timer = heapq.heappop(self._timers)
        assert timer.callback is not None
        timer.callback()
        return True

    def pass_over(self, seconds: float) -> None:
        """Let *seconds* pass, and what rings meanwhile ring."""
        until = self._now + seconds
        while self._next() <= until:
            self.step()
        self._now = until

    def _next(self) -> float:
        """Return when the next timer rings; never is inf."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf


@dataclass(slots=True, eq=False)
class Play:
    """An episode that is on."""

    episode: Episode
    act: Act
    began: float
    sent: list[int] = field(default_factory=list)
    """The policy version when each of its segments was sent."""
    timers: list[VirtualTimer] = field(default_factory=list)

    def bring(self) -> dict[str, Any] | None:
        """Return or raise what its workflow does at its end."""
        if self.act.ending == "raises":
            raise ScriptedError(f"rollout {self.episode.rollout.task_id}, by its script")
        if self.act.ending == "cancels_itself":
            raise asyncio.CancelledError
        return None if self.act.ending == "none" else self._trajectory()

    def _trajectory(self) -> dict[str, Any]:
        sent = [max(0, version - self.act.back) for version in self.sent]
        versions = sent if self.act.versions is None else self.act.versions
        count = len(versions)
        result: dict[str, Any] = {
            "input_ids": np.full((1, count + 1), self.episode.rollout.task_id),
            "attention_mask": np.ones((1, count + 1), np.int8),
            "rewards": np.array([{"bad": 0.0, "filter_raises": math.nan}.get(self.act.ending, 1.0)]),
        }
        if self.act.has_versions:
            result["versions"] = np.array([[-1, *versions]])
        if self.act.has_mask:
            result["loss_mask"] = np.array([[0, *(self.act.loss_mask or (1,) * count)]])
        return result


class _Scripted(RolloutWorkflow):
    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any] | None:
        play = cast(Stage, engine).now
        assert play is not None and play.episode.rollout.data is data
        return play.bring()


async def accept_good(trajectory: dict[str, Any]) -> bool:
    """Accept what has a reward; raise for one that is no number."""
    mean = float(trajectory["rewards"].mean())
    if math.isnan(mean):
        raise ScriptedError("the filter, by its script")
    return mean > 0


SCRIPTED = _Scripted()
"""The workflow that does what its `Script` says."""


class Stage:
    """The port: plays episodes by their scripts. Its time and its policy version are the world's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._player = Player(
            cast(InferenceEngine, self), checks_format=False, masks=world.rules.on_stale == "mask"
        )
        self.plays: dict[Episode, Play] = {}
        """Those that are on, in the order they began."""
        self.now: Play | None = None
        """The one whose workflow runs at this moment."""
        self.started: list[Episode] = []
        """All that ever began."""

    def get_version(self) -> int:
        return self._world.version

    def start(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            act = cast(Script, episode.rollout.data).act_of(episode)
            play = self.plays[episode] = Play(episode, act, self._world.time())
            self.started.append(episode)
            self._set_the_timers(play)

    def cancel(self, episode: Episode) -> None:
        play = self.plays.get(episode)
        if play is None:
            return
        for timer in play.timers:
            timer.cancel()
        if play.act.swallows_s < math.inf:
            self._later(play, play.act.swallows_s, lambda: self.end(play))

    def end(self, play: Play, act: Act | None = None) -> None:
        """Let an episode end, by another *act* than planned if one is given."""
        for timer in play.timers:
            timer.cancel()
        del self.plays[play.episode]
        play.act = act or play.act
        self._fill_in(play)
        self._world.post(self._world.core.episodes_ended, [play.episode])

    def send_segment(self, play: Play) -> None:
        """Let an episode send a request for tokens."""
        play.sent.append(self._world.version)
        play.episode.record.segment_sent(self._world.version)

    def play_of(self, rollout: Rollout, member: int = 0) -> Play:
        """Return what is on of *rollout*; member -1 is its judge."""
        found = [one for one in self.plays.values() if one.episode.rollout is rollout]
        return next(one for one in found if one.episode.sample_idx == member)

    def _set_the_timers(self, play: Play) -> None:
        act = play.act
        if act.segments:
            self.send_segment(play)
        if act.seconds == BY_HAND:
            return
        for number in range(1, act.segments):
            self._later(play, act.seconds * number / act.segments, lambda: self.send_segment(play))
        self._later(play, act.seconds, lambda: self.end(play))

    def _later(self, play: Play, delay_s: float, callback: Callable[[], None]) -> None:
        play.timers.append(self._world.clock.call_later(delay_s, callback))

    def _fill_in(self, play: Play) -> None:
        episode = play.episode
        episode.seconds = self._world.time() - play.began
        if episode.told_to_end and not play.act.is_over:
            episode.error = asyncio.CancelledError()
        elif play.act.ending == "times_out":
            episode.error, episode.timed_out = TimeoutError("by its script"), True
        else:
            self._perform(play)

    def _perform(self, play: Play) -> None:
        episode, self.now = play.episode, play
        coroutine = self._player.play(episode)
        try:
            episode.rollout.context.copy().run(coroutine.send, None)
        except StopIteration as end:
            episode.verdict = cast(Verdict, end.value)
        except BaseException as error:
            episode.error = error
        else:
            raise AssertionError("the player waits for something")
        finally:
            self.now = None
