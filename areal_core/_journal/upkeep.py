"""What the writer's thread does after a batch: `Upkeep`."""

from __future__ import annotations

from collections.abc import Iterable

from areal_core._journal.fitting import size_of
from areal_core._journal.records import Committed, Record
from areal_core._journal.store import Store
from areal_core._journal.telling import Lines
from areal_core._log import describe

_FEW = 256  # records, after which a file without commits is looked at again
_MUCH = 2**30  # bytes since the last commit that somebody should know of


class Upkeep:
    """Compacts *store* now and then, and warns of what nobody commits."""

    def __init__(self, store: Store, lines: Lines) -> None:
        self._store = store
        self._lines = lines
        self._is_first = True
        self._left = self._since = 0
        """Records that the last compaction left, and that were written since."""
        self._bytes = 0
        """Written since the last commit."""
        self._warns_above = _MUCH

    def after(self, batch: Iterable[Record]) -> None:
        """Take into account that *batch* was written. Raises nothing."""
        commits = False
        for record in batch:
            self._since += 1
            self._bytes += size_of(record)
            if isinstance(record, Committed):
                commits, self._bytes, self._warns_above = True, 0, _MUCH
        self._warn()
        if self._is_due(commits):
            self._compact()

    def _warn(self) -> None:
        if self._bytes > self._warns_above:
            self._lines.add("warning", "journal_uncommitted", bytes=self._bytes)
            while self._bytes > self._warns_above:
                self._warns_above *= 2

    def _is_due(self, commits: bool) -> bool:
        """Return whether a compaction is worth what it costs, which goes with what it leaves.

        The first batch of a life has given up what earlier lives did, and none of them may have come to
        a commit.
        """
        if self._is_first:
            return True
        return self._since >= self._left and (commits or self._since >= _FEW)

    def _compact(self) -> None:
        self._is_first = False
        try:
            self._left = self._store.compact()
        except Exception as error:  # a later one does it
            self._lines.add("warning", "journal_not_compacted", error=describe(error))
        self._since = 0
