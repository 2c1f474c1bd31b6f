"""What a journal is told, in the order it happened, and what a restart finds in it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import msgspec

from areal_core._journal.keys import Keys

ACCEPTED = "accepted"
"""The one status that comes with a result."""


COUNTED_BY_COMMITS = frozenset({"failed", "timed_out"})
"""Statuses of ends that count from the next commit on, as deliveries do: a machine that goes down makes
episodes fail first, and who resumes a commit before that plays them again."""


class Queued(msgspec.Struct, frozen=True):
    """An item was taken from the dataloader."""

    key: str
    epoch: int
    data: bytes | None = None
    """The packed item; None: it cannot be written, and the dataloader has to give it again."""


class Ended(msgspec.Struct, frozen=True):
    """A rollout ended: accepted with its trajectory, or otherwise, and then it is not run again.

    That holds at once, or from the next commit on: see `COUNTED_BY_COMMITS`.
    """

    key: str
    status: str
    result: bytes | None = None
    """The packed trajectory of what was accepted."""


class Reopened(msgspec.Struct, frozen=True):
    """What was accepted has become too old and will run again: its result is forgotten."""

    key: str


class Delivered(msgspec.Struct, frozen=True):
    """These were given to the trainer, in this order."""

    keys: tuple[str, ...]


class Returned(msgspec.Struct, frozen=True):
    """These were given to the trainer, and it did not get them, or does not want them: they wait again."""

    keys: tuple[str, ...]


class Committed(msgspec.Struct, frozen=True):
    """All that was delivered so far is in the trainer's checkpoint *step*; what failed is not run again."""

    step: int


Record: TypeAlias = Queued | Ended | Reopened | Delivered | Returned | Committed


class Pending(msgspec.Struct, frozen=True):
    """An item that has to run: it was queued, and nothing that counts came of it."""

    key: str
    epoch: int
    data: bytes | None
    """The packed item; None: the dataloader has to give it again."""


class Finished(msgspec.Struct, frozen=True):
    """An item that was accepted and is in no checkpoint that counts."""

    key: str
    epoch: int
    data: bytes | None
    """As in `Pending`: it may have to run again, if the result is too old by now."""
    result: bytes
    """The packed trajectory."""
    delivered: bool
    """Whether a trainer had it before, after the commit that is resumed."""


class Recovered(msgspec.Struct, frozen=True):
    """What a restart finds. What is in none of its three parts is the dataloader's to give."""

    step: int | None
    """The commit that is resumed; None: the beginning, as nothing was committed."""
    done: Keys
    """Keys that are never given again: trained, failed before the commit, or settled otherwise."""
    finished: tuple[Finished, ...]
    """Those that were delivered come first, in that order; the others in the order they ended."""
    pending: tuple[Pending, ...]
    """In the order they were queued."""
    damaged: int
    """How many rows could not be read as they were written; at least 1 when the file was salvaged."""
    kept_beside: tuple[Path, ...] = ()
    """Copies of the files that had to be salvaged, as they were."""
