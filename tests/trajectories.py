"""Trajectories for tests, of NumPy arrays and of torch tensors where torch is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Convert = Callable[[Any], Any]


def a_trajectory(batch_size: int = 1, seqlen: int = 5, **others: Any) -> dict[str, Any]:
    """Return a correct one, with *others* in it or instead; its tokens are 10, 11, ..."""
    shape = (batch_size, seqlen)
    return {
        "input_ids": np.arange(10, 10 + batch_size * seqlen).reshape(shape),
        "attention_mask": np.ones(shape, np.int32),
        "loss_mask": np.ones(shape, np.int32),
        "logprobs": np.full(shape, -0.5, np.float32),
        "versions": np.full(shape, 3, np.int32),
        "rewards": np.ones(batch_size, np.float32),
        **others,
    }


def as_given(value: Any) -> Any:
    """Leave NumPy arrays as they are."""
    return value


def as_tensor(value: Any) -> Any:
    """Make a torch tensor of a NumPy array, and leave others as they are."""
    torch = pytest.importorskip("torch")
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


both_kinds = pytest.mark.parametrize("convert", [as_given, as_tensor], ids=["numpy", "torch"])
"""Run a test with each of both, as argument ``convert``."""


def converted(trajectory: dict[str, Any], convert: Convert) -> dict[str, Any]:
    """Return *trajectory* with every value converted."""
    return {key: convert(value) for key, value in trajectory.items()}
