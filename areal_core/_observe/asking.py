"""Who waits for whom: whether the trainer waits for trajectories, or they for it. `Asking`."""

from __future__ import annotations

from collections import deque

from areal_core._executor.snapshot import Snapshot

_WINDOW_S = 600.0  # several steps of most trainers


class Asking:
    """What the trainer does, by the snapshots that were `add`-ed, a second apart. Not for several threads.

    It waits, or was given something since the snapshot before: else it is busy with something else.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, bool]] = deque()
        self._delivered = 0
        self._asked_at: float | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Take note of a *snapshot*, which is later than those before, or of another life."""
        at_s = snapshot.uptime_s
        if self._samples and at_s < self._samples[-1][0]:
            self._samples.clear()
            self._asked_at = None
        waits = any(not wait.is_eval for wait in snapshot.waits)
        delivered = snapshot.staleness.delivered
        if waits or (self._samples and delivered > self._delivered):
            self._asked_at = at_s
        self._delivered = delivered
        self._samples.append((at_s, waits))
        while at_s - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()

    @property
    def busy_s(self) -> float | None:
        """For how long the trainer has asked for nothing; 0: it waits. None: it never has asked."""
        return None if self._asked_at is None else self._samples[-1][0] - self._asked_at

    @property
    def waiting_share(self) -> float | None:
        """The share of the last ten minutes in which the trainer waited; None: it never has asked."""
        if self._asked_at is None or len(self._samples) < 2:
            return None
        (began, _), *later = self._samples
        waited, last = 0.0, began
        for at_s, waits in later:
            waited += (at_s - last) * waits
            last = at_s
        return waited / (last - began) if last > began else None
