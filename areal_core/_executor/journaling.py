"""The executor's side of the journal: what happens to the items of `prepare_batch` is written down.

What the core tells, and `Journaling.commit`, is called by the thread that owns the core, where no Ctrl-C
comes: the writer has a lock. What opens and closes the file has a thread of its own for that.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from areal_core._executor.port import Witness
from areal_core._executor.recovery import Recovery, result_of
from areal_core._executor.rollout import Rollout
from areal_core._journal.crash_points import reached
from areal_core._journal.flush import Flush
from areal_core._journal.keys import epoch_of
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Reopened, Returned
from areal_core._journal.store import Store, check_step
from areal_core._journal.writer import Writer
from areal_core._log import get_logger, log
from areal_core._runner.passing import to_the_end
from areal_core.errors import JournalError, RunnerStoppedError

_PATIENCE_S = 2.0  # with others who only look, such as the other ranks of a trainer, or are about to end


class Journaling(Witness):
    """Writes into the journal in *directory*, and knows what an earlier run left there, once it is open.

    It is opened and closed in threads of its own, one after the other: whatever a Ctrl-C interrupts in the
    caller, the next `close` gives the directory free.

    It goes on from the step *resume_from*; where there was a life *before*, that is closed, from its last
    commit that is on the disk.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        resume_from: int | None,
        logger: Any,
        before: Journaling | None = None,
    ) -> None:
        self._directory = directory
        self._resume_from = resume_from
        self._before = before
        """None once it is open."""
        self._logger = logger
        self._store = Store(directory)
        self._writer: Writer | None = None
        self._recovery: Recovery | None = None
        self._busy = threading.Lock()  # held by the threads that open and close, where no Ctrl-C comes
        self._is_closed = False
        self.log: Callable[..., object] = lambda *_, **__: None
        """Takes a line to log soon: level, event, fields."""
        self.step: int | None = None
        """The last step that `commit` was given, or that it goes on from; None: none was."""
        self._committed = 0
        """Up to which mark that was."""
        self._is_ending = False
        self._given: deque[tuple[int, tuple[str, ...]]] = deque()
        """The keys of each batch since the last commit, and how many trajectories there were with it."""
        self.mark = 0
        """How many trajectories were delivered so far."""

    @property
    def writer(self) -> Writer:
        """What writes, from `open` on."""
        assert self._writer is not None
        return self._writer

    @property
    def recovery(self) -> Recovery:
        """What an earlier run left, from `open` on."""
        assert self._recovery is not None
        return self._recovery

    @property
    def durable_step(self) -> int | None:
        """The last step whose commit is on the disk; None: none is."""
        if self._writer is not None:
            return self._store.last_step
        return self._resume_from if self._before is None else self._before.durable_step

    def open(self) -> None:
        """Read what there is. Raises JournalError where it cannot be used, or not be resumed from there."""
        to_the_end("areal-journal-open", self._open)

    def close(self, timeout: float | None = None) -> None:
        """Write what waits, for *timeout* seconds at most, and let go of the directory.

        Does nothing a second time.
        """
        if not self._is_closed:
            to_the_end("areal-journal-close", partial(self._close, timeout))

    def _open(self) -> None:
        with self._busy:
            if self._is_closed:
                return
            self._open_store()
            try:
                # Not before the lock is held: a writer that was left alone may commit until then.
                self.step = self._resume_from = self.durable_step
                self._before = None
                found = self._store.read(self._resume_from)
                self._recovery = Recovery(found, self._directory)
                self._writer = Writer(self._store, logger=self._logger, say=self._say)
            except BaseException:
                self._store.close()
                raise

    def _open_store(self) -> None:
        try:
            self._store.open(_PATIENCE_S)
        except JournalError as error:
            if self.is_at_work():
                raise JournalError(
                    f"the journal in {self._directory} is still being written by the life before, of which "
                    "destroy() has let go; initialize again when the disk is done, or give that more time"
                ) from error
            raise

    def is_at_work(self) -> bool:
        """Return whether a writer that `close` left alone may still write, of this life or of one before."""
        if self._writer is not None:
            return self._writer.is_at_work()
        return self._before is not None and self._before.is_at_work()

    def _close(self, timeout: float | None) -> None:
        with self._busy:
            if self._writer is not None and not self._is_closed:
                self._writer.close(timeout)  # and the store
            self._is_closed = True

    def _say(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        self.log(level, event, **fields)

    def commit(self, step: int, up_to: int | None) -> Flush:
        """Note that all that was delivered *up_to* this mark is in checkpoint *step*; None: all.

        Return what to wait for. The last step up to the same is only waited for. Raises ValueError for
        another one that is not above the last, and for a mark that never was; RunnerStoppedError after
        `close`.
        """
        if self._is_closed:
            raise RunnerStoppedError("the executor was destroyed, and its journal is closed; commit before")
        if up_to is not None and up_to > self.mark:
            raise ValueError(
                f"up_to={up_to} is above {self.mark}, what was delivered; give what mark() returned"
            )
        mark = self.mark if up_to is None else up_to
        if step != self.step:
            self._commit(step, mark)
        elif mark < self._committed or any(given <= mark for given, _ in self._given):
            raise ValueError(
                f"step={step} is not above {self.step}, which was committed up to mark {self._committed}; "
                f"give up_to={self._committed} to try that again, or a greater step to commit what was "
                "delivered since"
            )
        return self.writer.ask_flush()

    def _commit(self, step: int, up_to: int) -> None:
        check_step(step, self.step)
        later = [batch for batch in self._given if batch[0] > up_to]
        keys = tuple(key for _, some in later for key in some)
        # What is not in the checkpoint goes back for it. A kill between these is as one before the delivery.
        if keys:
            self.writer.put(Returned(keys))
        self.writer.put(Committed(step))
        if keys:
            self.writer.put(Delivered(keys))
        self._given = deque(later)
        self.step, self._committed = step, up_to

    def say_what_was_found(self) -> None:
        """Log it."""
        found = self.recovery.resumed
        if self._store.torn is not None:
            self.log("info", "journal_torn_end", **_told_of(self._store.torn))
        if found.damaged:
            self.log("warning", "journal_damaged", **found.fields())
        elif found.done or found.to_deliver or found.to_play:
            self.log("info", "journal_resumed", **found.fields())

    def say_strangers(self) -> None:
        """Log, once, that the dataloader gives other items than it gave an earlier run."""
        if self.recovery.strangers:
            self.log(
                "warning",
                "journal_other_items",
                why="the dataloader gives other items at places that an earlier run knows: none of these is "
                "left out, but of the places before nobody can tell",
                remedy="give items a data_id, or the same order in each run",
            )
            self.recovery.strangers = 0

    # -- what the core tells -----------------------------------------------------------------------

    def enqueued(self, rollout: Rollout) -> None:
        key = rollout.key
        if key is None or rollout.requeues or rollout.losses or rollout.is_journaled:
            return
        packed, rollout.packed = rollout.packed, None
        if packed is None:  # it cannot be packed, which the writer finds out, and says
            self.writer.put(Queued(key, epoch_of(key)), rollout.data)
        else:
            self.writer.put(Queued(key, epoch_of(key), packed))

    def ended(self, rollout: Rollout) -> None:
        key, outcome = rollout.key, rollout.outcome
        if key is None or outcome is None:
            return
        packed, rollout.packed = rollout.packed, None
        if packed is not None:
            self.writer.put(Ended(key, outcome.status, packed))
        elif outcome.status == "accepted":
            self.writer.put(Ended(key, outcome.status), result_of(outcome))
        elif outcome.status != "cancelled" or not self._is_ending:  # else the next run is to play it
            self.writer.put(Ended(key, outcome.status))

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        key = rollout.key
        if key is not None:
            self.writer.put(Reopened(key) if runs_again else Ended(key, "stale"))

    def recovered(self, rollout: Rollout, is_young: bool) -> None:
        if not is_young and rollout.key is not None:
            self.writer.put(Reopened(rollout.key))

    def delivered(self, rollouts: Iterable[Rollout]) -> None:
        keys = _keys_of_accepted(rollouts)
        if keys:
            reached("after_delivery")
            self.writer.put(Delivered(keys))
            self.mark += len(keys)
            self._given.append((self.mark, keys))

    def came_back(self, rollouts: Iterable[Rollout]) -> None:
        keys = _keys_of_accepted(rollouts)
        if keys:
            self.writer.put(Returned(keys))
            self._given = deque((mark, some) for mark, some in self._given if some != keys)

    def ending(self) -> None:
        self._is_ending = True


def steps_in(directory: Path) -> list[int]:
    """Return the steps that can be resumed there. Raises JournalError."""

    def look() -> tuple[list[int], Path | None]:
        store = Store(directory)
        store.open(_PATIENCE_S)
        try:
            return list(store.steps()), store.torn
        finally:
            store.close()

    steps, torn = to_the_end("areal-journal-look", look)
    if torn is not None:  # who opens it next will not find that end
        log(get_logger(), "info", "journal_torn_end", _told_of(torn))
    return steps


def _told_of(torn: Path) -> dict[str, str]:
    why = "a kill left a part of a transaction; if that was damaged instead, the copy has what is left of it"
    return {"kept_beside": str(torn), "why": why}


def _keys_of_accepted(rollouts: Iterable[Rollout]) -> tuple[str, ...]:
    return tuple(one.key for one in rollouts if one.key is not None and one.is_accepted)
