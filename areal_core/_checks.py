"""Checks of what callers give: each says what, the value, and what would do, and returns it as Python's own.

NumPy's numbers are taken too; JSON would not have them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from operator import index
from reprlib import repr as short
from typing import Annotated, Any

_LARGEST_TOKEN = 2**63 - 1


def check_integer(name: str, value: object, *, least: int | None = None) -> int:
    """Return *value* as an int. Raises TypeError or ValueError unless it is one, not below *least*."""
    if type(value) is int and (least is None or value >= least):
        return value  # as nearly always: a rollout is not to wait for an abstract class
    do = "give an integer" if least is None else f"give an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={short(value)} is not an int; {do}")
    if least is not None and value < least:
        raise ValueError(f"{name}={value} is below {least}; {do}")
    return index(value)


def check_number(name: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Return *value* as a float. Raises TypeError or ValueError unless it is finite, in *least*..*most*."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={short(value)} is not a number; give one")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (least <= number <= most and math.isfinite(number)):
        raise ValueError(f"{name}={number} is out of range; give a finite number in {least:g}..{most:g}")
    return number


def check_seconds(name: str, value: object) -> float:
    """Return *value* as a float. Raises TypeError or ValueError unless it is finite and positive."""
    seconds = check_number(name, value, least=0.0)
    if seconds == 0:
        raise ValueError(f"{name}=0 leaves no time; give seconds")
    return seconds


def check_text(name: str, value: object) -> str:
    """Return *value*. Raises TypeError or ValueError unless it is a str with something in it."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={short(value)} is not a str; give a text")
    if not value:
        raise ValueError(f"{name} is an empty text; give one with something in it")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless *value* is one of *choices*."""
    if value not in choices:
        raise ValueError(f"{name}={short(value)} is none of {', '.join(map(repr, choices))}; give one")


def check_flag(name: str, value: object) -> bool:
    """Return *value*. Raises TypeError unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={short(value)} is not a bool; give True or False")
    return value


def check_mapping(name: str, value: object) -> dict[str, Any]:
    """Return a copy of *value*. Raises TypeError unless it is a mapping with names as its keys."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={short(value)} is not a mapping; give fields by their names")
    odd = [key for key in value if not isinstance(key, str)]
    if odd:
        raise TypeError(f"{name} has the key {short(odd[0])}, which is not a str; give fields by their names")
    return dict(value)


def check_tokens(name: str, tokens: Iterable[Any]) -> list[int]:
    """Return *tokens* as a list of ints. Raises TypeError or ValueError unless each is a token id."""
    try:
        given = list(tokens)
        if (plain := _plain_tokens(given)) is not None:
            return plain
        found = list(map(index, given))
    except TypeError as error:
        raise TypeError(f"{name} has what is no token id: {error}; give integers") from None
    if bool in set(map(type, given)):
        raise TypeError(f"{name} has a bool; give integers")
    for extreme in (min(found, default=0), max(found, default=0)):
        if not 0 <= extreme <= _LARGEST_TOKEN:
            raise ValueError(f"{name} has {short(extreme)}; give integers from 0 to 2**63-1")
    return found


def _plain_tokens(given: list[Any]) -> list[int] | None:
    """Return *given* if that is token ids and Python's own ints: as a rule, and at a quarter of the cost."""
    import msgspec  # not with the package: it takes as long as all of that

    try:
        return msgspec.convert(given, _token_ids())
    except msgspec.ValidationError:
        return None


@cache
def _token_ids() -> type[list[int]]:
    from msgspec import Meta

    return list[Annotated[int, Meta(ge=0, le=_LARGEST_TOKEN)]]
