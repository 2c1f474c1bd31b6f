"""What the rows of a journal say about each key: `History`, told them in the order they happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from areal_core._journal.keys import epoch_of
from areal_core._journal.records import ACCEPTED, COUNTED_BY_COMMITS
from areal_core._journal.rows import Head, Kind, decode_key


class Commit(NamedTuple):
    """A step of the trainer that can be resumed."""

    step: int
    row: int


@dataclass(slots=True, eq=False)
class Entry:
    """What became of one key. Numbers of rows stand for what is in them."""

    key: str
    epoch: int
    seen: int
    """The first row that mentions it."""
    data: int | None = None
    result: int | None = None
    settled: bool = False
    """Whether it ended without being accepted, in a way that counts at once."""
    order: tuple[int, int] | None = None
    """The row of its last delivery, and the place in it; stays when that is taken back."""
    committed: int | None = None
    """The row of the first commit after its delivery, or that says that it failed before."""

    def is_done(self, row: int) -> bool:
        """Return whether it is never given again by who resumes the commit in *row*."""
        return self.settled or (self.committed is not None and self.committed <= row)


@dataclass(slots=True, eq=False)
class History:
    """What happened, as far as it was told."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    _uncommitted: set[bytes] = field(default_factory=set)

    def tell(self, head: Head) -> None:
        """Take the next row into account."""
        _TELL[head.kind](self, head)

    def queued(self, head: Head) -> None:
        entry = self._entry(head.keys[0], head)
        entry.epoch = head.number
        if entry.data is None and head.size is not None:
            entry.data = head.row

    def ended(self, head: Head) -> None:
        entry = self._entry(head.keys[0], head)
        if head.status in COUNTED_BY_COMMITS:
            pass  # a commit has it in its list: so what failed in a life before does not count in the next
        elif head.status != ACCEPTED:
            entry.settled = True
        elif head.size is not None:
            entry.result = head.row

    def reopened(self, head: Head) -> None:
        entry = self._entry(head.keys[0], head)
        if entry.committed is None:  # what is in a checkpoint stays there
            entry.result, entry.order = None, None
            self._uncommitted.discard(head.keys[0])

    def given(self, head: Head) -> None:
        for place, key in enumerate(head.keys):
            entry = self._entry(key, head)
            entry.order = (head.row, place)
            self._uncommitted.add(key)

    def returned(self, head: Head) -> None:
        for place, key in enumerate(head.keys):
            entry = self._entry(key, head)
            entry.order = (head.row, place)
            if entry.committed is None:  # what is in a checkpoint stays there
                self._uncommitted.discard(key)

    def committed(self, head: Head) -> None:
        # The commit's own list has what failed, and makes up for rows of deliveries that were damaged; what
        # else was delivered is in the list of an earlier commit, which may be gone.
        for key in {*self._uncommitted, *head.keys}:
            entry = self._entry(key, head)
            if entry.committed is None:
                entry.committed = head.row
        self._uncommitted.clear()
        self.commits.append(Commit(head.number, head.row))

    def salvaged(self, head: Head) -> None:
        """Nothing happened to any key."""

    def _entry(self, key: bytes, head: Head) -> Entry:
        found = self.entries.get(key)
        if found is None:
            text = decode_key(key)
            found = self.entries[key] = Entry(text, epoch_of(text), head.row)
        return found


_TELL: dict[Kind, Callable[[History, Head], None]] = {
    Kind.QUEUED: History.queued,
    Kind.ENDED: History.ended,
    Kind.REOPENED: History.reopened,
    Kind.DELIVERED: History.given,
    Kind.COMMITTED: History.committed,
    Kind.RETURNED: History.returned,
    Kind.SALVAGED: History.salvaged,
}
