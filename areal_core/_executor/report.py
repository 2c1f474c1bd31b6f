"""How stale what was trained on is, and what the bound costs."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from msgspec import Struct

_REMEMBERED = 1000  # of the rollouts that t10 is computed from
_FEWEST = 100  # for a tenth to say something
_FAIR = 0.8


@dataclass(frozen=True, slots=True)
class StalenessReport:
    """What was delivered to the trainer, over the life of the executor object."""

    delivered: int
    """Trajectories that were delivered for training."""

    staleness_mean: float
    """Of them: the policy version at delivery less the oldest that made a token which is trained on."""

    staleness_max: int

    tokens_trained: int
    """Tokens that are trained on."""

    tokens_masked: int
    """Tokens that were too old, so that their ``loss_mask`` is 0."""

    wasted_seconds: float
    """How long episodes ran whose rollouts were then too old."""

    t10: float | None
    """How much of the longest tenth of the last thousand rollouts was trained on, as a share of how much
    of all of them was: 1 is fair, 0 trains without long answers. None before there are a hundred."""


class Trained(Struct, frozen=True):
    """What one delivered trajectory is to the report."""

    task_id: int
    seconds: float
    """How long its rollout ran."""
    staleness: int
    tokens: int
    """Tokens trained on."""
    masked: int
    """Tokens that would have been, and were too old."""


class Tally:
    """Collects the figures of a `StalenessReport`."""

    def __init__(self) -> None:
        self._delivered = 0
        self._staleness_sum = 0
        self._by_staleness: Counter[int] = Counter()
        self._tokens = 0
        self._masked = 0
        self._wasted_s = 0.0
        self._shares: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # seconds, share trained on
        self._since_warning = 0
        self.on_delivered: Callable[[Trained], None] | None = None
        """Called with each, but once where it came back and is delivered again; None: nobody counts, too."""
        self._told: set[int] = set()  # the ids of those that came back, and have not arrived since

    def delivered(self, trained: Trained) -> None:
        """Count a trajectory that was delivered for training."""
        self._count(trained, 1)
        self._note(trained.seconds, _share(trained))
        if self.on_delivered is not None and trained.task_id not in self._told:
            self.on_delivered(trained)

    def came_back(self, trained: Trained) -> None:
        """Count one no more: it has not reached its caller."""
        self._count(trained, -1)
        with contextlib.suppress(ValueError):  # a thousand were noted since
            self._shares.remove((trained.seconds, _share(trained)))
        self._told.add(trained.task_id)

    def arrived(self, task_ids: Iterable[int]) -> None:
        """Forget which of *task_ids* came back before: their callers have them, and may use the ids again."""
        self._told.difference_update(task_ids)

    def _count(self, trained: Trained, change: int) -> None:
        self._delivered += change
        self._staleness_sum += change * trained.staleness
        self._by_staleness[trained.staleness] += change
        self._tokens += change * trained.tokens
        self._masked += change * trained.masked

    def wasted(self, seconds: float, episodes_s: float) -> None:
        """Count a rollout that ran for *seconds*, its episodes for *episodes_s* together, in vain."""
        self._wasted_s += episodes_s
        self._note(seconds, 0.0)

    def warning(self) -> float | None:
        """Return ``t10`` when it is unfair, and was not said to be for the last thousand rollouts."""
        if self._since_warning < _FEWEST:
            return None
        self._since_warning = 0
        t10 = self._t10()
        if t10 is None or t10 >= _FAIR:
            return None
        self._since_warning = _FEWEST - _REMEMBERED
        return t10

    def report(self) -> StalenessReport:
        """Return the figures now."""
        return StalenessReport(
            delivered=self._delivered,
            staleness_mean=self._staleness_sum / self._delivered if self._delivered else 0.0,
            staleness_max=max((one for one, count in self._by_staleness.items() if count), default=0),
            tokens_trained=self._tokens,
            tokens_masked=self._masked,
            wasted_seconds=self._wasted_s,
            t10=self._t10(),
        )

    def _note(self, seconds: float, share: float) -> None:
        self._shares.append((seconds, share))
        self._since_warning += 1

    def _t10(self) -> float | None:
        if len(self._shares) < _FEWEST:
            return None
        longest = sorted(self._shares)[-(len(self._shares) // 10) :]
        of_all = fmean(share for _, share in self._shares)
        return fmean(share for _, share in longest) / of_all if of_all else None


def _share(trained: Trained) -> float:
    """Return how much of it is trained on."""
    whole = trained.tokens + trained.masked
    return trained.tokens / whole if whole else 1.0
