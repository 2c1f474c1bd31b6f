"""Ids that nobody else has."""

from __future__ import annotations

import random

from areal_core._process import call_in_child

# Not the module's own: programs seed that, and all processes of a run alike. Nor the system's: to ask it
# takes as long as all else that an id is for.
_random = random.Random()
call_in_child(_random.seed)


def unique_id() -> str:
    """Return 32 hexadecimal digits. They are no secret: who has seen many can tell the next."""
    return f"{_random.getrandbits(128):032x}"
