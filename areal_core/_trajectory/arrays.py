"""The kinds of values in a trajectory, told apart without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

Kind: TypeAlias = Literal["NumPy array", "torch tensor", "list"]

PER_TOKEN = frozenset({"attention_mask", "loss_mask", "logprobs", "versions"})
"""Keys whose arrays begin with the shape of input_ids, whatever else a trajectory has."""


def kind_of(value: object) -> Kind | None:
    """Return what *value* is; None: nothing that a trajectory may have."""
    if isinstance(value, np.ndarray):
        return "NumPy array"
    if isinstance(value, list):
        return "list"
    # Whoever gives a tensor has imported torch; an import under way has no Tensor yet.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return "torch tensor" if tensor is not None and isinstance(value, tensor) else None


def letter_of(array: Any) -> str:
    """Return NumPy's letter for the kind of *array*'s numbers: b, i, u, f, c; others for no numbers.

    Nor are torch's unsigned integers any but uint8: torch itself cannot compare them.
    """
    if isinstance(array, np.ndarray):
        letter: str = array.dtype.kind
        return letter
    dtype = array.dtype
    if dtype.is_floating_point or dtype.is_complex:
        return "f" if dtype.is_floating_point else "c"
    if dtype.is_signed:
        return "i"
    return {"torch.bool": "b", "torch.uint8": "u"}.get(str(dtype), "V")


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array or tensor, and of a list the number of its entries."""
    return (len(value),) if isinstance(value, list) else tuple(value.shape)


def shown(shape: Sequence[int]) -> str:
    """Return *shape* as messages have it: NumPy's and torch's look alike."""
    return str(list(shape))


def type_of(value: object) -> str:
    """Return what messages call a *value* that should be something else; never what is in it."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def is_array(value: object) -> bool:
    """Return whether *value* is a NumPy array or a torch tensor."""
    return kind_of(value) in ("NumPy array", "torch tensor")


def copy_of(array: Any) -> Any:
    """Return a copy of *array*: a tensor's is in main memory, outside of autograd."""
    if isinstance(array, np.ndarray):
        return array.copy()
    return array.detach().to("cpu", copy=True)
