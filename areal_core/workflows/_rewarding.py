"""Rewards by a function of the user's, where it holds nobody up."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from areal_core import _record
from areal_core._trajectory.arrays import type_of
from areal_core.offload import Names, Place, offloaded_as

RewardFn: TypeAlias = Callable[[list[int], list[int], Any], float | Awaitable[float]]
"""Called with the tokens that the model was asked with, those of its reply, and the item of data."""

_NAMES = Names("reward_fn", "reward_in", "reward_timeout")


class Rewarding:
    """Calls *reward_fn* in the place for it, within *timeout* seconds, and takes only numbers from it."""

    def __init__(self, reward_fn: RewardFn, place: Place, timeout: float | None) -> None:
        self._call: Callable[..., Awaitable[Any]] = offloaded_as(_NAMES, reward_fn, place, timeout)

    async def reward(self, prompt: list[int], output: list[int], data: Any) -> float:
        """Return the reward. Raises what the function raises, and TypeError or ValueError for no number."""
        _say(_record.REWARDED)
        given = await self._call(prompt, output, data)
        _say(_record.PLAYING)
        try:
            reward = float(given)
        except (TypeError, ValueError):
            raise TypeError(f"reward_fn returned {type_of(given)}; return a float") from None
        if not math.isfinite(reward):
            raise ValueError(f"reward_fn returned {reward}; return a finite number")
        return reward


def _say(stage: str) -> None:
    """Note what the episode does, for whoever asks why it takes so long."""
    record = _record.current.get()
    if record is not None:
        record.enter(stage)
