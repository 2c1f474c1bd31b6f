"""What rows say about a key, those before them lost or not."""

from __future__ import annotations

import pytest

from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record, Reopened, Returned
from areal_core._journal.replay import Entry, History
from areal_core._journal.rows import head_of

KEY = "3:a"


def entry_after(*records: Record) -> Entry:
    """Return what becomes of `KEY` when these happen, from row 5 on."""
    history = History()
    for row, record in enumerate(records, 5):
        history.tell(head_of(row, record)[0])
    return history.entries[KEY.encode()]


@pytest.mark.parametrize(
    "record",
    [Ended(KEY, "accepted", b"r"), Reopened(KEY), Delivered((KEY,)), Returned((KEY,))],
    ids=lambda record: type(record).__name__,
)
def test_a_key_whose_first_row_is_lost_is_known_from_another(record: Record) -> None:
    entry = entry_after(record)
    assert (entry.key, entry.epoch, entry.seen) == (KEY, 3, 5)


@pytest.mark.parametrize(
    ("taken_back", "committed"),
    [([], 7), ([Reopened(KEY)], None), ([Returned((KEY,))], None), ([Reopened(KEY), Delivered((KEY,))], 9)],
)
def test_a_commit_has_what_was_delivered_and_not_taken_back(
    taken_back: list[Record], committed: int | None
) -> None:
    assert entry_after(Queued(KEY, 3), Delivered((KEY,)), *taken_back, Committed(0)).committed == committed
