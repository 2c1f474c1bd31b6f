"""A record as a row of the file: a head that can tell whether it is whole, and the bytes that came with it.

The head is 8 bytes of BLAKE2b and then msgpack, with the row's number in it: of a head that was moved,
mixed up or changed none passes for another. It holds the size and BLAKE2b of the body as well, so that a
damaged trajectory costs the trajectory and not the knowledge that there was one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from hashlib import blake2b
from typing import TypeVar

import msgspec

from areal_core._journal.keys import Keys, epoch_of
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record, Reopened, Returned

LARGEST_BODY = 900 * 2**20
"""Bytes: SQLite takes a thousand million in a row."""

_CHECK = 8  # bytes

T = TypeVar("T")


class Kind(IntEnum):
    """What a row says."""

    QUEUED = 1
    ENDED = 2
    REOPENED = 3
    DELIVERED = 4
    COMMITTED = 5
    RETURNED = 6
    """These had been delivered, and are not with the trainer: it gave them back, or it was a run that is not
    resumed at that point."""
    SALVAGED = 7
    """The file was made of what was found in a damaged one. It is there until somebody goes on from it."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """All of a row but its body."""

    row: int
    kind: Kind
    keys: tuple[bytes, ...]
    number: int = 0
    """The epoch, or the step; of what was salvaged, how many rows made no sense, at least 1."""
    status: str = ""
    """How it ended; of what was salvaged, the name of the copy that is kept."""
    size: int | None = None
    """Bytes of the body; None: there is none."""
    check: bytes = b""


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """A row of keys that are done for good."""

    row: int
    epoch: int
    bounds: tuple[int, ...]
    """Indices, as `Keys.add_bounds` takes them."""
    others: tuple[bytes, ...]
    """Keys that are no epoch and index."""


_heads = msgspec.msgpack.Decoder(Head)
_settleds = msgspec.msgpack.Decoder(Settled)


def encode_key(key: str) -> bytes:
    """Return *key* as bytes. A lone surrogate is a character like any other here."""
    return key.encode("utf-8", "surrogatepass")


def decode_key(key: bytes) -> str:
    """Return what `encode_key` was given."""
    return key.decode("utf-8", "surrogatepass")


def digest(data: bytes) -> bytes:
    """Return the 8 bytes by which *data* is known to be whole."""
    return blake2b(data, digest_size=_CHECK).digest()


def head_of(row: int, record: Record, also: Iterable[bytes] = ()) -> tuple[Head, bytes | None]:
    """Return head and body of *record* as row number *row*; *also*: keys that a commit says are done."""
    match record:
        case Queued(key, epoch, data):
            return _with_body(Head(row, Kind.QUEUED, (encode_key(key),), epoch), data)
        case Ended(key, status, result):
            return _with_body(Head(row, Kind.ENDED, (encode_key(key),), status=status), result)
        case Reopened(key):
            return Head(row, Kind.REOPENED, (encode_key(key),)), None
        case Delivered(keys):
            return Head(row, Kind.DELIVERED, tuple(map(encode_key, keys))), None
        case Returned(keys):
            return Head(row, Kind.RETURNED, tuple(map(encode_key, keys))), None
        case Committed(step):
            return Head(row, Kind.COMMITTED, tuple(also), step), None


def is_whole(head: Head, body: object) -> bool:
    """Return whether *body* is the one that *head* was written with."""
    if head.size is None:
        return body is None
    return isinstance(body, bytes) and len(body) == head.size and digest(body) == head.check


def seal(head: Head | Settled) -> bytes:
    """Return the bytes of *head* that `open_head` and `open_settled` take."""
    encoded = msgspec.msgpack.encode(head)
    return digest(encoded) + encoded


def open_head(row: int, sealed: object) -> Head | None:
    """Return the head of row number *row*; None if it is damaged."""
    head = _opened(sealed, _heads)
    return head if head is not None and head.row == row else None


def open_settled(row: int, sealed: object) -> Settled | None:
    """Return what row number *row* says is settled; None if it is damaged."""
    settled = _opened(sealed, _settleds)
    return settled if settled is not None and settled.row == row else None


def settled_of(row: int, epoch: int, keys: Keys) -> Settled:
    """Return the row that says that *keys*, all of *epoch*, are done."""
    others = tuple(map(encode_key, keys.others()))
    return Settled(row, epoch, tuple(keys.bounds().get(epoch, ())), others)


def add_settled(settled: Settled, keys: Keys) -> None:
    """Add to *keys* what *settled* says."""
    keys.add_bounds(settled.epoch, settled.bounds)
    keys.update(map(decode_key, settled.others))


def by_epoch(keys: Iterable[str]) -> dict[int, Keys]:
    """Return *keys*, apart by epoch."""
    apart: dict[int, list[str]] = {}
    for key in keys:
        apart.setdefault(epoch_of(key), []).append(key)
    return {epoch: Keys(some) for epoch, some in apart.items()}


def _with_body(head: Head, body: bytes | None) -> tuple[Head, bytes | None]:
    if body is None:
        return head, None
    return msgspec.structs.replace(head, size=len(body), check=digest(body)), body


def _opened(sealed: object, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    if not isinstance(sealed, bytes) or digest(sealed[_CHECK:]) != sealed[:_CHECK]:
        return None
    try:
        return decoder.decode(sealed[_CHECK:])
    except msgspec.DecodeError:  # of another kind of row, or a later version's
        return None
