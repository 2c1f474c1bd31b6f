"""Refuse at once what every episode would fail with."""

from __future__ import annotations

from reprlib import repr as short

from areal_core.types import GenerationHyperparameters


def check_gconfig(gconfig: object) -> GenerationHyperparameters:
    """Return *gconfig*. Raises TypeError or ValueError unless it says how to generate one reply."""
    if not isinstance(gconfig, GenerationHyperparameters):
        raise TypeError(f"gconfig={short(gconfig)} is not a GenerationHyperparameters; give one")
    if gconfig.n_samples != 1:
        raise ValueError(
            f"gconfig has n_samples={gconfig.n_samples}, and an episode has one conversation; "
            f"give n_samples=1 here, and group_size={gconfig.n_samples} to the executor"
        )
    return gconfig
