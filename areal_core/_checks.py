"""Checks of what callers give: each says what, the value, and what would do."""

from __future__ import annotations

import math


def check_integer(name: str, value: object, *, least: int | None = None) -> None:
    """Raise TypeError or ValueError unless *value* is an int, not below *least*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is not an int")
    if least is not None and value < least:
        raise ValueError(f"{name}={value} is below {least}")


def check_number(name: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise TypeError or ValueError unless *value* is a finite number in *least*..*most*."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is not a number")
    if not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} is not a finite number in {least:g}..{most:g}")


def check_seconds(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless *value* is a positive, finite number of seconds."""
    check_number(name, value, least=0.0)
    if value == 0:
        raise ValueError(f"{name}=0 leaves no time; give seconds")


def check_text(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless *value* is a str with something in it."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is not a str")
    if not value:
        raise ValueError(f"{name} is an empty text")
