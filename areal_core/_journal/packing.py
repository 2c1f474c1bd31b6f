"""Items of data and trajectories as bytes, and back: `pack` and `unpack`.

MessagePack for what it has words for. Tuples, arrays, NumPy's numbers and texts with lone surrogates are its
extension types; the bytes of arrays follow after it, so that packing copies them once. What comes back is
equal and of the same types; arrays can be written to, are in main memory, and need no gradient.

    magic, size and CRC-32 of the structure | the structure, msgpack | bytes of arrays, little-endian
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec
import numpy as np

from areal_core._trajectory.arrays import type_of

_MAGIC = b"ajp1"
_START = struct.Struct("<4sII")
_DEEPEST = 64  # levels of structure: msgspec has a limit of its own, and recursion another

_TUPLE, _ARRAY, _TENSOR, _NUMBER, _TEXT = range(1, 6)

_KINDS = "biufcSUmM"
"""NumPy's letters for what is only bytes: no objects, and nothing structured."""

_LARGEST, _SMALLEST = 2**64 - 1, -(2**63)


class PackingError(ValueError):
    """Something cannot be written as bytes, and the message says where it is; or bytes are not ours."""


def pack(value: Any) -> bytes:
    """Return *value* as bytes. Raises PackingError for what is none of these, and says where in it.

    None, bool, int of 64 bits, float, str, bytes; list, tuple, and dict with keys of the simple ones; NumPy
    arrays of numbers, texts and dates and NumPy's numbers; dense torch tensors. Subclasses are not taken
    for what they derive from.
    """
    packer = _Packer()
    try:
        structure = packer.encode(packer.plain(value, ()))
    except RecursionError:
        raise PackingError("the structure is nested too deeply") from None
    return b"".join((_START.pack(_MAGIC, len(structure), zlib.crc32(structure)), structure, *packer.parts))


def unpack(data: bytes) -> Any:
    """Return what `pack` was given. Raises PackingError for damaged and foreign bytes.

    Of arrays only the size is checked. A tensor needs torch, which its owner has imported.
    """
    if len(data) < _START.size:
        raise PackingError(f"{len(data)} bytes are too few to be anything packed")
    magic, size, check = _START.unpack_from(data)
    structure = memoryview(data)[_START.size : _START.size + size]
    if magic != _MAGIC or len(structure) != size or zlib.crc32(structure) != check:
        raise PackingError("these bytes are damaged, or were not written by pack")
    unpacker = _Unpacker(memoryview(data)[_START.size + size :])
    try:
        return unpacker.whole(structure)
    except PackingError:
        raise
    except Exception as error:  # whatever NumPy, torch or msgspec say of numbers that make no sense
        raise PackingError(f"these bytes make no sense: {type(error).__name__}: {error}") from error


class _Packer:
    """Packs one value."""

    def __init__(self) -> None:
        self.parts: list[memoryview] = []
        """The bytes of arrays, which come after the structure."""
        self._size = 0

    def plain(self, value: Any, path: tuple[object, ...]) -> Any:
        """Return *value*, which is at *path*, as msgspec takes it."""
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if (special := _PLAIN.get(kind)) is not None:
            return special(self, value, path)
        return self._array(value, path)

    def encode(self, plain: Any) -> bytes:
        return msgspec.msgpack.encode(plain)

    def put_text(self, value: str, _path: tuple[object, ...]) -> Any:
        try:
            value.encode()
        except UnicodeEncodeError:
            return msgspec.msgpack.Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
        return value

    def put_integer(self, value: int, path: tuple[object, ...]) -> int:
        if not _SMALLEST <= value <= _LARGEST:
            _refuse(f"an int of {value.bit_length()} bits; 64 can be written", path)
        return value

    def put_list(self, value: list[Any], path: tuple[object, ...]) -> list[Any]:
        if _is_simple(value):  # thousands of tokens, as a rule
            return value
        _check_depth(path)
        return [self.plain(one, (*path, place)) for place, one in enumerate(value)]

    def put_tuple(self, value: tuple[Any, ...], path: tuple[object, ...]) -> Any:
        return msgspec.msgpack.Ext(_TUPLE, self.encode(self.put_list(list(value), path)))

    def put_dict(self, value: dict[Any, Any], path: tuple[object, ...]) -> dict[Any, Any]:
        _check_depth(path)
        return {self._key(key, path): self.plain(one, (*path, key)) for key, one in value.items()}

    def _key(self, key: object, path: tuple[object, ...]) -> Any:
        if type(key) not in (str, int, float, bool, bytes, type(None)):
            _refuse(f"{type_of(key)} as a key", path)
        plain = self.plain(key, path)
        if isinstance(plain, msgspec.msgpack.Ext):
            _refuse("a key with a lone surrogate", path)
        return plain

    def put_number(self, value: np.generic, path: tuple[object, ...]) -> Any:
        return self._reference(_NUMBER, *_flat(np.asarray(value), path))

    def _array(self, value: Any, path: tuple[object, ...]) -> Any:
        if isinstance(value, np.generic):
            return self.put_number(value, path)
        if type(value) in (np.ndarray, np.memmap):
            return self._reference(_ARRAY, *_flat(np.asarray(value), path))
        tensor = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor is not None and isinstance(value, tensor):
            return self._reference(_TENSOR, *_flat_tensor(value, path))
        return _refuse(type_of(value), path)

    def _reference(self, code: int, dtype: str, shape: Sequence[int], data: memoryview) -> Any:
        self.parts.append(data)
        where = (dtype, tuple(shape), self._size, len(data))
        self._size += len(data)
        return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(where))


_AS_THEY_ARE = frozenset({type(None), bool, float, bytes})

_PLAIN: dict[type, Callable[[_Packer, Any, tuple[object, ...]], Any]] = {
    str: _Packer.put_text,
    int: _Packer.put_integer,
    list: _Packer.put_list,
    tuple: _Packer.put_tuple,
    dict: _Packer.put_dict,
}


def _is_simple(values: list[Any]) -> bool:
    """Return whether msgspec takes all *values* as they are."""
    kinds = set(map(type, values))
    if int in kinds:
        if not kinds <= {int, float, bool}:
            return False
        # NaN compares with nothing: floats are left out where there are any.
        numbers = values if kinds == {int} else [value for value in values if type(value) is int]
        return min(numbers) >= _SMALLEST and max(numbers) <= _LARGEST
    return kinds <= _AS_THEY_ARE


def _check_depth(path: tuple[object, ...]) -> None:
    if len(path) >= _DEEPEST:
        _refuse(f"more than {_DEEPEST} levels", path[:4])


def _flat(array: np.ndarray[Any, Any], path: tuple[object, ...]) -> tuple[str, tuple[int, ...], memoryview]:
    """Return name of the dtype, shape, and bytes of *array*."""
    if array.dtype.kind not in _KINDS:
        _refuse(f"an array of dtype {array.dtype}", path)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little.dtype.str, array.shape, _bytes_of(np.asarray(little, order="C"))


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    if not array.nbytes:
        return memoryview(b"")
    return array.reshape(-1).view(np.uint8).data


def _flat_tensor(tensor: Any, path: tuple[object, ...]) -> tuple[str, tuple[int, ...], memoryview]:
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_quantized or sys.byteorder != "little":
        _refuse(f"a tensor of layout {tensor.layout} and dtype {tensor.dtype}", path)
    dense = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    return name, tuple(tensor.shape), _bytes_of(dense.reshape(-1).view(torch.uint8).numpy())


def _refuse(what: str, path: tuple[object, ...]) -> NoReturn:
    where = "value" + "".join(f"[{_shown(step)}]" for step in path)
    raise PackingError(f"{where} is or has {what}, which the journal cannot write")


def _shown(step: object) -> str:
    return repr(step) if len(repr(step)) <= 40 else repr(step)[:40] + "..."


class _Unpacker:
    """Unpacks one value, whose arrays are in *arrays*."""

    def __init__(self, arrays: memoryview) -> None:
        self._arrays = arrays
        self._seen = 0
        """How many bytes of them were asked for."""

    def whole(self, structure: memoryview) -> Any:
        value = self._decode(structure)
        if self._seen != len(self._arrays):
            raise PackingError(f"{len(self._arrays)} bytes of arrays, where there should be {self._seen}")
        return value

    def _decode(self, data: memoryview) -> Any:
        return msgspec.msgpack.decode(data, ext_hook=self._extension)

    def _extension(self, code: int, data: memoryview) -> Any:
        if code == _TUPLE:
            return tuple(self._decode(data))
        if code == _TEXT:
            return bytes(data).decode("utf-8", "surrogatepass")
        dtype, shape, start, size = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], int, int])
        if start + size > len(self._arrays) or min(start, size, *shape, 0) < 0:
            raise PackingError("the bytes of an array are missing")
        self._seen += size
        return _LOAD[code](dtype, shape, self._arrays[start : start + size])


def _load_array(dtype: str, shape: tuple[int, ...], data: memoryview) -> np.ndarray[Any, Any]:
    kind = np.dtype(dtype)
    if kind.kind not in _KINDS or math.prod(shape) * kind.itemsize != len(data):
        raise PackingError(f"{len(data)} bytes are no array of dtype {dtype} and shape {list(shape)}")
    if not len(data):
        return np.empty(shape, kind)
    return np.frombuffer(data, kind).reshape(shape).copy()


def _load_number(dtype: str, shape: tuple[int, ...], data: memoryview) -> Any:
    return _load_array(dtype, shape, data)[()]


def _load_tensor(dtype: str, shape: tuple[int, ...], data: memoryview) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        raise PackingError("there is a torch tensor in this; import torch before reading it")
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise PackingError(f"this torch has no dtype {dtype}")
    if not len(data):
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)


_LOAD: dict[int, Callable[[str, tuple[int, ...], memoryview], Any]] = {
    _ARRAY: _load_array,
    _NUMBER: _load_number,
    _TENSOR: _load_tensor,
}
