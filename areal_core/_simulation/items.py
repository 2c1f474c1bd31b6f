"""What the episodes of an item of data will be like, drawn when it is pulled.

So an item that is played again, since its worker died or it was too old, is as long as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from areal_core._simulation.scenario import Scenario

GOOD, REJECTED, FAILED = range(3)


class Part(NamedTuple):
    """One episode."""

    tokens: int
    """Of each of its requests."""
    paces: tuple[float, ...]
    """How many times as long each of its requests takes."""
    tool_s: float
    """What it takes after each of its requests, or instead."""
    end: int
    """What comes of it."""


Item = tuple[Part, ...]
"""One part for each member of the group."""


class Items:
    """A dataloader that never ends. It gives lists of as many items as a batch has."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._dice = np.random.default_rng(scenario.seed)

    def __iter__(self) -> Iterator[list[Item]]:
        scenario = self._scenario
        size, count = scenario.group_size, scenario.config.consumer_batch_size
        while True:
            parts = list(self._parts(count * size))
            yield [tuple(parts[first : first + size]) for first in range(0, len(parts), size)]

    def _parts(self, count: int) -> Iterator[Part]:
        scenario, dice = self._scenario, self._dice
        turns = scenario.turns if scenario.tokens else 1
        tokens = self._lognormal(scenario.tokens, scenario.tokens_sigma, count) / turns
        if scenario.tokens:
            most = math.inf if scenario.tokens_most is None else max(1.0, scenario.tokens_most / turns)
            tokens = np.clip(np.rint(tokens), 1, most)
        paces = np.minimum(
            np.exp(scenario.pace_sigma * dice.standard_normal((count, turns))), scenario.pace_cap
        )
        tools_s = self._lognormal(scenario.tool_s, scenario.tool_sigma, count) / turns
        draws = dice.random(count)
        ends = np.where(
            draws < scenario.failed,
            FAILED,
            np.where(draws < scenario.failed + scenario.rejected, REJECTED, GOOD),
        )
        rows = zip(
            tokens.astype(np.int64).tolist(), paces.tolist(), tools_s.tolist(), ends.tolist(), strict=True
        )
        for each, pace, tool_s, end in rows:
            yield Part(each, tuple(pace), tool_s, end)

    def _lognormal(
        self, mean: float, sigma: float, count: int
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return mean * np.exp(sigma * self._dice.standard_normal(count) - sigma**2 / 2)
