"""A module that takes longer to import than a call of what is in it may take."""

from __future__ import annotations

import time

time.sleep(0.6)


def give(value: int) -> int:
    return value
