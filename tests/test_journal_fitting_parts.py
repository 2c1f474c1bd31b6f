"""What of a record the file can have, at the limits and in words."""

from __future__ import annotations

from typing import Any

import pytest

from areal_core._journal import fitting
from areal_core._journal.fitting import check_record, packed_with
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_numbers_of_64_bits_can_be_written(number: int) -> None:
    check_record(Committed(number))
    check_record(Queued("0:0", number))


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**63])
def test_numbers_of_more_bits_are_refused(number: int) -> None:
    for record in (Committed(number), Queued("0:0", number)):
        with pytest.raises(ValueError, match="more than 64 bits"):
            check_record(record)


def test_what_is_no_record_is_named() -> None:
    with pytest.raises(TypeError, match=r"^a set with such fields is no record of the journal$"):
        check_record({1})


@pytest.mark.parametrize("record", [Delivered(("0:0",)), Ended("0:0", "failed")], ids=["Delivered", "Ended"])
def test_what_takes_no_value_is_named(record: Record) -> None:
    with pytest.raises(TypeError, match=f"^a {type(record).__name__} takes no value"):
        packed_with(record, 1)


def test_why_a_value_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "value is or has a set, which the journal cannot write"
    assert packed_with(Queued("0:0", 0), {1}) == (Queued("0:0", 0), words)

    def broken(value: Any) -> bytes:
        raise RuntimeError("no such device")

    monkeypatch.setattr(fitting, "pack", broken)
    left, why = packed_with(Queued("0:0", 0), 1)
    assert left == Queued("0:0", 0) and why is not None
    assert "RuntimeError" in why and "no such device" in why


def test_bytes_up_to_the_limit_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LARGEST_BODY", 3)
    fits, large = Queued("0:0", 0, b"abc"), Queued("0:0", 0, b"abcd")
    assert packed_with(fits, fitting.NOTHING) == (fits, None)
    assert packed_with(large, fitting.NOTHING) == (Queued("0:0", 0), "4 bytes; 3 can be written")
