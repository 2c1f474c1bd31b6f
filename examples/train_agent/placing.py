"""Rows as the policy reads them: it puts padding before a prompt, which is in no trajectory."""

from __future__ import annotations

from typing import Any

import numpy as np

from areal_core.embedded import policy
from areal_core.trajectory import concat_padded_tensors

_PADDING = {"input_ids": policy.PAD, "attention_mask": 1, "versions": -1}
"""What stands there; in other arrays 0, so that none of it is trained."""


def placed(group: dict[str, Any]) -> dict[str, Any]:
    """Return the trajectory *group* with each token in the place where the policy reads it."""
    return concat_padded_tensors([_placed_row(group, row) for row in range(len(group["rewards"]))])


def _placed_row(group: dict[str, Any], row: int) -> dict[str, Any]:
    tokens = group["input_ids"][row].tolist()
    before = len(policy.place(tokens)) - len(tokens)
    return {
        name: _shifted(array[row : row + 1], before, _PADDING.get(name, 0)) for name, array in group.items()
    }


def _shifted(array: Any, before: int, padding: int) -> Any:
    """Return *array*, one row, shifted if it has something for each token."""
    if array.ndim == 1:
        return array
    return np.pad(array, ((0, 0), (before, 0)), constant_values=padding)
