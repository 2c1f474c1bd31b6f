"""Decode what servers send, checked against types: the one place where foreign JSON enters."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from areal_core._engine.backend import ReplyError

T = TypeVar("T")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return *body* as the decoder's type. Raises ReplyError, which names the field as a JSON path."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReplyError(f"{type(error).__name__}: {error}"[:500]) from None


def encode(body: Any) -> bytes:
    """Return *body* as JSON. Raises TypeError and ValueError for what JSON has no words for."""
    return msgspec.json.encode(body)


def integer_label(label: object) -> int | None:
    """Return a weight label as a policy version; None when it is none, such as ``"default"``."""
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    try:
        version = int(label)
    except ValueError:
        return None
    return version if 0 <= version < 2**63 else None
