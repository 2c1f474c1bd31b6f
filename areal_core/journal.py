"""Go on where a killed run had come to.

```python
config = InferenceEngineConfig(consumer_batch_size=128, journal_dir="run/journal")
step = max(set(resumable_steps("run/journal")) & set(my_checkpoints()), default=None)
engine.set_version(load_checkpoint(step))
with WorkflowExecutor(config, engine, resume_from=step) as executor:
    for step in range(0 if step is None else step + 1, steps):
        train_on(executor.prepare_batch(dataloader, workflow))
        save_checkpoint(step)
        executor.commit(step)
```

Whatever the moment of a ``kill -9``: what `prepare_batch` had returned before the commit that is resumed is
never given again; what it returned after that is given again, first, or its item is played again if by then
the trajectory is too old; what was in flight is played again; and the dataloader goes on behind all these.

- **A commit is about what was returned**, by then or up to a `mark`: a trainer that takes the next batch
  before the checkpoint of the last is written has to give the mark, or loses that batch. A commit that timed
  out is tried again with the same step and mark.
- **An item is known again** by its ``data_id``, a str or an int as a rule, in any order within a pass;
  without one by its place, for which the dataloader has to give the same items in the same order. Where it
  gives others at places that were in flight, they are played too, and ``journal_other_items`` is logged.
- **The dataloader** begins with a whole pass, which counts as pass ``executor.resumed.epoch``: a sampler that
  shuffles by epoch needs that, and none may skip ahead by itself. Another dataloader than the last one of the
  run before needs ids of its own. What was in flight is played by the workflow of the first `prepare_batch`.
- **Items that ended** as rejected, stale or cancelled are not played again; those that failed or timed out
  are, unless there was a commit since: where machines go down, episodes fail first.
- **The version** is the trainer's to restore before the first `prepare_batch`. Trajectories with tokens of
  versions that are no more, because the trainer went back behind them, count as too old, unless ``on_stale``
  is ``"keep"``.
- **Only `prepare_batch`** is in the journal. What was submitted otherwise is its submitter's to submit again.
- **Nothing waits for the disk** but `commit`; all else is written beside the loop, some milliseconds later:
  that much of the order in which batches were given a kill may forget, and nothing more. The file forgets
  trajectories some commits after their delivery, so commit now and then.
- **Files** are their owner's alone to read, and hold MessagePack and arrays, no pickle. What cannot be
  written so (an item, or a trajectory, with other objects in it) is left out, which is logged: such an item
  has to be given by the dataloader again, such a trajectory is played again.
- **Damage**, such as flipped bits or lost pages, is noticed by checksums, logged as ``journal_damaged``,
  counted in ``executor.resumed.damaged``, and survived: the damaged file is kept beside the new one. The next
  run is told the same, until one has gone on from there. **A torn end** of the file's write-ahead log, as a
  kill leaves it, is no damage. But damage to what was written last can look like one, and cost that or the
  last but one commit: so the log is kept as ``journal.sqlite.torn-wal``, until the next one is, and
  ``journal_torn_end`` is logged.
"""

from __future__ import annotations

import os
from pathlib import Path

from areal_core._executor.resumed import Resumed

__all__ = ["Resumed", "resumable_steps"]

_FILE_NAME = "journal.sqlite"


def resumable_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps that `WorkflowExecutor` can resume from in *directory*, ascending: the last two.

    Empty where nothing was committed, or is no journal: ``resume_from=None`` then begins at the beginning.
    Raises JournalError when another process uses it, or when it cannot be read.
    """
    directory = Path(directory)
    if not (directory / _FILE_NAME).is_file():  # and none is made for the question
        return []
    from areal_core._executor.journaling import steps_in  # SQLite is not for those who only look for a type

    return steps_in(directory)
