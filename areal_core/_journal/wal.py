"""A write-ahead log of SQLite: which of its frames are whole, and what those leave of each page.

The format is in https://www.sqlite.org/fileformat2.html#wal_file_format: a header, then frames, each a header
and a page. A frame stores a checksum over the log's header, the frames before it and itself, which goes on
from the one that the frame before stores: with that each frame alone tells whether it is whole, behind damage
as well. Where the log was begun again, frames of an earlier round lie behind the last, or under one that a
kill has left half written: those have other salts, or other pages than their checksum is of.

The last frame of a transaction says that it is. SQLite has a transaction on the disk before it writes the
next (``synchronous=FULL``). So one that is not whole, and is followed by a whole one, was damaged on the
disk: what is left of it counts. What follows the last whole one is of a transaction that was never finished,
or that could not be written: it counts for nothing, as it does for SQLite, and is no damage. (Frames that pad
a transaction to a sector are written only by an SQLite that was built to take it that a write harms its
neighbours.)
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

PAGE = 4096
"""Bytes in a page: `schema.py` has SQLite make them so."""

_HEADER, _FRAME_HEADER = 32, 24
_FRAME = _FRAME_HEADER + PAGE
_SECTOR = 512  # bytes of which a disk writes all or nothing
_MAGIC = 0x377F0682
_MOD = 2**32


class Wal(NamedTuple):
    """What is in a write-ahead log."""

    frames: int
    """How many were committed, as far as can be told, damaged ones included."""
    pages: dict[int, memoryview]
    """The last whole image of each page in these."""
    is_damaged: bool
    """Whether something is wrong in what was committed. SQLite ignores all that comes after it."""


def read_wal(wal: bytes) -> Wal:
    """Return what is in the write-ahead log that consists of *wal*."""
    if len(wal) < _HEADER + _FRAME:
        return Wal(0, {}, is_damaged=False)
    frames = _Frames(wal)
    begin = count = 0
    for end in frames.ends():
        if frames.sound[begin:end].all():
            count = end
        begin = end
    view = memoryview(wal)
    pages: dict[int, memoryview] = {}
    for place in np.flatnonzero(frames.has_page[:count]).tolist():
        start = _HEADER + place * _FRAME + _FRAME_HEADER
        pages[int(frames.numbers[place])] = view[start : start + PAGE]
    return Wal(count, pages, is_damaged=not (frames.header_is_whole and frames.whole[:count].all()))


class _Frames:
    """The frames of *wal*, at least one, an array for each thing that they say, or that can be said of them.

    ``whole``: by all that is stored. ``sound``: alone, whatever became of the one before. ``has_page``: at
    least the page is whole.
    """

    def __init__(self, wal: bytes) -> None:
        self.header_is_whole = _is_whole(wal)
        header = np.frombuffer(wal, ">u4", _HEADER // 4)
        count = (len(wal) - _HEADER) // _FRAME
        frames = np.frombuffer(wal, np.uint8, count * _FRAME, _HEADER).reshape(count, _FRAME)
        heads = np.ascontiguousarray(frames[:, :_FRAME_HEADER]).view(">u4").astype(np.uint32)
        self.numbers, self._sizes, stored = heads[:, 0], heads[:, 1], heads[:, 4:]
        weights, of_seed = _checksum_weights()
        own = frames.view(f"{_order(wal)}u4") @ weights
        right = own + np.vstack((header[6:], stored[:-1])).astype(np.uint32) @ of_seed
        follows = (right == stored).all(axis=1)
        salts = header[4:6] if self.header_is_whole else _salts_without_header(heads[:, 2:4], follows)
        self._is_of_round = (heads[:, 2:4] == salts).all(axis=1)
        self.whole = follows & self._is_of_round & (self.numbers > 0)
        # Where no more of a frame is damaged than its sum and salts, the next one goes on from the right sum.
        goes_on = (own[1:] + right[:-1] @ of_seed == stored[1:]).all(axis=1) & self._is_of_round[1:]
        self.sound = self.whole | np.append(False, goes_on)
        self.has_page = self.sound | np.append(goes_on, False)

    def ends(self) -> list[int]:
        """Return where transactions end: the number of frames by then.

        What a damaged frame says of that counts too, if its header is whole. It is if the frame behind goes
        on from it: the checksum is the last of it, and the rest is in the same sector.
        """
        starts = _HEADER + _FRAME * np.arange(len(self.whole))
        in_a_sector = starts % _SECTOR <= _SECTOR - _FRAME_HEADER
        has_whole_header = self._is_of_round & in_a_sector & np.append(self.whole[1:], False)
        says_so = (self.has_page | has_whole_header) & (self._sizes > 0)
        return [place + 1 for place in np.flatnonzero(says_so).tolist()]


def _salts_without_header(
    salts: npt.NDArray[np.uint32], follows: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint32]:
    """Return those of the last round, which is the one that begins the file.

    No later frame is asked than the second: it may be of an earlier round.
    """
    for place in (1, 2):
        if len(salts) > place and follows[place] and (salts[place] == salts[place - 1]).all():
            return np.array(salts[place])
    return np.array(salts[0])


def _order(wal: bytes) -> str:
    """Return the order of bytes in the words of checksums; this machine's, if the header does not say it."""
    magic = int.from_bytes(wal[:4], "big")
    if magic & ~1 != _MAGIC:
        return ">" if sys.byteorder == "big" else "<"
    return ">" if magic & 1 else "<"


def _is_whole(wal: bytes) -> bool:
    """Return whether the header of *wal* is."""
    first = second = 0
    words = np.frombuffer(wal, f"{_order(wal)}u4", 6).tolist()
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) % _MOD
        second = (second + two + first) % _MOD
    stored = np.frombuffer(wal, ">u4", 2, 24).tolist()
    return int.from_bytes(wal[:4], "big") & ~1 == _MAGIC and stored == [first, second]


@functools.cache
def _checksum_weights() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return what each word of a frame, and each word of the checksum before it, adds to its checksum.

    All is modulo 2**32. With two words x and y, the sums a and b become a + b + x and a + 2 b + x + y. Of a
    frame the first two words count, and the page.
    """
    weights = np.zeros((_FRAME // 4, 2), np.uint32)
    of_seed = [[1, 0], [0, 1]]  # what a and b so far add to the two sums at the end
    for word in [*reversed(range(_FRAME_HEADER // 4, _FRAME // 4, 2)), 0]:
        of_first, of_second = of_seed
        both = [(one + two) % _MOD for one, two in zip(of_first, of_second, strict=True)]
        weights[word], weights[word + 1] = both, of_second
        of_seed = [both, [(one + two) % _MOD for one, two in zip(both, of_second, strict=True)]]
    return weights, np.array(of_seed, np.uint32)
