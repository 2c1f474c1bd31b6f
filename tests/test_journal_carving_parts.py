"""Rows out of pages: those that SQLite wrote come back, and what makes no sense is one row that is lost."""

from __future__ import annotations

import random
import sqlite3
import struct
from pathlib import Path

import pytest

from areal_core._journal.carving import Carved, Column, carve
from areal_core._journal.wal import PAGE


def written(path: Path, *rows: tuple[int, object, object]) -> bytes:
    """Return a database with a table of these rows: a number, and two columns."""
    connection = sqlite3.connect(path)
    for pragma in (f"page_size={PAGE}", "journal_mode=OFF", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE log (one, two)")
    connection.executemany("INSERT INTO log (rowid, one, two) VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path.read_bytes()


def varint(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))


def leaf(*cells: bytes) -> bytearray:
    """Return the page of a table's rows."""
    page, end = bytearray(PAGE), PAGE
    page[0] = 0x0D
    page[3:5] = len(cells).to_bytes(2, "big")
    for place, cell in enumerate(cells):
        end -= len(cell)
        page[end : end + len(cell)] = cell
        page[8 + 2 * place : 10 + 2 * place] = end.to_bytes(2, "big")
    return page


def cell(row: int, kinds: bytes, data: bytes) -> bytes:
    """Return a row that fits in its leaf."""
    return varint(1 + len(kinds) + len(data)) + varint(row) + bytes([1 + len(kinds)]) + kinds + data


def carved(*pages: bytes | bytearray) -> list[Carved]:
    """Return what is found in a database of these pages, of which none leads to another."""
    return list(carve(bytes(PAGE) + b"".join(pages), {}))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, None),
        *((value, value) for value in (0, 1, 2, -1, 127, -128)),
        *((sign * 2**bits - 3, sign * 2**bits - 3) for bits in (8, 16, 25, 33, 50) for sign in (1, -1)),
        (0.5, int.from_bytes(struct.pack(">d", 0.5), "big")),  # no table of a journal has one
        (b"", b""),
        (b"bytes", b"bytes"),
        ("text", b"text"),
    ],
)
def test_each_kind_of_column_comes_back_and_the_next_as_well(
    tmp_path: Path, value: object, found: Column
) -> None:
    database = written(tmp_path / "file", (1, value, b"next"))
    assert list(carve(database, {})) == [Carved(1, [found, b"next"])]


def test_rows_of_any_number_come_back(tmp_path: Path) -> None:
    numbers = [1, 127, 128, 2**14, 2**14 + 127, 2**49 + 5, 2**56 - 1, 2**56, 2**62 + 0x1234, 2**63 - 1]
    database = written(tmp_path / "file", *((number, 7, 7) for number in numbers))
    assert list(carve(database, {})) == [Carved(number, [7, 7]) for number in numbers]


def test_more_rows_in_a_page_than_a_byte_can_count_come_back(tmp_path: Path) -> None:
    database = written(tmp_path / "file", *((number, None, None) for number in range(300)))
    assert list(carve(database, {})) == [Carved(number, [None, None]) for number in range(300)]


SIZES = [3000, 4050, *range(4056, 4064), *range(4572, 4584), *range(8144, 8154), *range(8664, 8672), 20_000]


def test_what_does_not_fit_in_a_leaf_comes_back_whatever_its_size(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = [(size, chance.randbytes(size), None) for size in SIZES]
    database = written(tmp_path / "file", *rows)
    assert sorted(carve(database, {})) == [Carved(size, [data, None]) for size, data, _ in rows]


def test_the_first_page_is_not_looked_at() -> None:
    page = bytes(leaf(cell(3, b"\1", b"\5")))
    assert list(carve(page + page, {})) == [Carved(3, [5])]


def test_where_a_page_has_room_says_nothing_of_how_many_rows_it_has() -> None:
    page = leaf(cell(3, b"\1", b"\5"))
    page[1:3] = (0x0FFF).to_bytes(2, "big")
    assert carved(page) == [Carved(3, [5])]


def test_a_page_has_no_more_rows_than_have_their_places_in_it() -> None:
    page = leaf()
    page[3:5] = b"\xff\xff"
    assert len(carved(page)) == 2_044


@pytest.mark.parametrize(
    "damaged",
    [
        cell(8, b"\1\x12", b"\5ab"),  # a column of three bytes
        cell(8, b"\x0b", b"ab"),  # a kind that there is not
        varint(5_000) + varint(8) + b"\2\1\5" + bytes(1_000),  # goes on in a page that there is not
        varint(4_100) + varint(8) + b"\4" + varint(12 + 2 * 4_097) + bytes(486) + b"\0\0\0\3",  # a byte more
    ],
    ids=["cut-short", "no-such-kind", "no-such-page", "cut-short-in-another-page"],
)
def test_a_row_that_makes_no_sense_is_told_and_costs_no_other(damaged: bytes) -> None:
    found = carved(leaf(cell(7, b"\1", b"\5"), damaged, cell(9, b"\1", b"\6")), bytes(PAGE))
    assert found == [Carved(7, [5]), Carved(8, None), Carved(9, [6])]


def test_a_row_that_is_in_no_page_has_no_number() -> None:
    page = leaf(cell(7, b"\1", b"\5"), b"", cell(9, b"\1", b"\6"))
    page[10:12] = PAGE.to_bytes(2, "big")
    assert carved(page) == [Carved(7, [5]), Carved(0, None), Carved(9, [6])]


@pytest.mark.parametrize(("more", "columns"), [(0, [5]), (1, None)])
def test_a_row_that_says_it_is_longer_than_the_file_is_given_up(more: int, columns: list[Column]) -> None:
    """Its chain may go round: here one page is followed by itself."""
    pages = 894
    size = 489 + pages * PAGE + more
    page = leaf(varint(size) + varint(8) + b"\2\1\5" + bytes(486) + b"\0\0\0\3")
    chain = b"\0\0\0\3" + bytes(PAGE - 4)
    assert carved(page, chain, bytes((pages - 3) * PAGE)) == [Carved(8, columns)]
