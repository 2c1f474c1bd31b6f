"""The questions: strings of three digits, to be written backwards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DIGITS = 3


class Questions:
    """An endless data loader: lists of *batch_size* strings of digits, the same for the same *seed*."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._draw = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            yield [
                "".join(map(str, digits)) for digits in self._draw.integers(0, 10, (self.batch_size, DIGITS))
            ]
