"""Rows of the file: their bytes, which no version may change, and what of them is taken for whole."""

from __future__ import annotations

import pytest

from areal_core._journal.fitting import NOTHING, packed_with
from areal_core._journal.records import Ended, Queued
from areal_core._journal.rows import (
    Head,
    Kind,
    Settled,
    digest,
    head_of,
    is_whole,
    open_head,
    open_settled,
    seal,
)

SETTLED = Settled(3, 2, (0, 7), (b"a",))


@pytest.mark.parametrize(
    ("row", "sealed"),
    [
        (
            head_of(1, Queued("0:a", 5, b"data"))[0],
            "b6352db7600e8acb97010191c403303a6105a004c4082e6c49b7ae486fa8",
        ),
        (head_of(2, Ended("0:a", "failed"))[0], "7b62a0369977753f97020291c403303a6100a66661696c6564c0c400"),
        (Head(4, Kind.SALVAGED, (), 1, "copy"), "cba469084524a39b9704079001a4636f7079c0c400"),
        (SETTLED, "767d80f77c79f53094030292000791c40161"),
    ],
    ids=["queued", "failed", "salvaged", "settled"],
)
def test_a_row_is_written_as_the_first_version_wrote_it(row: Head | Settled, sealed: str) -> None:
    assert seal(row).hex() == sealed


def test_of_a_value_900_mib_can_be_written() -> None:
    most = 900 * 2**20
    assert packed_with(Queued("0:a", 0, bytes(most)), NOTHING)[1] is None
    record, why = packed_with(Queued("0:a", 0, bytes(most + 1)), NOTHING)
    assert (record, why) == (Queued("0:a", 0), "943718401 bytes; 943718400 can be written")


@pytest.mark.parametrize("body", [b"data", b"other", "datum", 5, None])
def test_a_body_of_another_kind_or_with_other_bytes_is_not_whole(body: object) -> None:
    head, _ = head_of(1, Queued("0:a", 0, b"datum"))
    assert is_whole(head, b"datum") and not is_whole(head, body)


@pytest.mark.parametrize("place", [0, 7, 8, 12])
def test_a_row_with_a_flipped_bit_is_damaged(place: int) -> None:
    spoilt = bytearray(seal(SETTLED))
    spoilt[place] ^= 1
    assert open_settled(3, bytes(spoilt)) is None


@pytest.mark.parametrize("sealed", [None, 5, "text"])
def test_what_is_no_bytes_is_no_row(sealed: object) -> None:
    assert open_head(3, sealed) is None


def test_a_row_of_another_kind_and_one_that_makes_no_sense_are_damaged() -> None:
    assert open_head(3, seal(SETTLED)) is None
    assert open_settled(3, digest(b"\xc1") + b"\xc1") is None
    assert open_settled(3, seal(SETTLED)) == SETTLED
