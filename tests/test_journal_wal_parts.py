"""Write-ahead logs made frame by frame: which of their frames count, and what those leave of each page."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest

from areal_core._journal import wal
from areal_core._journal.wal import PAGE, Wal

HEADER, FRAME_HEADER = 32, 24
FRAME = FRAME_HEADER + PAGE
MOD = 2**32
SALTS = (0x9000_0000, 5)
BEFORE = (SALTS[0] - 1, 7)
"""Of the round before, whose second one is larger: that one is random."""

NUMBER, SALT, SUM, IN_THE_PAGE = 2, 8, 21, FRAME_HEADER + 1_000
"""Where there is a byte of these in a frame."""


def image(letter: str) -> bytes:
    return letter.encode() * PAGE


def database(letters: str) -> bytes:
    """Return one whose pages are of these."""
    return b"".join(map(image, letters))


def log_of(text: str, salts: tuple[int, int] = SALTS) -> bytes:
    """Return the log of the frames in *text*: the page's number, its letter, and a dot if it is an end."""
    return made([(int(one[0]), 9 * one.endswith("."), image(one[1])) for one in text.split()], salts)


def made(frames: Iterable[tuple[int, int, bytes]], salts: tuple[int, int], order: str = "<") -> bytes:
    """Return the log whose frames say these numbers and sizes, and have these pages."""
    log = struct.pack(">6I", 0x377F0682 + (order == ">"), 3_007_000, PAGE, 0, *salts)
    sums = added((0, 0), log, order)
    log += struct.pack(">2I", *sums)
    for number, size, page in frames:
        head = struct.pack(">2I", number, size)
        sums = added(sums, head + page, order)
        log += head + struct.pack(">4I", *salts, *sums) + page
    return log


def added(sums: tuple[int, int], content: bytes, order: str) -> tuple[int, int]:
    """Return the checksum that goes on from *sums* over *content*."""
    first, second = sums
    for one, two in struct.iter_unpack(f"{order}2I", content):
        first = (first + one + second) % MOD
        second = (second + two + first) % MOD
    return first, second


def start(frame: int) -> int:
    return HEADER + frame * FRAME


def flipped(log: bytes, *places: int) -> bytes:
    spoilt = bytearray(log)
    for place in places:
        spoilt[place] ^= 0x40
    return bytes(spoilt)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sqlite_and_this_take_the_same_frames_in_either_order_of_bytes(tmp_path: Path, order: str) -> None:
    connection = sqlite3.connect(tmp_path / "one", isolation_level=None)
    for statement in (f"PRAGMA page_size={PAGE}", "PRAGMA journal_mode=WAL", "CREATE TABLE log (one)"):
        connection.execute(statement)
    real = (tmp_path / "one-wal").read_bytes()
    shutil.copy(tmp_path / "one", tmp_path / "other")
    connection.close()
    begins = range(HEADER, len(real), FRAME)
    frames = [(*struct.unpack_from(">2I", real, at), real[at + FRAME_HEADER : at + FRAME]) for at in begins]
    log = made(frames, struct.unpack_from(">2I", real, 16), order)
    (tmp_path / "other-wal").write_bytes(log)
    other = sqlite3.connect(tmp_path / "other")
    _, known, _ = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    other.close()
    found = Wal(log)
    assert (found.frames, found.is_damaged, found.has_torn_end) == (known, False, False)
    assert known == len(begins) > 0


# -- which frames count ----------------------------------------------------------------------------


def test_a_log_of_one_frame_with_a_damaged_header_is_damaged() -> None:
    found = Wal(flipped(log_of("2a."), 9))
    assert (found.frames, found.is_damaged) == (1, True)


def test_a_database_of_one_page_is_one_that_a_transaction_may_end_with() -> None:
    assert Wal(made([(1, 1, image("a"))], SALTS)).frames == 1


def test_a_frame_of_no_page_does_not_count_as_for_sqlite() -> None:
    assert Wal(log_of("0a.")).frames == 0


@pytest.mark.parametrize(("rounds", "is_torn"), [(2**16 - 1, False), (2**16, True)])
def test_a_frame_of_too_many_rounds_before_is_no_round_s(rounds: int, is_torn: bool) -> None:
    earlier = log_of("2a. 3b.", (SALTS[0] - rounds, 0))
    found = Wal(log_of("2c.") + earlier[start(1) :])
    assert (found.frames, found.has_torn_end) == (1, is_torn)


def test_an_end_counts_of_a_damaged_frame_whose_header_is_just_within_a_sector() -> None:
    split = next(frame for frame in range(99) if (start(frame) + FRAME_HEADER) % 512 == 0)
    log = log_of("2a. " * (split + 1) + "3b.")
    assert Wal(flipped(log, start(split) + IN_THE_PAGE)).frames == split + 2


# -- without the log's header ----------------------------------------------------------------------


def test_a_damaged_salt_is_not_taken_for_that_of_a_later_round() -> None:
    log = log_of("2a. 3b. 2c. 3d.")
    found = Wal(bytes(HEADER) + flipped(log, start(1) + SALT)[HEADER:])
    assert (found.frames, found.is_damaged) == (4, True)


def test_where_no_two_frames_are_of_one_round_the_first_one_has_its_salts() -> None:
    earlier = log_of("2a. 3b.", BEFORE)
    found = Wal(flipped(log_of("2c."), 9) + earlier[start(1) :])
    assert (found.frames, found.is_damaged, found.has_torn_end) == (1, True, False)


def test_the_last_round_is_the_one_whose_first_salt_is_the_highest() -> None:
    later, earlier = log_of("2a. 3b. 2c. 3d."), log_of("2e. 3f. 2g. 3h. 2i. 3j. 2k.", BEFORE)
    found = Wal(bytes(start(1)) + later[start(1) :] + earlier[start(4) :])
    assert (found.frames, found.has_torn_end) == (4, False)


# -- what is in the file too -----------------------------------------------------------------------


def test_a_torn_end_that_puts_a_page_back_to_what_it_is_in_the_file_is_not_there() -> None:
    """The image before is lost in the log: the file alone says that it was the same."""
    found = Wal(flipped(log_of("2a. 2b. 3c. 2b"), start(1) + IN_THE_PAGE))
    assert (found.frames, found.is_damaged, found.has_torn_end) == (3, True, True)
    assert not found.is_in(database(" bc"))


def test_the_first_frame_behind_may_be_all_that_says_that_an_end_is_in_the_file() -> None:
    found = Wal(flipped(log_of("2a. 2b 3c."), start(2) + IN_THE_PAGE))
    assert (found.frames, found.has_torn_end) == (1, True)
    assert found.is_in(database(" bc"))
    assert not found.is_in(database(" ac"))


def test_of_a_log_with_a_torn_end_that_is_not_in_the_file_the_rest_counts() -> None:
    found = Wal(log_of("2a. 3b. 2c"))
    assert (found.frames, found.has_torn_end) == (2, True)
    assert found.pages(b"") == {2: image("a"), 3: image("b")}


def test_a_whole_log_counts_where_a_part_of_it_is_in_the_file() -> None:
    assert Wal(log_of("2a. 3b.")).pages(database("  b")) == {2: image("a"), 3: image("b")}


def test_what_the_last_damaged_frame_has_put_over_a_page_in_the_file_stays() -> None:
    log = flipped(log_of("3a. 2b. 2c. 3d."), start(0) + NUMBER, start(2) + NUMBER)
    assert Wal(log).pages(database(" cd")) == {}


def test_a_damaged_frame_says_nothing_of_another_page_in_the_file() -> None:
    log = flipped(log_of("2a. 3b. 4c."), start(0) + IN_THE_PAGE)
    assert Wal(log).pages(database(" xyz")) == {3: image("b"), 4: image("c")}


def test_what_words_add_to_a_checksum_is_worked_out_once() -> None:
    """It takes as long as hundreds of frames do with it."""
    assert wal._checksum_weights() is wal._checksum_weights()
