"""A file that remembers what happened to each item of data, so that a killed run goes on where it was.

put, from any thread            the writer's thread                          the file
-----------------------         ---------------------------------------     ----------------------------
Queued, Ended, Reopened,        writer.py: all that waits, in its order      store.py: SQLite, one
Delivered, Returned,       ->   in one transaction                       ->  transaction, then fsync
Committed

records.py       what is put, and `Recovered`: what a restart finds
packing.py       items of data and trajectories as bytes, and back; no pickle
writer.py        `Writer`: takes records without waiting, writes them, tries again, forgets nothing
fitting.py       what of a record and its value can be written
flush.py         who waits until it is
upkeep.py        when to compact, and to warn that nobody commits
telling.py       log lines that wait until no lock is held
store.py         `Store`: the directory, its lock, transactions, reading, compaction
rows.py          a record as a row that can tell whether it is whole
replay.py        what rows say about each key, in the order they happened
keys.py          many keys in little memory
wal.py           which transactions of SQLite's write-ahead log are whole, and what they leave of each page
carving.py       rows out of a file that SQLite refuses
salvage.py       a new file from what was carved, the old one kept beside
crash_points.py  where tests kill the process

What is promised, whatever the moment of a ``kill -9``:

- What was delivered before a commit that is durable is given to no trainer that resumes from it.
- What was delivered after that commit is delivered again, first, in its order.
- What failed or timed out before it is not run again, and after it is: a machine that goes down makes
  episodes fail first. What ended otherwise without being accepted is not run again in either case.
- What had ended and was not delivered is there with its trajectory; what was in flight is queued again.
- Losing the last records is as if the process had been killed a moment earlier. It is never worse: no record
  says anything that depends on a later one.

`Writer.flush` returns when what was put before it is on the disk: whoever commits waits for that.
A `Writer` owns the `Store` that it is given: `Writer.close` closes both, or leaves that to its thread, when
the disk hangs for longer than the caller waits. Nobody logs while a lock is held: a handler may wait for a
thread that waits for it.
Where the file was damaged, a row says less than it did, and nothing wrong: a damaged result makes a key that
runs again, damaged data a key that the dataloader gives again. How many is in `Recovered.damaged`, until
somebody goes on from it. Commits, what is done and what takes deliveries back are there twice, in pages of
their own: only damage that takes both, and the rows of deliveries, gives out again what was trained.
A transaction that a kill or a loss of power tore is no damage: it never was. What SQLite would delete, as it
takes the rest of its log for such a one, is copied and carved before SQLite sees it. Damage to the last
transaction looks like that, and is not counted: the log is only copied, each time over the last copy.
Once the file is open its log is empty: what was in it is in the file.
The file does not shrink: the space of what is forgotten is used again. It grows by what is not committed.
"""

from __future__ import annotations
