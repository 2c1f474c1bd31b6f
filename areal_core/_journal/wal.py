"""A write-ahead log of SQLite: which of its frames are whole, and what those leave of each page.

The format is in https://www.sqlite.org/fileformat2.html#wal_file_format: a header, then frames, each a header
and a page. A frame stores a checksum over the log's header, the frames before it and itself, which goes on
from the one that the frame before stores: with that each frame alone tells whether it is whole, behind damage
as well. Where the log was begun again, frames of an earlier round lie behind the last, or under one that a
kill has left half written: those have other salts, or other pages than their checksum is of.

The last frame of a transaction says that it is. SQLite has a transaction on the disk before it writes the
next (``synchronous=FULL``). So one that is not whole, and is followed by a whole one, was damaged on the
disk: what is left of it counts. What follows the last whole one counts for nothing, as it does for SQLite: it
is of a transaction that was never finished, or that could not be written. As a rule: the last transaction
looks the same once it is damaged, and takes the one before with it if that does not say any more where it
ends. Only where SQLite has put it into the file can that be told for sure (`Wal.is_in`); so whoever opens
the log keeps a copy. (Nor do the pages' numbers tell two transactions apart: they rise in one, but not if it
was too large for SQLite's memory. Frames that pad a transaction to a sector are written only by an SQLite
that was built to take it that a write harms its neighbours.)
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

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
_MOST_ROUNDS = 2**16  # of which frames are still there: a salt that is further away is no salt


class Wal:
    """The write-ahead log that consists of *content*."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._all = frames = _Frames(content)
        begin = count = 0
        for end in frames.ends():
            if frames.sound[begin:end].all():
                count = end
            begin = end
        self.frames = count
        """How many were committed, as far as can be told, damaged ones included."""
        self.is_damaged = len(frames) > 0 and not (
            frames.header_is_whole and bool(frames.whole[:count].all())
        )
        """Whether something is wrong in what was committed. SQLite ignores all that comes after it."""
        self.has_torn_end = not bool(frames.is_earlier[count:].all())
        """Whether there is something behind that is not an earlier round's."""

    def is_in(self, database: bytes) -> bool:
        """Return whether what is behind those frames is in *database*: then it was committed, and is damaged.

        SQLite puts nothing else there, and all of the log at once. That a transaction only puts a page back
        to what it is there says nothing.
        """
        before, after = self._images(self.frames, database), self._images(len(self._all), database)
        is_news = any(
            frame >= self.frames and number in before and before[number][1] != image
            for number, (frame, image) in after.items()
        )
        return is_news and all(image == _page(database, number) for number, (_, image) in after.items())

    def pages(self, database: bytes) -> dict[int, bytes]:
        """Return the last image of each page that is whole, unless *database* has that, or a later one.

        If SQLite has put all of the log there, it has those too that are damaged here. Then it differs from
        what is whole here in no more pages than there are frames that cannot be read, and before the last
        of these.
        """
        if self.has_torn_end and self.is_in(database):
            return {}
        images = self._images(self.frames, database)
        lost = np.flatnonzero(~self._all.has_page[: self.frames])
        others = [frame for number, (frame, image) in images.items() if image != _page(database, number)]
        if len(others) <= len(lost) and all(frame < lost[-1] for frame in others):
            return {}
        return {number: image for number, (_, image) in images.items()}

    def _images(self, count: int, database: bytes) -> dict[int, tuple[int, bytes]]:
        """Return the last image of each page in the first *count* frames, and which frame has it.

        Where one is damaged the page in *database* may be it.
        """
        images: dict[int, tuple[int, bytes]] = {}
        for frame in range(count):
            number = int(self._all.numbers[frame])
            if self._all.has_page[frame]:
                start = _HEADER + frame * _FRAME + _FRAME_HEADER
                images[number] = frame, self.content[start : start + PAGE]
            elif self._all.was_written_with(frame, page := _page(database, number)):
                images[number] = frame, page
        return images


def _page(database: bytes, number: int) -> bytes:
    """Return that page; less than one if there is none."""
    return database[(number - 1) * PAGE : number * PAGE] if number else b""


class _Frames:
    """The frames of *wal*, an array for each thing that they say, or that can be said of them.

    ``whole``: by all that is stored. ``sound``: alone, whatever became of the one before. ``has_page``: at
    least the page is whole. ``is_earlier``: by its salts it is of an earlier round.
    """

    def __init__(self, wal: bytes) -> None:
        wal = wal.ljust(_HEADER, b"\0")
        self.header_is_whole = _is_whole(wal)
        header = np.frombuffer(wal, ">u4", _HEADER // 4).astype(np.uint32)
        count = (len(wal) - _HEADER) // _FRAME
        frames = np.frombuffer(wal, np.uint8, count * _FRAME, _HEADER).reshape(count, _FRAME)
        heads = np.ascontiguousarray(frames[:, :_FRAME_HEADER]).view(">u4").astype(np.uint32)
        self.numbers, self._sizes, self._stored = heads[:, 0], heads[:, 1], heads[:, 4:]
        self._words = frames.view(f"{_order(wal)}u4")
        weights, of_seed = _checksum_weights()
        own = self._words @ weights
        self._of_before = np.vstack((header[6:], self._stored))[:-1] @ of_seed
        right = own + self._of_before
        follows = (right == self._stored).all(axis=1)
        salts = header[4:6] if self.header_is_whole else _salts_without_header(heads[:, 2:4], follows)
        self._is_of_round = (heads[:, 2:4] == salts).all(axis=1)
        self.is_earlier = _are_earlier(heads[:, 2], salts[0])
        self.whole = follows & self._is_of_round & (self.numbers > 0)
        # Where no more of a frame is damaged than its sum and salts, the next one goes on from the right sum.
        goes_on = (own[1:] + right[:-1] @ of_seed == self._stored[1:]).all(axis=1) & self._is_of_round[1:]
        self.sound = self.whole | np.append(False, goes_on)[:count]
        self.has_page = self.sound | np.append(goes_on, False)[:count]

    def __len__(self) -> int:
        return len(self.numbers)

    def was_written_with(self, frame: int, page: bytes) -> bool:
        """Return whether *frame* was with this *page*: it is still there, or the checksum is of it."""
        if not self._is_of_round[frame] or len(page) != PAGE:
            return False
        words = self._words[frame].copy()
        words[_FRAME_HEADER // 4 :] = np.frombuffer(page, words.dtype)
        right = words @ _checksum_weights()[0] + self._of_before[frame]
        return bool((words == self._words[frame]).all() or (right == self._stored[frame]).all())

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
    """Return those of the last round: the first of the two rises by one from round to round."""
    are_known = follows[1:] & (salts[1:] == salts[:-1]).all(axis=1)
    some = salts[1:][are_known]
    if not len(some):
        return np.array(salts[0]) if len(salts) else np.zeros(2, np.uint32)
    last = some[some[:, 0].argmax()]
    # A round of one frame is known only by that.
    return np.array(salts[0] if _are_earlier(last[:1], salts[0, 0]).all() else last)


def _are_earlier(some: npt.NDArray[np.uint32], salt: np.uint32) -> npt.NDArray[np.bool_]:
    """Return of *some*, each the first salt of a round, whether it is not many rounds before *salt*."""
    rounds = salt - some
    return (rounds > 0) & (rounds < _MOST_ROUNDS)


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
