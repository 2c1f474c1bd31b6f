"""Places at which a test kills the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

Name: TypeAlias = Literal[
    "before_append",  # the transaction has not begun
    "after_append",  # a row is in the transaction
    "before_fsync",  # the transaction is about to be made durable
    "after_fsync",  # it is durable
    "after_delivery",  # records are about to be handed to the trainer, and nobody wrote that down
    "after_commit",  # a commit is durable, and nothing was compacted for it
    "in_compaction",  # inside the transaction of a compaction
]

NAMES: tuple[Name, ...] = get_args(Name)

hook: Callable[[str], None] | None = None
"""What tests set; None in production."""


def reached(name: Name) -> None:
    """Call the hook, if there is one. It may not return."""
    if hook is not None:
        hook(name)
