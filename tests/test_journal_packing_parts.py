"""Packing at its limits, in its words, and of tensors without torch."""

from __future__ import annotations

import inspect
import struct
import sys
import types
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest

from areal_core._journal import packing
from areal_core._journal.packing import PackingError, pack, unpack


def nested(levels: int, make: Any) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = make(value)
    return value


def packed(structure: Any, arrays: bytes = b"") -> bytes:
    """Return *structure* as `pack` writes it, with *arrays* after it."""
    data = msgspec.msgpack.encode(structure)
    return struct.pack("<4sII", b"ajp1", len(data), zlib.crc32(data)) + data + arrays


def array(*where: Any, code: int = 2) -> Any:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(where))


@pytest.mark.parametrize("make", [lambda one: [one], lambda one: {"k": one}], ids=["lists", "dicts"])
def test_64_levels_can_be_written_and_no_more(make: Any) -> None:
    assert unpack(pack(nested(64, make))) == nested(64, make)
    key = make("x") == ["x"]
    where = "value" + ("[0]" if key else "['k']") * 4
    with pytest.raises(PackingError) as caught:
        pack(nested(65, make))
    assert str(caught.value) == f"{where} is or has more than 64 levels, which the journal cannot write"


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 2**63])
@pytest.mark.parametrize("others", [[], [1.5, True], ["x"]], ids=["alone", "numbers", "texts"])
def test_the_greatest_and_the_smallest_numbers_come_back(number: int, others: list[Any]) -> None:
    assert unpack(pack(number)) == number
    assert unpack(pack([number, *others])) == [number, *others]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
@pytest.mark.parametrize("others", [[], [1.5, True], ["x"]], ids=["alone", "numbers", "texts"])
def test_a_number_that_is_too_large_is_told_with_its_place(number: int, others: list[Any]) -> None:
    with pytest.raises(PackingError, match=rf"^value\[0\] is or has an int of {number.bit_length()} bits"):
        pack([number, *others])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [np.void(b"x")]}, r"^value\['a'\]\[0\] is or has an array of dtype \|V1, which"),
        ({"a": {2**64: 1}}, r"^value\['a'\] is or has an int of 65 bits"),
    ],
    ids=["number", "key"],
)
def test_what_numpy_alone_knows_and_a_key_are_told_with_their_place(value: Any, words: str) -> None:
    with pytest.raises(PackingError, match=words):
        pack(value)


def test_where_the_stack_is_nearly_full_a_structure_may_be_too_deep_for_it() -> None:
    deep, before = nested(60, lambda one: [one]), sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 50)
    try:
        with pytest.raises(PackingError, match=r"^the structure is nested too deeply$"):
            pack(deep)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("values", "simple"),
    [
        ([1, 2], True),
        ([1, float("nan"), True], True),
        ([None, b"x", 1.5, False], True),
        ([None], True),
        ([], True),
        ([1, None], False),
        (["x"], False),
        ([float("nan"), 2**64], False),
        ([-(2**63), 2**64 - 1], True),
        ([float("nan"), -(2**63), 2**64 - 1], True),
    ],
)
def test_lists_of_numbers_are_left_as_they_are(values: list[Any], simple: bool) -> None:
    assert packing._is_simple(values) is simple


@pytest.mark.parametrize(("length", "shown"), [(38, "'" + "k" * 38 + "'"), (39, "'" + "k" * 39 + "...")])
def test_a_long_key_is_cut_where_its_place_is_told(length: int, shown: str) -> None:
    with pytest.raises(PackingError) as caught:
        pack({"k" * length: {1}})
    assert str(caught.value).startswith(f"value[{shown}] is or has a set")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(11), "11 bytes are too few to be anything packed"),
        (bytes(12), "these bytes are damaged, or were not written by pack"),
        (packed(1, b"xy"), "2 bytes of arrays, where there should be 0"),
        (packed(array("<i4", (1,), 0, 5), b"abcd"), "the bytes of an array are missing"),
        (packed(array("<i4", (1,), 1, 4), b"abcd"), "the bytes of an array are missing"),
        (packed(array("<i4", (1,), -1, 4), b"abcd"), "the bytes of an array are missing"),
        (packed(array("<i4", (-1,), 0, 4), b"abcd"), "the bytes of an array are missing"),
        (packed(array("<i4", (2,), 0, 4), b"abcd"), "4 bytes are no array of dtype <i4 and shape [2]"),
        (packed(array("|O", (0,), 0, 0)), "0 bytes are no array of dtype |O and shape [0]"),
    ],
)
def test_what_is_wrong_with_bytes_is_told(data: bytes, words: str) -> None:
    with pytest.raises(PackingError) as caught:
        unpack(data)
    assert str(caught.value) == words


def test_what_makes_no_sense_to_numpy_is_told_in_its_words() -> None:
    with pytest.raises(PackingError, match=r"^these bytes make no sense: TypeError: .*nonsense"):
        unpack(packed(array("nonsense", (1,), 0, 0)))


@pytest.mark.parametrize("value", ["\ud800", np.zeros((0, 3), "<f4"), np.zeros((2, 0), "<i8")], ids=repr)
def test_empty_arrays_and_lone_surrogates_come_back(value: Any) -> None:
    found = unpack(pack([value]))[0]
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
    else:
        assert found == value


class Tensor:
    """As much of torch's as packing takes."""

    is_quantized = False
    layout = "strided"

    def __init__(self, array: np.ndarray[Any, Any], done: tuple[str, ...] = ()) -> None:
        self.array, self.done = array, done
        self.dtype = f"torch.{array.dtype}"
        self.shape = array.shape

    def detach(self) -> Tensor:
        return self

    resolve_conj = resolve_neg = contiguous = detach

    def to(self, device: str) -> Tensor:
        assert device == "cpu"
        return self

    def reshape(self, *shape: Any) -> Tensor:
        assert min(np.ravel(shape), default=0) >= -1, "of negative numbers torch takes -1 alone"
        return Tensor(self.array.reshape(*shape))

    def view(self, dtype: Any) -> Tensor:
        return Tensor(self.array.view(dtype.kind))

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.array


class Dtype:
    def __init__(self, kind: Any) -> None:
        self.kind = kind


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    made = types.SimpleNamespace(
        Tensor=Tensor,
        dtype=Dtype,
        strided=Tensor.layout,
        uint8=Dtype(np.uint8),
        int32=Dtype(np.int32),
        empty=lambda shape, dtype: Tensor(np.empty(shape, dtype.kind)),
        frombuffer=lambda data, dtype: Tensor(np.frombuffer(data, dtype.kind)),
    )
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
@pytest.mark.usefixtures("torch")
def test_a_tensor_comes_back(shape: tuple[int, ...]) -> None:
    given = np.full(shape, 7, np.int32)
    found = unpack(pack([Tensor(given)]))[0]
    assert type(found) is Tensor and (found.dtype, found.shape) == ("torch.int32", shape)
    assert (found.array == given).all()


@pytest.mark.parametrize(
    "change", [("layout", "sparse"), ("is_quantized", True)], ids=lambda change: change[0]
)
@pytest.mark.usefixtures("torch")
def test_a_tensor_that_is_not_dense_is_refused(change: tuple[str, Any]) -> None:
    tensor = Tensor(np.zeros(1, np.int32))
    setattr(tensor, *change)
    words = rf"^value\[0\] is or has a tensor of layout {tensor.layout} and dtype torch.int32, which"
    with pytest.raises(PackingError, match=words):
        pack([tensor])


@pytest.mark.usefixtures("torch")
def test_a_dtype_that_this_torch_does_not_have_is_told() -> None:
    with pytest.raises(PackingError, match=r"^this torch has no dtype float3$"):
        unpack(packed(array("float3", (0,), 0, 0, code=3)))


def test_a_tensor_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(PackingError, match=r"^there is a torch tensor in this; import torch before"):
        unpack(packed(array("int32", (0,), 0, 0, code=3)))
