"""Checks of what a client sent: each returns the value, or says which field has which wrong value."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_short = reprlib.Repr()
_short.maxlevel = 1
_short.maxstring = _short.maxother = 60


class BadRequestError(Exception):
    """The client's mistake: the field, the value it had, shortened, and what it should have been."""

    def __init__(self, name: str, value: object, problem: str) -> None:
        self.field = name
        self.value = _short.repr(value)
        super().__init__(f"{name}={self.value} {problem}")


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Return *value* if it is a JSON object."""
    if not isinstance(value, dict):
        raise BadRequestError(name, value, "is not an object")
    return value


def boolean(name: str, value: Any) -> bool:
    """Return *value* if it is true or false."""
    if not isinstance(value, bool):
        raise BadRequestError(name, value, "is not true or false")
    return value


def number(name: str, value: Any) -> float:
    """Return *value* if it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequestError(name, value, "is not a number")
    return value


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return *value* if it is an integer in *low*..*high*."""
    if type(value) is not int or not low <= value <= high:
        raise BadRequestError(name, value, f"is not an integer in {low}..{high}")
    return value


def string(name: str, value: Any) -> str:
    """Return *value* if it is a string with something in it."""
    if not isinstance(value, str) or not value:
        raise BadRequestError(name, value, "is not a string of at least one character")
    return value


def token_ids(name: str, value: Sequence[Any]) -> Sequence[int]:
    """Return *value* if all in it are integers from 0 to 2**63 - 1."""
    # Prompts are long: the set of types is made in C, and each number looked at only to find the bad one.
    if set(map(type, value)) <= {int} and (not value or (min(value) >= 0 and max(value) < 2**63)):
        return value
    for index, token in enumerate(value):
        integer(f"{name}[{index}]", token, 0, 2**63 - 1)
    raise AssertionError(name)
