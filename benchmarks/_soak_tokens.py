"""Judge a trajectory by its tokens: the servers make each of them from the version and all that stand before.

A token that is missing, doubled, or from other weights than it is said to be from shows in the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from _soak_items import number_in
from areal_core.embedded import logprob_of, token_of

_LETTERS = b" abcdefghijklmnopqrstuvwxyz"
_EXACT_ENOUGH = 1e-5  # of log-probabilities, which are float32 in a trajectory


def number_of(trajectory: dict[str, Any]) -> int:
    """Return the number of the item that a trajectory is of."""
    row = _real(trajectory, "input_ids", 0)
    told = _real(trajectory, "versions", 0) < 0
    return number_in(bytes(row[told].tolist()))


class Judge:
    """Finds what is wrong with trajectories, whose tokens may be *bound* versions old."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self.newest = 0
        """The newest version that any server can have."""
        self.tokens = 0
        """How many were judged."""
        self.oldest = 0
        """The greatest staleness of a token that was to be trained on."""

    def complaints(self, trajectory: dict[str, Any], version: int, is_bounded: bool = True) -> Iterator[str]:
        """Say what is wrong with one that was handed out at *version* or later."""
        samples = len(trajectory["input_ids"])
        if len({number_in(_prompt(trajectory, row)) for row in range(samples)}) != 1:
            yield "the rows of its group are of several items"
        for row in range(samples):
            yield from self._of_row(trajectory, row, version, is_bounded)

    def _of_row(self, trajectory: dict[str, Any], row: int, version: int, is_bounded: bool) -> Iterator[str]:
        tokens = _real(trajectory, "input_ids", row).tolist()
        told = _real(trajectory, "versions", row).tolist()
        trained = _real(trajectory, "loss_mask", row).tolist()
        logprobs = _real(trajectory, "logprobs", row)
        is_exact = bool(trajectory["exact"][row])
        if not any(one >= 0 for one in told):
            yield "it has no token of the model's"
        for place, said in enumerate(told):
            if said < 0:
                if trained[place]:
                    yield f"token {place} is the prompt's, and is to be trained on"
                continue
            self._count(said, trained[place] and is_bounded, version)
            if trained[place] and is_bounded and said < version - self._bound:
                yield f"token {place} is of version {said}, handed out at {version} or later"
            true = _true_version(tokens[:place], tokens[place], said)
            if true > self.newest or (is_exact and true != said):
                yield f"token {place} is said to be of version {said}; by its letter it is not ({true})"
            elif abs(float(logprobs[place]) - logprob_of(true, tokens[:place])) > _EXACT_ENOUGH:
                yield f"token {place} has the log-probability of another"

    def _count(self, said: int, is_bounded: int, version: int) -> None:
        self.tokens += 1
        if is_bounded:
            self.oldest = max(self.oldest, version - said)


def _true_version(prefix: list[int], token: int, said: int) -> int:
    """Return the first version from *said* on that makes *token* after *prefix*."""
    if token not in _LETTERS:
        return 2**31
    letter = _LETTERS.index(token_of(said, prefix, may_end=False))
    return said + (_LETTERS.index(token) - letter) % len(_LETTERS)


def _prompt(trajectory: dict[str, Any], row: int) -> bytes:
    told = _real(trajectory, "versions", row) < 0
    return bytes(_real(trajectory, "input_ids", row)[told].tolist())


def _real(trajectory: dict[str, Any], key: str, row: int) -> Any:
    """Return a row without its padding."""
    return np.asarray(trajectory[key][row])[np.asarray(trajectory["attention_mask"][row]) != 0]
