"""Adam, with the gradient's norm bounded, and a learning rate that falls."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from areal_core.embedded.policy import Floats

_DECAY = 0.9, 0.95
_EPSILON = 1e-8


class Adam:
    """Changes *parameters* in place."""

    def __init__(self, parameters: dict[str, Floats], largest_norm: float = 1.0) -> None:
        self._parameters = parameters
        self._largest_norm = largest_norm
        self._mean = {name: np.zeros_like(array) for name, array in parameters.items()}
        self._square = {name: np.zeros_like(array) for name, array in parameters.items()}
        self._steps = 0

    def step(self, gradient: Mapping[str, Floats], rate: float) -> None:
        """Go one step down *gradient*."""
        self._steps += 1
        norm = math.sqrt(sum(float(np.vdot(array, array)) for array in gradient.values()))
        scale = min(1.0, self._largest_norm / (norm + _EPSILON))
        first, second = _DECAY
        for name in self._parameters:
            change = gradient[name] * scale
            mean, square = self._mean[name], self._square[name]
            mean += (1 - first) * (change - mean)
            square += (1 - second) * (change * change - square)
            size = rate / (1 - first**self._steps)
            self._parameters[name] -= size * mean / (np.sqrt(square / (1 - second**self._steps)) + _EPSILON)


def cosine(step: int, steps: int, highest: float, lowest: float) -> float:
    """Return the rate of step number *step* of *steps*: from *highest* at first down to *lowest*.

    With a constant rate the training collapses where tokens are four versions old.
    """
    done = step / max(1, steps - 1)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * done)) / 2
