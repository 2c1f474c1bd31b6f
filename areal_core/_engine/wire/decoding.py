"""JSON to and from servers: the one place where foreign JSON enters, checked against types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from areal_core._engine.backend import ReplyError

_SHORT = 500  # characters of a message, the server's words included

TokenId = Annotated[int, Meta(ge=0, le=2**63 - 1)]

# vLLM says -9999.0 for a log-probability that is missing or below that, and -inf is not JSON. The logarithm
# of a probability near one may be rounded to slightly more than zero.
Logprob = Annotated[float, Meta(gt=-9999.0, le=0.01)]

FinishType = Annotated[str, Meta(min_length=1, max_length=100)]

Label = str | int | None
"""Of weights, see `integer_label`."""

T = TypeVar("T")


def decode(decoder: msgspec.json.Decoder[T], body: bytes, field: str = "") -> T:
    """Return *body* as the decoder's type. Raises ReplyError, which names the place as a JSON path.

    *field* is where *body* was found, if it is only part of a reply.
    """
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        place = f"in {field}: " if field else ""
        raise ReplyError(f"{place}{type(error).__name__}: {error}"[:_SHORT]) from None


def encode(body: Any) -> bytes:
    """Return *body* as JSON. Raises TypeError and ValueError for what JSON has no words for."""
    return msgspec.json.encode(body)


def merge(body: dict[str, Any], *extras: Mapping[str, Any]) -> dict[str, Any]:
    """Put the fields of *extras* over those of *body*, in order; a mapping into the mapping it meets."""
    for extra in extras:
        for name, value in extra.items():
            ours = body.get(name)
            if isinstance(ours, Mapping) and isinstance(value, Mapping):
                body[name] = {**ours, **value}
            else:
                body[name] = value
    return body


def failure(error: object) -> ReplyError:
    """Return what an ``error`` field says, with the status where it is there as ``code``."""
    if not isinstance(error, dict):
        return ReplyError(f"the server says: {error}"[:_SHORT])
    code = error.get("code")
    known = isinstance(code, int) and 400 <= code <= 599
    return ReplyError(f"the server says: {error.get('message', error)}"[:_SHORT], code if known else None)


def integer_label(label: object) -> int | None:
    """Return a weight label as a policy version; None when it is none, such as ``"default"``."""
    if isinstance(label, str):
        # int() takes " 1_0" and the digits of other alphabets too, and refuses very many.
        plain = label.isascii() and label.isdecimal() and len(label) < 20
        return integer_label(int(label)) if plain else None
    if isinstance(label, bool) or not isinstance(label, int):
        return None
    return label if 0 <= label < 2**63 else None


def json_or_text(body: bytes) -> Any:
    """Return *body* as what it is in JSON, or else as text."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
