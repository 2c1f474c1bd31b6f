"""Checks of what callers pass."""

from __future__ import annotations

import enum
import math
import time
from numbers import Real
from typing import Any, NoReturn

FIRST_OWN_ID = 2**48
"""Ids below are the callers', ids from here on are made by the runner, so that they never meet."""


class Unset(enum.Enum):
    """Stands for an argument that was not given, where None means something."""

    UNSET = enum.auto()


def check_count(name: str, value: object) -> int:
    """Return *value* if it is an int of at least 1. Raises TypeError, ValueError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} has to be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value} has to be at least 1")
    return value


def check_seconds(name: str, value: Any, *, positive: bool = False) -> float | None:
    """Return *value* as seconds; None, and infinity, which is the same, mean no limit.

    Raises TypeError, and ValueError when it is NaN, negative, or, if *positive*, zero.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} has to be seconds or None, not {value!r}")
    seconds = float(value)
    if math.isnan(seconds) or seconds < 0 or (positive and seconds == 0):
        bound = "above 0" if positive else "at least 0"
        raise ValueError(f"{name}={value!r} has to be {bound} seconds, or None")
    return None if math.isinf(seconds) else seconds


def check_grace(value: Any) -> float:
    """Return *value* if it is a finite number of seconds, 0 included. Raises TypeError, ValueError."""
    seconds = check_seconds("cancel_grace", value)
    if seconds is None:
        raise ValueError(f"cancel_grace={value!r} has to be finite, or nothing would bound destroy()")
    return seconds


def deadline_after(timeout: Any) -> float | None:
    """Return the monotonic time *timeout* seconds from now; None if that is None."""
    seconds = check_seconds("timeout", timeout)
    return None if seconds is None else time.monotonic() + seconds


def check_task_id(value: object) -> int:
    """Return *value* if a caller may choose it as an id. Raises TypeError, ValueError."""
    if type(value) is int and 0 <= value < FIRST_OWN_ID:
        return value
    if not 0 <= check_any_id(value) < FIRST_OWN_ID:
        raise ValueError(f"task_id={value} has to be in 0..2**48-1")
    return check_any_id(value)


def check_any_id(value: object) -> int:
    """Return *value* if it can be an id, a caller's or the runner's own. Raises TypeError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"task_id has to be an int, not {value!r}")
    return value


def refuse_fn(value: object) -> NoReturn:
    """Raise the TypeError for what was passed instead of an async function."""
    raise TypeError(
        f"expected an async function and its arguments, not {value!r}; "
        "pass fn, *args rather than the coroutine fn(*args)"
    )
