"""What of a record, and of the value that comes with it, the file can have."""

from __future__ import annotations

from typing import Any

from areal_core._journal.packing import PackingError, pack
from areal_core._journal.records import (
    ACCEPTED,
    Committed,
    Delivered,
    Ended,
    Queued,
    Record,
    Reopened,
    Returned,
)
from areal_core._journal.rows import LARGEST_BODY
from areal_core._log import describe

NOTHING: Any = object()
"""Stands for no value: None is one."""


def check_record(record: object) -> None:
    """Raise TypeError for what the file cannot have: it would be tried again for ever."""
    match record:
        case Queued(str(), int() as number, bytes() | None):
            pass
        case Ended(str(), str(), bytes() | None) | Reopened(str()):
            number = 0
        case Delivered(tuple() as keys) | Returned(tuple() as keys) if all(map(_is_text, keys)):
            number = 0
        case Committed(int() as number):
            pass
        case _:
            raise TypeError(f"a {type(record).__name__} with such fields is no record of the journal")
    if not -(2**63) <= number < 2**63:
        raise ValueError("an epoch or step has more than 64 bits; give a smaller one")


def _is_text(key: object) -> bool:
    return isinstance(key, str)


def packed_with(record: Record, value: Any) -> tuple[Record | None, str | None]:
    """Return *record* with *value* in it; without it, or None, and why it cannot be there."""
    if value is NOTHING:
        return _limited(record)
    if not isinstance(record, Queued | Ended) or (isinstance(record, Ended) and record.status != ACCEPTED):
        raise TypeError(
            f"a {type(record).__name__} takes no value; give one with Queued or an accepted Ended"
        )
    try:
        data = pack(value)
    except Exception as error:  # an array's own methods may raise anything
        words = str(error) if isinstance(error, PackingError) else describe(error)
        return without_bytes(record), words
    if isinstance(record, Queued):
        return _limited(Queued(record.key, record.epoch, data))
    return _limited(Ended(record.key, record.status, data))


def _limited(record: Record) -> tuple[Record | None, str | None]:
    if size_of(record) > LARGEST_BODY:
        return without_bytes(record), f"{size_of(record)} bytes; {LARGEST_BODY} can be written"
    return record, None


def without_bytes(record: Record) -> Record | None:
    """Return what can be said of *record* without its bytes."""
    return Queued(record.key, record.epoch) if isinstance(record, Queued) else None


def size_of(record: Record) -> int:
    if isinstance(record, Queued):
        return len(record.data or b"")
    return len(record.result or b"") if isinstance(record, Ended) else 0
