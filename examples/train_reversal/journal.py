"""What happened in a run, step by step: all that is shown is read from here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from areal_core import RolloutLedger, StalenessReport
from areal_core.distributed import WorkerStats
from reversal import Answer, Trajectory, answers

SOLVED = 0.9
"""The mean reward of a batch at which the task counts as learned."""


@dataclass(frozen=True)
class Step:
    """One batch, and what became of it."""

    seconds: float
    """From the start of the run to the end of the step."""
    waited: float
    """Seconds for which the trainer had no batch."""
    reward: float
    """The mean of the batch."""
    ages: Sequence[int]
    """How many tokens were trained on that are 0, 1, 2, ... versions older than the policy they train."""
    masked: int
    """How many tokens came with them and were not trained on, because they are too old."""
    resumed: int
    """How often these answers were cut off by new weights, and went on with them."""

    @property
    def trained(self) -> int:
        """How many tokens were trained on."""
        return sum(self.ages)

    @property
    def mean_staleness(self) -> float:
        """The mean age of the tokens trained on, in versions."""
        return sum(age * count for age, count in enumerate(self.ages)) / max(1, self.trained)

    @property
    def max_staleness(self) -> int:
        """The age of the oldest."""
        return max((age for age, count in enumerate(self.ages) if count), default=0)


@dataclass
class Journal:
    """One run."""

    name: str
    max_staleness: int
    """The bound."""
    steps: list[Step] = field(default_factory=list)
    samples: int = 0
    """How many answers were delivered."""
    before: list[Answer] = field(default_factory=list)
    """What the untrained policy answers to some questions, greedily."""
    after: list[Answer] = field(default_factory=list)
    """What the trained one does."""
    interrupted: Answer | None = None
    """The last of the answers with tokens of the most versions; None: none has more than one."""
    running: int = 0
    """How many groups were under way when the last batch was delivered."""
    aborted: int = 0
    """How many answers the server was told to cut off."""
    ledger: RolloutLedger = field(default_factory=RolloutLedger)
    """Where all groups are, in the end."""
    report: StalenessReport | None = None
    """What the executor says of what it delivered; None before the end."""
    workers: Sequence[WorkerStats] = ()
    """Those that play in the end; none where this process plays."""
    _started: float = 0.0
    _asked: float = 0.0
    _got: float = 0.0
    _batch: Sequence[Trajectory] = ()
    _version: int = 0

    def start(self) -> None:
        """Let the time begin."""
        self._started = self._asked = time.monotonic()

    def delivered(self, batch: Sequence[Trajectory], version: int, running: int) -> None:
        """Note that *batch* is here for the policy of *version*, while *running* groups are under way."""
        self._got = time.monotonic()
        self._batch, self._version, self.running = batch, version, running

    def updated(self) -> None:
        """Note that the server has the new weights."""
        batch, waited = self._batch, self._got - self._asked
        self._asked = time.monotonic()
        self.steps.append(step_of(batch, self._version, waited, self._asked - self._started))
        self.samples += sum(len(group["rewards"]) for group in batch)
        found = [one for group in batch for one in answers(group) if len(set(one.versions)) > 1]
        # max() takes the first of equals. The last is the likeliest to be right.
        found = [*reversed(found), *([self.interrupted] if self.interrupted else [])]
        self.interrupted = max(found, key=lambda one: len(set(one.versions)), default=None)

    @property
    def seconds(self) -> float:
        """How long the training has taken."""
        return self.steps[-1].seconds if self.steps else 0.0

    @property
    def solved_after(self) -> float | None:
        """Seconds to the end of the first step with a mean reward of `SOLVED`; None: there is none."""
        return next((step.seconds for step in self.steps if step.reward >= SOLVED), None)

    @property
    def idle(self) -> float:
        """The share of the time for which the trainer waited for a batch."""
        return sum(step.waited for step in self.steps) / self.seconds

    @property
    def tokens(self) -> int:
        """How many tokens the delivered answers have."""
        return sum(step.trained + step.masked for step in self.steps)

    @property
    def masked(self) -> int:
        """How many of them were not trained on."""
        return sum(step.masked for step in self.steps)

    @property
    def over(self) -> int:
        """How many were trained on though they are older than the bound. There may be none."""
        return sum(sum(step.ages[self.max_staleness + 1 :]) for step in self.steps)

    @property
    def is_sound(self) -> bool:
        """Whether no token trained on is over the bound, and every group is somewhere."""
        books = self.ledger
        places = books.pending + books.running + books.finished + books.collected + books.discarded
        return self.over == 0 and books.submitted == places

    @property
    def died(self) -> int:
        """How many workers have died: each was replaced, by one with the next number."""
        return max((worker.number for worker in self.workers), default=0) - len(self.workers)

    @property
    def resumed(self) -> int:
        """How often answers went on with new weights."""
        return sum(step.resumed for step in self.steps)

    @property
    def mean_staleness(self) -> float:
        """The mean over all tokens trained on."""
        total = sum(step.mean_staleness * step.trained for step in self.steps)
        return total / max(1, sum(step.trained for step in self.steps))


def step_of(batch: Sequence[Trajectory], version: int, waited: float, seconds: float) -> Step:
    """Return the figures of a *batch* that the policy of *version* was trained on."""
    ages = np.concatenate([version - group["versions"][group["loss_mask"] > 0] for group in batch])
    tokens = sum(int((group["versions"] >= 0).sum()) for group in batch)
    return Step(
        seconds=seconds,
        waited=waited,
        reward=float(np.concatenate([group["rewards"] for group in batch]).mean()),
        ages=np.bincount(ages).tolist(),
        masked=tokens - len(ages),
        resumed=sum(int((group["segments"] - 1).sum()) for group in batch),
    )
