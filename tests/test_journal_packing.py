"""Items of data and trajectories as bytes, and back."""

from __future__ import annotations

import collections
import math
import random
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from areal_core._journal.packing import PackingError, pack, unpack
from children import RunScript
from trajectories import a_trajectory, both_kinds, converted

_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
_SIMPLE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), _TEXT, st.binary()
)
_DTYPES = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?"),
    npst.complex_number_dtypes(endianness="?"),
    npst.unicode_string_dtypes(endianness="?"),
    npst.byte_string_dtypes(),
    npst.datetime64_dtypes(endianness="?"),
)
_ARRAYS = npst.arrays(_DTYPES, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
_KEYS = st.one_of(st.text(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.none(), st.booleans())
_VALUES = st.recursive(
    st.one_of(_SIMPLE, _ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Return whether both are of the same types throughout, and equal, NaN to NaN."""
    if isinstance(one, np.ndarray | np.generic):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype.newbyteorder(one.dtype.byteorder)
            and one.shape == other.shape
            and np.asarray(one, one.dtype.newbyteorder("<")).tobytes() == other.tobytes()
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(_VALUES)
def test_what_is_packed_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    assert same(value, unpack(pack(value)))


@both_kinds
def test_a_trajectory_comes_back(convert: Callable[[Any], Any]) -> None:
    trajectory = converted(a_trajectory(3, 7, images=["a", b"b"], tags=("x", 1)), convert)
    found = unpack(pack(trajectory))
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in trajectory.items()
    }
    assert all(
        (found[key] == value).all() if hasattr(value, "shape") else found[key] == value
        for key, value in trajectory.items()
    )


def test_tensors_come_back_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    for given_ in (
        torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        torch.tensor(3.5, dtype=torch.float16),
        torch.zeros((0, 4), dtype=torch.int32),
        torch.ones(3, requires_grad=True),
        torch.ones(4, dtype=torch.bool)[::2],
        torch.tensor([1 + 2j]).conj(),
    ):
        found = unpack(pack(given_))
        assert (found.dtype, found.shape, found.requires_grad) == (given_.dtype, given_.shape, False)
        assert torch.equal(found, given_.detach().resolve_conj())


@pytest.mark.parametrize(
    "value",
    [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("é"), np.datetime64("2026-01-01")],
    ids=repr,
)
def test_numbers_of_numpy_keep_their_type(value: Any) -> None:
    assert same(value, unpack(pack(value)))


@pytest.mark.parametrize(
    "array",
    [np.arange(12).reshape(3, 4)[:, ::2], np.asfortranarray(np.ones((2, 3))), np.arange(3, dtype=">i4")],
    ids=["strided", "Fortran", "big-endian"],
)
def test_arrays_that_lie_otherwise_in_memory_are_equal(array: Any) -> None:
    found = unpack(pack(array))
    assert (found == array).all() and found.shape == array.shape and found.flags.c_contiguous


def test_arrays_that_come_back_can_be_written_to_and_share_nothing() -> None:
    first, second = unpack(pack([np.zeros(3), np.zeros(3)]))
    first += 1
    assert second.tolist() == [0, 0, 0]


def test_what_is_packed_does_not_change_with_the_array() -> None:
    array = np.zeros(3)
    packed = pack({"x": array})
    array += 1
    assert unpack(packed)["x"].tolist() == [0, 0, 0]


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        ({"a": [1, {2}]}, r"value\['a'\]\[1\]", "a set"),
        ([1, (2, 2**64)], r"value\[1\]\[1\]", "an int of 65 bits"),
        ([0, -(2**63) - 1], r"value\[1\]", "an int of 64 bits"),
        ([0, -(2**70)], r"value\[1\]", "an int of 71 bits"),
        ({"a": np.array([None])}, r"value\['a'\]", "an array of dtype object"),
        (np.zeros(2, [("x", "i4")]), "value", "an array of dtype"),
        (np.ma.masked_array([1, 2], [True, False]), "value", "a MaskedArray"),
        ({(1, 2): 3}, "value", "a tuple as a key"),
        ({"\ud800": 3}, "value", "a key with a lone surrogate"),
        ({"p": Point(1, 2)}, r"value\['p'\]", "a Point"),
        ({"lock": threading.Lock()}, r"value\['lock'\]", "a lock"),
        (collections.OrderedDict(a=1), "value", "a OrderedDict"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_packed_is_told_with_its_place(value: Any, where: str, what: str) -> None:
    with pytest.raises(PackingError, match=rf"^{where} is or has {what}"):
        pack(value)


def test_endless_structures_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    round_: dict[str, Any] = {}
    round_["x"] = (round_,)
    for value in (endless, round_):
        with pytest.raises(PackingError, match="levels"):
            pack(value)


@pytest.mark.parametrize("data", [b"", b"x", b"{}", b"ajp1" + b"\0" * 8, b"\x80\x04]\x94.", bytes(100)])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(data)


def test_bytes_that_are_cut_short_or_longer_are_refused() -> None:
    packed = pack({"a": np.arange(20), "b": ("x", 2)})
    for length in range(len(packed)):
        with pytest.raises(PackingError):
            unpack(packed[:length])
    with pytest.raises(PackingError):
        unpack(packed + b"\0")


def test_a_changed_byte_of_the_structure_is_refused_and_one_of_an_array_changes_that_alone() -> None:
    given_ = {"a": np.arange(20), "b": ("x", 2)}
    packed = pack(given_)
    of_arrays = len(packed) - 160
    for place in range(len(packed)):
        changed = bytearray(packed)
        changed[place] ^= 1 << random.Random(place).randrange(8)
        if place < of_arrays:
            with pytest.raises(PackingError):
                unpack(bytes(changed))
        else:
            found = unpack(bytes(changed))
            assert found["b"] == ("x", 2) and (found["a"] != given_["a"]).sum() == 1


@given(st.binary(max_size=80))
def test_any_structure_is_read_or_refused(structure: bytes) -> None:
    data = struct.pack("<4sII", b"ajp1", len(structure), zlib.crc32(structure)) + structure
    try:
        unpack(data)
    except PackingError:
        pass


@pytest.mark.any_loop
def test_torch_is_never_imported(run_script: RunScript) -> None:
    script = run_script(
        """
        import sys
        import numpy as np
        from areal_core._journal.packing import pack, unpack

        unpack(pack({"x": np.zeros(3)}))
        print([name for name in ("torch", "pickle5", "sqlite3") if name in sys.modules])
        """
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "[]\n", "")
