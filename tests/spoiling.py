"""Documents and bytes that are spoilt somewhere, the same ones in every run."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_DEEP: list[Any] = []
for _ in range(300):
    _DEEP = [_DEEP]

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *(
        float("inf"),
        "",
        " ",
        "0",
        "\x00",
        "\ud800",
        "\udfff\ud800",
        "a" * 5_000,
        "\r\n: x",
        "../../x",
        "{}",
        "é",
    ),
    *([], [[]], {}, [{}], [None], [1, "a"], {"": None}, {"type": "text"}, {"type": "text", "text": 1}, _DEEP),
)


class Spoiler:
    """Spoils one thing after another."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def document(self, document: Any) -> bytes:
        """Return *document* as JSON in which something is replaced, moved or left out, or a byte spoilt."""
        spoilt = copy.deepcopy(document)
        for _ in range(self._chance.choice((1, 1, 1, 2, 3))):
            self._spoil_one(spoilt)
        text = json.dumps(spoilt).encode()
        return self.raw(text) if self._chance.random() < 0.2 else text

    def raw(self, data: bytes) -> bytes:
        """Return *data* with bits flipped, a part left out, or one twice."""
        place, other = sorted(self._chance.randrange(len(data) + 1) for _ in range(2))
        match self._chance.randrange(4):
            case 0:
                return data[:place]
            case 1:
                return data[:place] + data[other:]
            case 2:
                return data[:other] + data[place:]
        spoilt = bytearray(data)
        for _ in range(self._chance.choice((1, 1, 3, 10))):
            spoilt[self._chance.randrange(len(spoilt))] ^= 1 << self._chance.randrange(8)
        return bytes(spoilt)

    def choice(self, some: Any) -> Any:
        """Return one of *some*."""
        return self._chance.choice(some)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield *data* in pieces."""
        while data:
            size = self._chance.choice((1, 2, 7, 50, 1_000))
            yield data[:size]
            data = data[size:]

    def _spoil_one(self, document: Any) -> None:
        holders = [one for one in _holders(document) if one]
        if not holders:
            return
        holder = self._chance.choice(holders)
        key = self._chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match self._chance.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(holder[key])
            case 1 | 2:
                holder[key] = self._chance.choice((self._moved(holders), [holder[key]]))
            case _:
                holder[key] = copy.deepcopy(self._chance.choice(ODD))

    def _moved(self, holders: list[Any]) -> Any:
        other = self._chance.choice(holders)
        return copy.deepcopy(self._chance.choice(list(other.values()) if isinstance(other, dict) else other))


def _holders(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, dict | list) and depth < 20:
        yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from _holders(one, depth + 1)
