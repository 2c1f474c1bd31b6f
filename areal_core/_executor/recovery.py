"""What an earlier run left in the journal, made into rollouts: `Recovery`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from areal_core._executor.freshness import ages_of
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.resumed import Resumed
from areal_core._executor.rollout import LOST, Episode, Lane, Plan, Rollout, State, data_id_of
from areal_core._journal.packing import PackingError, pack, unpack
from areal_core._journal.records import Finished, Pending, Recovered
from areal_core.errors import JournalError

_LARGE = 1 << 18
"""Bytes of arrays that take as long to pack as a few episodes take otherwise."""


def result_of(outcome: RolloutOutcome) -> dict[str, Any]:
    """Return what the journal keeps of an accepted *outcome*."""
    return _result(outcome.trajectory, outcome.start_version, outcome.seconds)


async def packed_if_large(trajectory: dict[str, Any], episode: Episode) -> bytes | None:
    """Return the same of what *episode* has just brought, packed in a thread; None if it is small."""
    if sum(getattr(value, "nbytes", 0) for value in trajectory.values()) < _LARGE:
        return None
    episode.record.enter("packing its trajectory for the journal")
    rollout = episode.rollout
    result = _result(trajectory, rollout.start_version, time.monotonic() - rollout.started_at)
    try:
        return await asyncio.get_running_loop().run_in_executor(None, pack, result)
    except Exception:  # whoever is told of it next tries for itself, and says so
        return None


def _result(trajectory: Any, start_version: int | None, seconds: float) -> dict[str, Any]:
    return {"trajectory": trajectory, "start_version": start_version, "seconds": seconds}


class Recovery:
    """What there is to deliver and to play before the dataloader's, and what that gives in vain.

    Raises JournalError for what cannot be unpacked.
    """

    def __init__(self, found: Recovered, directory: str | os.PathLike[str]) -> None:
        self._directory = directory
        epoch = _first_epoch(found)
        count, self._done = len(found.done), found.done
        self._done.drop_before(epoch)  # nobody gives those any more
        self._finished = [(one, *self._unpacked(one)) for one in found.finished]
        self._pending = [(one, self._data_of(one)) for one in found.pending if one.data is not None]
        live: list[Finished | Pending] = [*found.finished, *found.pending]
        # Of what a place names it has to be seen whether it is the same item.
        self._given = {one.key: None if one.data is None else _digest(one.data) for one in live}
        for one in found.pending:
            if one.data is None:
                del self._given[one.key]
        self.strangers = 0
        """How many items of the dataloader are at places where an earlier run was given others."""
        self.resumed = Resumed(
            step=found.step,
            epoch=epoch,
            done=count,
            to_deliver=len(found.finished),
            to_play=len(found.pending),
            damaged=found.damaged,
            kept_beside=found.kept_beside,
        )

    def pack(self, data: Any) -> bytes | None:
        """Return an item as the journal takes it; None if it cannot be, which whoever writes it says."""
        try:
            return pack(data)
        except Exception:
            return None

    def new_key(self, key: str, packed: bytes | None, *, is_place: bool) -> str | None:
        """Return the key of an item that the dataloader gives; None: it is known, and not to be played.

        Where *is_place*, another item may be there than an earlier run was given: it has a key of its own.
        """
        if key in self._given:
            before = self._given[key]
            if not is_place or before is None or packed is None or before == _digest(packed):
                return None
            self.strangers += 1
            return self.new_key(f"{key}+", packed, is_place=True)
        return None if key in self._done else key

    def leave_to_loader(self, rollout: Rollout) -> None:
        """Let the dataloader give the item of *rollout* again."""
        self._given.pop(rollout.key or "", None)

    def rollouts(self, plan: Plan, ids: Iterator[int]) -> tuple[list[Rollout], list[Rollout]]:
        """Return what is finished, in the order it has to be delivered in, and what has to be played."""
        first = -len(self._finished)
        finished = [
            _finished(one.key, data, result, plan, next(ids), order)
            for order, (one, data, result) in enumerate(self._finished, first)
        ]
        pending = [
            plan.rollout(
                next(ids), data, Lane.BATCH, data_id=_data_id(one.key, data), key=one.key, is_journaled=True
            )
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
    data_id = _data_id(key, data)
    ages, now = ages_of(trajectory), time.monotonic()
    outcome = RolloutOutcome(
        task_id=task_id,
        status="accepted",
        trajectory=trajectory,
        data_id=data_id,
        start_version=start_version,
        origin=start_version if ages.oldest is None else ages.oldest,
        create_time=now - result["seconds"],
        finish_time=now,
    )
    rollout = plan.rollout(task_id, data, Lane.BATCH, data_id=data_id, key=key, is_journaled=data is not LOST)
    rollout.state, rollout.is_recovered, rollout.outcome = State.FINISHED, True, outcome
    rollout.start_order, rollout.start_version = start_order, start_version
    rollout.ages, rollout.busy_s = ages, result["seconds"]
    return rollout


def _digest(packed: bytes) -> bytes:
    return blake2b(packed, digest_size=8).digest()


def _data_id(key: str, data: Any) -> Any:
    own = None if data is LOST else data_id_of(data)
    return key if own is None else own
