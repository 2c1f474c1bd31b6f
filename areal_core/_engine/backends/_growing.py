"""Decode a list that each event of a stream repeats, with more at its end."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from areal_core._engine.wire.decoding import decode

T = TypeVar("T")


class Growing(Generic[T]):
    """Decodes a list as *decoder* would, and what it did decode before only once.

    Whether the beginning is what came before is seen by comparing bytes, at a hundredth of the cost of
    decoding them. *field* names the list in errors.
    """

    def __init__(self, decoder: msgspec.json.Decoder[list[T]], field: str) -> None:
        self._decoder = decoder
        self._field = field
        self._items: list[T] = []
        self._before = b"["  # what the items were decoded from, without the bracket that closes it

    def read(self, body: bytes) -> list[T]:
        """Return the list that *body* is, which must be JSON. Raises ReplyError for items of a wrong type."""
        end = len(self._before)
        # With the comma the last item ends where it did: [1 begins [12] as well as [1,2].
        if body.startswith(self._before) and body[end : end + 1] == b",":
            added = decode(self._decoder, b"[" + body[end + 1 :], self._field)
            self._items += added
        else:
            self._items = decode(self._decoder, body, self._field)
        self._before = body[:-1]
        return self._items
