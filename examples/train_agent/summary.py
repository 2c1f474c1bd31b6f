"""What happened, step by step, and what is printed of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server_log import ServerLog, Trajectory, replies_in

ENOUGH = 0.8
"""What the mean reward has to exceed at the end: without the tool it is 0.5 at best."""
_AT_AN_END = 3
"""How many steps are the first, and the last: one batch has few questions."""
_LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Step:
    """One batch."""

    reward: float
    """The mean."""
    episodes: int
    rows: int
    """In how many rows they are trained: one each, where every call goes on with the tokens of the last."""
    with_tool: int
    """How many used the tool."""


class Summary:
    """A run of so many *steps*."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done: list[Step] = []
        self._began = time.monotonic()
        self._said_at = 0.0

    def add(self, batch: Sequence[Trajectory]) -> None:
        """Add the next step, and print a line if it is time for one."""
        self._done.append(step_of(batch))
        seconds = time.monotonic() - self._began
        if len(self._done) in (1, self._steps) or seconds - self._said_at > _LINE_EVERY_S:
            self._said_at = seconds
            here = self._done[-1:]
            print(
                f"step {len(self._done):>2}/{self._steps}  {seconds:4.1f} s  "
                f"reward {_reward(here):.2f}  tool used in {_with_tool(here):4.0%} of the episodes",
                flush=True,
            )

    def show(self, log: ServerLog) -> None:
        """Print how it went, and what the server's *log* says of it."""
        first, last = self._done[:_AT_AN_END], self._done[-_AT_AN_END:]
        episodes = sum(step.episodes for step in self._done)
        rows = sum(step.rows for step in self._done)
        print(f"""
                    first {len(first)} steps    last {len(last)}
mean reward         {_reward(first):13.2f}  {_reward(last):8.2f}
used the tool       {_with_tool(first):13.0%}  {_with_tool(last):8.0%}

{episodes:,} episodes in {time.monotonic() - self._began:.1f} s, {rows / episodes:.2f} rows for each
{log.checked:,} rows compared with the server's log, {len(log.wrong):,} of them wrong""")
        for text in log.wrong[:_AT_AN_END]:
            print(f"wrong: {text}")

    @property
    def is_learned(self) -> bool:
        """Whether it has come so far as only an agent with a tool can."""
        return _reward(self._done[-_AT_AN_END:]) > ENOUGH


def step_of(batch: Sequence[Trajectory]) -> Step:
    """Return what there is to know of a *batch*."""
    turns = [len(list(replies_in(versions))) for group in batch for versions in group["versions"].tolist()]
    return Step(
        reward=float(np.concatenate([group["rewards"] for group in batch]).mean()),
        episodes=sum(len(np.unique(group["sample_idx"])) for group in batch),
        rows=len(turns),
        with_tool=sum(count > 1 for count in turns),
    )


def _reward(steps: Sequence[Step]) -> float:
    return sum(step.reward for step in steps) / len(steps)


def _with_tool(steps: Sequence[Step]) -> float:
    return sum(step.with_tool for step in steps) / sum(step.episodes for step in steps)
