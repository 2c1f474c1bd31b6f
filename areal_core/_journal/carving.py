"""Rows out of a file that SQLite refuses, read page by page: whatever page is lost, others are not.

The file's format is SQLite's (https://sqlite.org/fileformat2.html): rows are in leaf pages of tables, what
does not fit there in chains of overflow pages; `wal.py` finds later images of pages. Nothing else is looked
at: neither the first page, nor those that lead to the leaves. That is safe because each row can
tell whether it is whole, and because what was deleted is overwritten (``secure_delete``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from areal_core._journal.wal import PAGE

_LEAF = 0x0D
_FIRST_CHILD_SIZE = PAGE - 35  # a row of up to so many bytes is wholly in its leaf
_LEAST_LOCAL = (PAGE - 12) * 32 // 255 - 23
_INTEGER_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)

Column: TypeAlias = int | bytes | None


class Carved(NamedTuple):
    """A row as it was found; *columns* is None where it makes no sense."""

    row: int
    columns: list[Column] | None


def carve(database: bytes, logged: Mapping[int, bytes]) -> Iterator[Carved]:
    """Yield every row that is still found in a table of *database*; *logged*: later images of its pages."""
    view = memoryview(database)
    whole = len(database) // PAGE
    pages = {number: view[(number - 1) * PAGE : number * PAGE] for number in range(1, whole + 1)}
    pages |= {number: memoryview(page) for number, page in logged.items()}
    for number, page in pages.items():
        if number > 1 and page[0] == _LEAF:
            yield from _rows(page, pages)


def _rows(page: memoryview, pages: dict[int, memoryview]) -> Iterator[Carved]:
    count = min(int.from_bytes(page[3:5], "big"), (PAGE - 8) // 2)
    for place in range(count):
        start = int.from_bytes(page[8 + 2 * place : 10 + 2 * place], "big")
        row = 0
        try:
            size, start = _varint(page, start)
            row, start = _varint(page, start)
            columns = _columns(_payload(page, start, size, pages))
        except (IndexError, KeyError, ValueError):
            yield Carved(row, None)
        else:
            yield Carved(row, columns)


def _payload(page: memoryview, start: int, size: int, pages: dict[int, memoryview]) -> bytes:
    if size <= _FIRST_CHILD_SIZE:
        return bytes(page[start : start + size])
    fitting = _LEAST_LOCAL + (size - _LEAST_LOCAL) % (PAGE - 4)
    local = fitting if fitting <= _FIRST_CHILD_SIZE else _LEAST_LOCAL
    parts = [page[start : start + local]]
    following = int.from_bytes(page[start + local : start + local + 4], "big")
    missing = size - local
    if missing > len(pages) * PAGE:
        raise ValueError("longer than the file")
    while missing > 0:
        overflow = pages[following]  # KeyError where the chain is cut
        parts.append(overflow[4 : 4 + missing])
        missing -= PAGE - 4
        following = int.from_bytes(overflow[:4], "big")
    return b"".join(parts)


def _columns(payload: bytes) -> list[Column]:
    view = memoryview(payload)
    end, place = _varint(view, 0)
    at, columns = end, list[Column]()
    while place < end:
        kind, place = _varint(view, place)
        size = (kind - 12) // 2 if kind >= 12 else _INTEGER_SIZES[kind]
        if at + size > len(payload):
            raise ValueError("a column is cut short")
        columns.append(_column(kind, payload[at : at + size]))
        at += size
    return columns


def _column(kind: int, data: bytes) -> Column:
    if kind >= 12:
        return data
    if kind in (8, 9):
        return kind - 8
    return None if kind == 0 else int.from_bytes(data, "big", signed=True)


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    """Return the number at *start*, and where it ends."""
    value = 0
    for place in range(start, start + 8):
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    return value << 8 | data[start + 8], start + 9
