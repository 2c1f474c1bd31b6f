"""The executor's side of the journal: what happens to the items of `prepare_batch` is written down.

All of it is called by the thread that owns the core, where no Ctrl-C comes: the writer has a lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from areal_core._executor.port import Witness
from areal_core._executor.recovery import Recovery, describe_result
from areal_core._executor.rollout import Rollout
from areal_core._journal.crash_points import reached
from areal_core._journal.flush import Flush
from areal_core._journal.keys import epoch_of
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Reopened, Returned
from areal_core._journal.store import Store
from areal_core._journal.writer import Writer
from areal_core._log import get_logger, log
from areal_core._runner.gate import Gate, thread_of_gates
from areal_core.errors import RunnerStoppedError


class Journaling(Witness):
    """Writes into the journal in *directory*, and knows what an earlier run left there.

    Raises JournalError where it cannot be used, or *resume_from* cannot be resumed.
    """

    def __init__(self, directory: str | os.PathLike[str], resume_from: int | None, logger: Any) -> None:
        self._logger = get_logger(logger)
        self._store = Store(directory)
        self._store.open()
        try:
            found = self._store.read(resume_from)
            self.recovery = Recovery(found, directory)
            self.writer = Writer(self._store)
        except BaseException:
            self._store.close()
            raise
        self.step = resume_from
        """The last step that was committed; None: none was."""
        self._is_ending = False
        self._is_closed = False
        self._has_news = False
        """Whether something was delivered, or came back, since the last commit."""
        self._say_what_was_found()

    def close(self, timeout: float | None = None) -> None:
        """Write what waits, and close the file. Does nothing a second time.

        In a thread of its own: a Ctrl-C in this one could leave the writer's lock held.
        """
        if self._is_closed:
            return
        closed = Gate()

        def close() -> None:
            try:
                self.writer.close(timeout)
                self._store.close()
            except Exception as error:
                log(self._logger, "error", "journal_not_closed", {"exc_info": error})
            finally:
                closed.open()

        try:
            thread_of_gates(close, "areal-journal-close", daemon=False).start()
        except RuntimeError:  # there is none to be had
            close()
        closed.wait()
        self._is_closed = True

    def commit(self, step: int) -> Flush:
        """Note that all that was delivered is in checkpoint *step*; return what to wait for.

        Raises ValueError for a step that is not above the last, unless it is the last and nothing was
        delivered since; RunnerStoppedError after `close`.
        """
        if self._is_closed:
            raise RunnerStoppedError("the executor was destroyed, and its journal is closed; commit before")
        if step != self.step or self._has_news:
            self.writer.put(Committed(step))
            self.step, self._has_news = step, False
        return self.writer.ask_flush()

    # -- what the core tells -----------------------------------------------------------------------

    def enqueued(self, rollout: Rollout) -> None:
        key = rollout.work.key
        if key is not None and not rollout.requeues:
            self.writer.put(Queued(key, epoch_of(key)), rollout.work.data)

    def ended(self, rollout: Rollout) -> None:
        key, outcome = rollout.work.key, rollout.outcome
        if key is None or outcome is None:
            return
        if outcome.status == "accepted":
            self.writer.put(Ended(key, outcome.status), describe_result(outcome))
        elif outcome.status != "cancelled" or not self._is_ending:  # else the next run is to play it
            self.writer.put(Ended(key, outcome.status))

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        key = rollout.work.key
        if key is not None:
            self.writer.put(Reopened(key) if runs_again else Ended(key, "stale"))

    def recovered(self, rollout: Rollout, is_young: bool) -> None:
        if not is_young and rollout.work.key is not None:
            self.writer.put(Reopened(rollout.work.key))

    def delivered(self, rollouts: Iterable[Rollout]) -> None:
        keys = _keys_of_accepted(rollouts)
        if keys:
            reached("after_delivery")
            self.writer.put(Delivered(keys))
            self._has_news = True

    def came_back(self, rollouts: Iterable[Rollout]) -> None:
        keys = _keys_of_accepted(rollouts)
        if keys:
            self.writer.put(Returned(keys))
            self._has_news = True

    def ending(self) -> None:
        self._is_ending = True

    # -- inside ------------------------------------------------------------------------------------

    def _say_what_was_found(self) -> None:
        found = self.recovery.resumed
        if found.damaged:
            log(self._logger, "warning", "journal_damaged", found.fields())
        elif found.done or found.to_deliver or found.to_play:
            log(self._logger, "info", "journal_resumed", found.fields())


def _keys_of_accepted(rollouts: Iterable[Rollout]) -> tuple[str, ...]:
    return tuple(one.work.key for one in rollouts if one.work.key is not None and one.is_accepted)
