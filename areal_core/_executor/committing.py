"""What a trainer says of its checkpoints: the part of `WorkflowExecutor` that has to do with the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from areal_core._checks import check_integer
from areal_core._executor.looking import Looking
from areal_core._executor.resumed import Resumed
from areal_core.config import InferenceEngineConfig

if TYPE_CHECKING:
    from areal_core._executor.journaling import Journaling


class Committing(Looking):
    """Commits, and the life of the journal."""

    _config: InferenceEngineConfig
    _resume_from: int | None
    _journaling: Journaling | None = None  # known before it is open: the next one closes it

    def commit(self, step: int, timeout: float | None = None, *, up_to: int | None = None) -> None:
        """Have all that `prepare_batch` returned so far never be given again to who resumes from *step*.

        So far, or *up_to* a `mark`: what the checkpoint does not have in it must not be committed with it.

        Call it once the trainer's checkpoint *step* is complete; it waits until it is on the disk, *timeout*
        seconds at most (None: no limit). Steps rise. After a timeout or an error the same one is tried again,
        with the same *up_to*; without one, only as long as nothing else was delivered. Until then what was
        delivered counts as not trained: who resumes from the step before gets it again. The last two steps
        can be resumed, so keep two checkpoints: a run may be killed between its checkpoint and this.

        Raises JournalError when it cannot be written (which is tried on), TimeoutError; ValueError without a
        journal, and for a step that is not above the last; RunnerStoppedError after ``destroy``; RuntimeError
        on the loop thread; TypeError.
        """
        shift = self._on_shift()
        step = check_integer("step", step, least=0)
        mark = None if up_to is None else check_integer("up_to", up_to, least=0)
        shift.raise_on_loop_thread("commit")
        shift.desk.call(self._journal("commit").commit, step, mark).wait(timeout)

    def mark(self) -> int:
        """Return what `commit` takes for all that `prepare_batch` has returned by now, and nothing after it.

        For a trainer that takes the next batch before it has written the checkpoint of the last, or writes
        checkpoints in another thread. Raises ValueError without a journal, RunnerStoppedError.
        """
        shift, journaling = self._on_shift(), self._journal("mark")
        return shift.desk.call(lambda: journaling.mark)

    @property
    def resumed(self) -> Resumed | None:
        """What ``initialize`` found in the journal; None: there is none."""
        journaling = None if self._shift is None else self._on_shift().journaling
        return None if journaling is None else journaling.recovery.resumed

    def _journal(self, caller: str) -> Journaling:
        journaling = self._on_shift().journaling
        if journaling is None:
            raise ValueError(f"{caller}(): there is no journal; give config.journal_dir")
        return journaling

    def _open_journal(self, logger: Any) -> Journaling | None:
        """Open it. The life before is over: what it still has to write is written first."""
        directory, before = self._config.journal_dir, self._journaling
        if directory is None:
            return None
        from areal_core._executor.journaling import Journaling  # SQLite and NumPy are not everybody's

        if before is not None:
            before.close()
        self._journaling = Journaling(directory, self._resume_from, logger, before)
        self._journaling.open()
        return self._journaling

    def _checked_step(self, step: object) -> int | None:
        if step is None:
            return None
        if getattr(self._config, "journal_dir", None) is None:
            raise ValueError(f"resume_from={step!r}, and there is no journal; give config.journal_dir")
        return check_integer("resume_from", step, least=0)
