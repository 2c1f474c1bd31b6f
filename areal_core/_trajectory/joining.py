"""Make one trajectory of several: `concat_padded_tensors`."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from areal_core._trajectory.arrays import PER_TOKEN, kind_of, letter_of, shape_of, shown, type_of


def concat_padded_tensors(trajectories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one trajectory with the samples of all *trajectories*, in their order.

    Per-token arrays are padded on the right to the longest seqlen: with -1 in versions, with 0 elsewhere.
    Those are the ones known for it, and every other whose shape[1] is the seqlen of input_ids in each of the
    trajectories. All others, and lists, are put one behind the other as they are. Dtypes are kept; where they
    differ, the result has the one that NumPy or torch promotes them to.

    The arrays are new, and the trajectories untouched; but one alone is returned as it is. Raises ValueError
    for none, and where keys, kinds, devices, batches or other dimensions do not fit together, TypeError for
    what is neither an array nor a list.
    """
    _check_dicts(trajectories)
    first = trajectories[0]
    if len(trajectories) == 1:
        return first
    _check_keys(trajectories)
    shapes = [_shape_of_tokens(place, one["input_ids"]) for place, one in enumerate(trajectories)]
    return {key: _join(key, [one[key] for one in trajectories], shapes) for key in first}


def _check_dicts(trajectories: Sequence[object]) -> None:
    if not trajectories:
        raise ValueError("trajectories is empty; give at least one")
    for place, one in enumerate(trajectories):
        if not isinstance(one, dict):
            raise TypeError(f"trajectories[{place}] is {type_of(one)}, not a dict; leave it out")


def _check_keys(trajectories: Sequence[Mapping[str, Any]]) -> None:
    first = trajectories[0].keys()
    if "input_ids" not in first:
        raise ValueError(f"trajectories[0] lacks input_ids; it has {sorted(first)}; add it")
    for place, one in enumerate(trajectories):
        if one.keys() != first:
            lacking, odd = sorted(first - one.keys()), sorted(one.keys() - first)
            raise ValueError(
                f"trajectories[{place}] lacks {lacking} and has {odd}, other than trajectories[0]; "
                "give all the same keys"
            )


def _shape_of_tokens(place: int, tokens: Any) -> tuple[int, int]:
    if kind_of(tokens) in (None, "list"):
        raise TypeError(f"input_ids of trajectories[{place}] is {type_of(tokens)}; give an array")
    if len(tokens.shape) != 2:
        raise ValueError(
            f"input_ids of trajectories[{place}] has the shape {shown(tokens.shape)} "
            "where [batch, seqlen] is expected; add the batch dimension: array[None]"
        )
    return tokens.shape[0], tokens.shape[1]


def _join(key: str, parts: Sequence[Any], shapes: Sequence[tuple[int, int]]) -> Any:
    kind = kind_of(parts[0])
    for place, part in enumerate(parts):
        _check_part(key, place, part, parts[0], shapes[place][0])
    if kind == "list":
        return list(itertools.chain.from_iterable(parts))
    if not _is_per_token(key, parts, shapes):
        _check_same_dimensions(key, parts, 1)
    else:
        _check_same_dimensions(key, parts, 2)
        if len({seqlen for _, seqlen in shapes}) > 1:
            return _pad_and_join(key, parts)
    return np.concatenate(parts) if kind == "NumPy array" else sys.modules["torch"].cat(parts)


def _check_part(key: str, place: int, part: Any, first: Any, batch_size: int) -> None:
    kind = kind_of(part)
    where = f"{key} of trajectories[{place}]"
    if kind is None:
        raise TypeError(f"{where} is {type_of(part)}; give an array, or a list with one entry per sample")
    if kind != kind_of(first):
        raise ValueError(
            f"{where} is a {kind} where that of trajectories[0] is a {kind_of(first)}; give all as one kind"
        )
    if kind == "torch tensor" and part.device != first.device:
        raise ValueError(
            f"{where} is on {part.device} where that of trajectories[0] is on {first.device}; "
            "move all to one device"
        )
    found = shape_of(part)
    if found[:1] != (batch_size,):
        raise ValueError(
            f"{where} has the shape {shown(found)} where [{batch_size}, ...] is expected, as its input_ids "
            f"has {batch_size} samples; give one entry per sample"
        )
    if kind == "NumPy array" and part.dtype.hasobject:
        raise TypeError(f"{where} has the dtype {part.dtype}; give a list with one entry per sample")


def _is_per_token(key: str, parts: Sequence[Any], shapes: Sequence[tuple[int, int]]) -> bool:
    for place, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        if tuple(part.shape[:2]) == shape:
            continue
        if key in PER_TOKEN:
            raise ValueError(
                f"{key} of trajectories[{place}] has the shape {shown(part.shape)} where {shown(shape)} is "
                "expected, as input_ids has; give one entry per token"
            )
        return False
    return True


def _check_same_dimensions(key: str, parts: Sequence[Any], start: int) -> None:
    first = parts[0].shape
    for place, part in enumerate(parts):
        if len(part.shape) != len(first) or part.shape[start:] != first[start:]:
            raise ValueError(
                f"{key} of trajectories[{place}] has the shape {shown(part.shape)} where that of "
                f"trajectories[0] has {shown(first)}; let only the batch differ, and the seqlen in arrays "
                "with one entry per token"
            )


def _pad_and_join(key: str, parts: Sequence[Any]) -> Any:
    padding = -1 if key == "versions" else 0
    if padding:
        _check_signed(key, parts)
    joined = _empty(parts, sum(len(part) for part in parts), max(part.shape[1] for part in parts))
    row = 0
    for part in parts:  # every entry is written once
        rows = joined[row : row + len(part)]
        rows[:, : part.shape[1]] = part
        rows[:, part.shape[1] :] = padding
        row += len(part)
    return joined


def _check_signed(key: str, parts: Sequence[Any]) -> None:
    for place, part in enumerate(parts):
        if letter_of(part) not in "if":
            raise ValueError(
                f"{key} of trajectories[{place}] has the dtype {part.dtype}, where padding is -1; "
                "give signed integers"
            )


def _empty(parts: Sequence[Any], batch_size: int, seqlen: int) -> Any:
    shape = (batch_size, seqlen, *parts[0].shape[2:])
    if isinstance(parts[0], np.ndarray):
        return np.empty(shape, np.result_type(*[part.dtype for part in parts]))
    promoted = functools.reduce(sys.modules["torch"].promote_types, [part.dtype for part in parts])
    return parts[0].new_empty(shape, dtype=promoted)
