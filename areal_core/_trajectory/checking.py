"""Judge one trajectory: `check_trajectory_format`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from areal_core._trajectory.arrays import PER_TOKEN, Kind, kind_of, letter_of, shape_of, shown, type_of

_REQUIRED = ("input_ids", "attention_mask")
_ARRAYS_ONLY = PER_TOKEN | {"input_ids", "rewards"}
_LETTERS = {"input_ids": "iu", "attention_mask": "biu", "versions": "i", "logprobs": "f", "rewards": "biuf"}
_IN_WORDS = {
    "iu": "integers such as int64",
    "biu": "integers such as int64, or bools",
    "i": "signed integers",
    "f": "floats",
    "biuf": "numbers or bools",
    "biufc": "numbers or bools",
}
_FINITE = {
    "loss_mask": "0 for tokens that are not trained, and finite numbers for others",
    "rewards": "finite numbers; return None from the workflow to reject the episode",
}


class TrajectoryShape(NamedTuple):
    """The shape of a trajectory's ``input_ids``."""

    batch_size: int
    seqlen: int


def check_trajectory_format(
    trajectory: dict[str, Any], *, batch_size: int | None = None, expected_keys: Iterable[str] | None = None
) -> TrajectoryShape:
    """Return the shape of *trajectory* if it is as `areal_core.trajectory` says.

    *batch_size* is how many samples it has to have, None: at least one. *expected_keys* are the keys it has
    to have, no fewer and no more; None: any besides the two that are always there.

    Raises TypeError for a value that is not of the right type or dtype, ValueError for wrong keys, shapes and
    entries: those of attention_mask other than 0 and 1, versions below -1, negative token ids, and what would
    be in all weights after the next step: NaN in logprobs, NaN and infinity in rewards and loss_mask. The
    message names the key. Nothing is changed or copied; tensors on another device are waited for.
    """
    _check_keys(trajectory, expected_keys)
    tokens = trajectory["input_ids"]
    _check_type("input_ids", tokens, kind_of(tokens))
    shape = _shape_of_tokens(tokens, batch_size)
    for key, value in trajectory.items():
        kind = _check_type(key, value, kind_of(tokens))
        _check_batch(key, value, shape)
        if kind != "list":
            _check_shape(key, value, shape)
            _check_entries(key, value)
    return shape


def _check_keys(trajectory: object, expected: Iterable[str] | None) -> None:
    if not isinstance(trajectory, dict):
        raise TypeError(
            f"the trajectory is {type_of(trajectory)}, not a dict; "
            "return a dict of arrays, or None to reject the episode"
        )
    for key in trajectory:
        if not isinstance(key, str):
            raise TypeError(f"the trajectory has the key {key!r}, which is not a str; give values names")
    lacking = [key for key in _REQUIRED if key not in trajectory]
    if lacking:
        raise ValueError(f"the trajectory lacks {lacking}; it has {sorted(trajectory)}; add what is missing")
    if expected is not None and (wrong := set(expected) ^ trajectory.keys()):
        lacking, odd = sorted(wrong - trajectory.keys()), sorted(wrong & trajectory.keys())
        raise ValueError(
            f"the trajectory lacks the keys {lacking} and has {odd}, which are not expected; "
            "return the same keys from every episode"
        )


def _check_type(key: str, value: Any, of_tokens: Kind | None) -> Kind:
    """Return which kind of value it is; *of_tokens* is that of input_ids."""
    kind = kind_of(value)
    if kind is None or (kind == "list" and key in _ARRAYS_ONLY):
        instead = "an array" if key in _ARRAYS_ONLY else "an array, or a list with one entry per sample"
        raise TypeError(f"{key} is {type_of(value)}; give {instead}, or leave the key out")
    if kind == "list":
        return kind
    if kind != of_tokens:
        raise TypeError(f"{key} is a {kind} where input_ids is a {of_tokens}; give all as one kind")
    letters = _LETTERS.get(key, "biufc")
    if letter_of(value) not in letters:
        raise TypeError(f"{key} has the dtype {value.dtype}; give {_IN_WORDS[letters]}{_instead(key)}")
    return kind


def _instead(key: str) -> str:
    return "" if key in _ARRAYS_ONLY else ", or a list with one entry per sample"


def _shape_of_tokens(tokens: Any, batch_size: int | None) -> TrajectoryShape:
    found = tuple(tokens.shape)
    if len(found) == 1:
        raise ValueError(
            f"input_ids has the shape {shown(found)} where [batch, seqlen] is expected; "
            "add the batch dimension to each array: array[None]"
        )
    if len(found) != 2 or 0 in found:
        raise ValueError(
            f"input_ids has the shape {shown(found)} where [batch, seqlen] is expected; "
            "give at least one sample of at least one token"
        )
    if batch_size not in (None, found[0]):
        raise ValueError(
            f"input_ids has the shape {shown(found)} where [{batch_size}, seqlen] is expected; "
            f"give batch_size={batch_size} samples"
        )
    return TrajectoryShape(*found)


def _check_batch(key: str, value: Any, shape: TrajectoryShape) -> None:
    found = shape_of(value)
    if found[:1] != shape[:1]:
        raise ValueError(
            f"{key} has the shape {shown(found)} where [{shape.batch_size}, ...] is expected, as input_ids "
            f"is {shown(shape)}; give one entry per sample"
        )


def _check_shape(key: str, array: Any, shape: TrajectoryShape) -> None:
    found = tuple(array.shape)
    if key in PER_TOKEN and found != shape:
        raise ValueError(
            f"{key} has the shape {shown(found)} where {shown(shape)} is expected, as input_ids has; "
            "give one entry per token"
        )
    if key == "rewards" and found not in (shape[:1], shape):
        raise ValueError(
            f"rewards has the shape {shown(found)} where {shown(shape[:1])} is expected, or {shown(shape)}; "
            "give one number per sample, or one per token"
        )


def _check_entries(key: str, array: Any) -> None:
    if key == "input_ids":
        _refuse(key, array, array < 0, "token ids from 0")
    elif key == "attention_mask":
        _refuse(key, array, (array < 0) | (array > 1), "1 for tokens and 0 for padding")
    elif key == "versions":
        _refuse(key, array, array < -1, "policy versions, and -1 for tokens that no policy made")
    elif key == "logprobs":
        _refuse(key, array, array != array, "0 for tokens that were not sampled")
    elif key in _FINITE and letter_of(array) in "fc":
        _refuse(key, array, (array != array) | (abs(array) == math.inf), _FINITE[key])


def _refuse(key: str, array: Any, odd: Any, instead: str) -> None:
    """Raise ValueError if *odd*, which says it of each entry of *array*, is true anywhere."""
    if odd.any():
        raise ValueError(f"{key} has {array[odd][0].item()}; give {instead}")
