"""Who was last found to keep a loop late: `Blame`."""

from __future__ import annotations

from typing import NamedTuple


class Blame(NamedTuple):
    """A function of the user's that is, or was, what a loop was late for; whether the log had it or not."""

    function: str
    """Module and qualified name."""
    where: str
    """File and line."""
    seconds: float
    """How late the loop came for it, at worst."""
    share: float
    """Of the time in which the loop was late: how much of it the function was seen in, 0 to 1."""
    at: float
    """When it was seen last, in monotonic seconds."""
