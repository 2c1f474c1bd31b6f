"""What an earlier run left in the journal, made into rollouts: `Recovery`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from areal_core._executor.freshness import ages_of
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.resumed import Resumed
from areal_core._executor.rollout import LOST, Lane, Rollout, State
from areal_core._executor.work import Plan, data_id_of
from areal_core._journal.packing import PackingError, unpack
from areal_core._journal.records import Finished, Pending, Recovered
from areal_core.errors import JournalError


def describe_result(outcome: RolloutOutcome) -> dict[str, Any]:
    """Return what the journal keeps of an accepted *outcome*."""
    return {
        "trajectory": outcome.trajectory,
        "start_version": outcome.start_version,
        "seconds": outcome.seconds,
    }


class Recovery:
    """What there is to deliver and to play before the dataloader's, and what that gives in vain.

    Raises JournalError for what cannot be unpacked.
    """

    def __init__(self, found: Recovered, directory: str | os.PathLike[str]) -> None:
        self._directory = directory
        self._done = found.done
        self._finished = [(one, *self._unpacked(one)) for one in found.finished]
        self._pending = [(one, self._data_of(one)) for one in found.pending if one.data is not None]
        self._given = {one.key for one, *_ in self._finished} | {one.key for one, _ in self._pending}
        self.resumed = Resumed(
            step=found.step,
            epoch=_first_epoch(found),
            done=len(found.done),
            to_deliver=len(found.finished),
            to_play=len(found.pending),
            damaged=found.damaged,
            kept_beside=found.kept_beside,
        )

    def is_known(self, key: str) -> bool:
        """Return whether the item of the dataloader that has *key* is not to be played."""
        return key in self._given or key in self._done

    def leave_to_loader(self, rollout: Rollout) -> None:
        """Let the dataloader give the item of *rollout* again."""
        self._given.discard(rollout.work.key or "")

    def rollouts(self, plan: Plan, ids: Iterator[int]) -> tuple[list[Rollout], list[Rollout]]:
        """Return what is finished, in the order it has to be delivered in, and what has to be played."""
        first = -len(self._finished)
        finished = [
            _finished(one.key, data, result, plan, next(ids), order)
            for order, (one, data, result) in enumerate(self._finished, first)
        ]
        pending = [
            Rollout(next(ids), plan.work_on(data, _data_id(one.key, data), one.key), Lane.BATCH)
            for one, data in self._pending
        ]
        return finished, pending

    def forget(self) -> None:
        """Let go of what the rollouts have now."""
        self._finished, self._pending = [], []

    def _unpacked(self, one: Finished) -> tuple[Any, dict[str, Any]]:
        return self._data_of(one), self._unpack(one.key, one.result)

    def _data_of(self, one: Finished | Pending) -> Any:
        return LOST if one.data is None else self._unpack(one.key, one.data)

    def _unpack(self, key: str, data: bytes) -> Any:
        try:
            return unpack(data)
        except PackingError as error:
            raise JournalError(
                f"item {key} in the journal in {self._directory} cannot be read: {error}"
            ) from error


def _first_epoch(found: Recovered) -> int:
    """Return the first pass that may give an item that is not known: of the others each item was queued."""
    live: list[Finished | Pending] = [*found.finished, *found.pending]
    again = [one.epoch for one in live if one.data is None]
    last = max(found.done.last_epoch(), *(one.epoch for one in live), 0)
    return min(again, default=last)


def _finished(
    key: str, data: Any, result: dict[str, Any], plan: Plan, task_id: int, start_order: int
) -> Rollout:
    trajectory, start_version = result["trajectory"], result["start_version"]
    work = plan.work_on(data, _data_id(key, data), key)
    ages, now = ages_of(trajectory), time.monotonic()
    outcome = RolloutOutcome(
        task_id=task_id,
        status="accepted",
        trajectory=trajectory,
        data_id=work.data_id,
        start_version=start_version,
        origin=start_version if ages.oldest is None else ages.oldest,
        create_time=now - result["seconds"],
        finish_time=now,
    )
    return Rollout(
        task_id,
        work,
        Lane.BATCH,
        State.FINISHED,
        is_recovered=True,
        start_order=start_order,
        start_version=start_version,
        ages=ages,
        busy_s=result["seconds"],
        outcome=outcome,
    )


def _data_id(key: str, data: Any) -> Any:
    own = None if data is LOST else data_id_of(data)
    return key if own is None else own
