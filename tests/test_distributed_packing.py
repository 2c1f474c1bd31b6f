"""Arrays of many trajectories as few, and out again."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from areal_core._distributed.packing import Packed, apart, pack, unpack

pytestmark = pytest.mark.any_loop

KINDS = ["?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "e", "f", "d", "g", "F", "D", "G"]
"""The types of numbers there are, in NumPy's letters."""

NAMES = st.sampled_from(["input_ids", "versions", "rewards", "odd", ""])


def packed(trajectories: list[Any]) -> Packed:
    return pack([apart(trajectory) for trajectory in trajectories])


@st.composite
def some_arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Return an array of numbers of any type and shape, in one of the ways in which memory can hold it."""
    dtype = np.dtype(draw(st.sampled_from(KINDS)))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    made = draw(arrays.arrays(dtype, shape))
    how = draw(st.sampled_from(["as it is", "columns first", "every other", "backwards", "transposed"]))
    if how == "columns first":
        return np.asfortranarray(made).reshape(shape, order="A")
    if how == "every other" and shape:
        return np.repeat(made, 2, axis=-1)[..., ::2]
    if how == "backwards" and shape:
        return made[::-1]
    return made.T if how == "transposed" else made


@given(st.lists(st.dictionaries(NAMES, some_arrays(), max_size=4), max_size=6))
def test_arrays_come_out_as_they_were(trajectories: list[dict[str, np.ndarray[Any, Any]]]) -> None:
    came = list(unpack(pickle.loads(pickle.dumps(packed(trajectories)))))
    assert len(came) == len(trajectories)
    for before, after in zip(trajectories, came, strict=True):
        assert list(before) == list(after)
        for name, array in before.items():
            assert after[name].dtype == array.dtype and after[name].shape == array.shape
            assert np.array_equal(after[name], array, equal_nan=array.dtype.kind in "fc")


def test_all_arrays_of_a_type_lie_in_one() -> None:
    ids, rewards = np.zeros((2, 3), np.int64), np.zeros(2, np.float32)
    layouts, which, flats = packed([{"ids": ids, "more": ids, "rewards": rewards}] * 5 + [{"ids": ids[:1]}])
    assert {kind: flat.shape for kind, flat in flats.items()} == {"<i8": (63,), "<f4": (10,)}
    assert len(layouts) == 2 and which == [0] * 5 + [1]


def test_what_comes_out_is_a_view_and_what_went_in_is_not_changed_with_it() -> None:
    array = np.arange(4)
    made = packed([{"ids": array}, {"ids": array}])
    first, second = unpack(made)
    assert first["ids"].base is not None and np.shares_memory(first["ids"], made[2]["<i8"])
    first["ids"][0] = 7
    assert array[0] == 0 and second["ids"][0] == 0


def test_what_is_read_only_stays_so() -> None:
    made = packed([{"ids": np.arange(4)}])
    made[2]["<i8"].flags.writeable = False
    (came,) = unpack(made)
    assert not came["ids"].flags.writeable


class Marked(np.ndarray[Any, Any]):
    """An array of somebody's own."""


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3).astype(">i4"),
        np.array(["a", None], object),
        np.array(["ab"]),
        np.array([b"ab"]),
        np.array([1], "datetime64[s]"),
        np.zeros(2, [("a", int)]),
        np.ma.masked_array([1, 2], [True, False]),
        np.arange(2).view(Marked),
        np.float32(1.0),
        [1, 2],
        "words",
        None,
        1.0,
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_what_is_no_plain_array_of_numbers_is_left_out(value: Any) -> None:
    trajectory = {"odd": value, "ids": np.arange(3)}
    assert apart(trajectory).rest.keys() == {"odd"}
    (came,) = unpack(packed([trajectory]))
    assert list(came) == ["ids"]


def test_a_trajectory_without_arrays_keeps_its_place() -> None:
    came = list(unpack(packed([{}, {"ids": np.arange(3)}, {"words": "a"}])))
    assert [list(one) for one in came] == [[], ["ids"], []]
    assert list(unpack(packed([]))) == []
