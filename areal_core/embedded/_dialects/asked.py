"""What dialects have in common in what they are asked: fields that may be left out, and how to sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from areal_core.embedded._checks import BadRequestError, boolean, integer, number, string, token_ids

WITHOUT_EFFECT = frozenset({"top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"})
"""Each is a number that shapes the distribution of the tokens."""
# All tokens are equally likely long before; the policy cannot divide by an integer that is no float.
_MOST_TEMPERATURE = 1e9


def given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value, or *default* where it is absent or null."""
    value = fields.get(name)
    return default if value is None else value


def flag(where: str, fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a value that is true or false, or *default*; *where* stands before the name in errors."""
    return boolean(f"{where}{name}", given(fields, name, default))


def refuse_unless(fields: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse a field with another value than those *allowed* for it: it asks for what is not here."""
    for name, values in allowed.items():
        if fields.get(name) not in values:
            raise BadRequestError(name, fields[name], "asks for something this server does not have")


def read_sampling(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of `Sampling` for which all dialects have the same words, checked."""
    for name in WITHOUT_EFFECT:
        number(f"{where}{name}", given(fields, name, 0))
    stop_ids = given(fields, "stop_token_ids", [])
    if not isinstance(stop_ids, list):
        raise BadRequestError(f"{where}stop_token_ids", stop_ids, "is not a list of token ids")
    return {
        "ignore_eos": flag(where, fields, "ignore_eos", False),
        "stop_token_ids": frozenset(token_ids(f"{where}stop_token_ids", stop_ids)),
        "stop": _stop_strings(f"{where}stop", given(fields, "stop", [])),
        "temperature": _between(where, fields, "temperature", _MOST_TEMPERATURE),
        "top_p": _between(where, fields, "top_p", 1.0),
    }


def seed(name: str, value: Any) -> int | None:
    """Return *value* if it is an integer of 64 bits, or None."""
    return None if value is None else integer(name, value, -(2**63), 2**63 - 1)


def _between(where: str, fields: Mapping[str, Any], name: str, high: float) -> float:
    value = number(f"{where}{name}", given(fields, name, 1.0))
    if not 0 <= value <= high:
        raise BadRequestError(f"{where}{name}", value, f"is not in 0..{high:g}")
    return value


def _stop_strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(string(f"{name}[{index}]", one) for index, one in enumerate(value))
    return (string(name, value),)
