"""Sets of keys where ranges meet, and in words."""

from __future__ import annotations

import pytest

from areal_core._journal.keys import Keys, epoch_of


@pytest.mark.parametrize(
    ("added", "bounds"),
    [
        ([[0, 2], [2, 4]], [0, 4]),
        ([[0, 2], [3, 4], [4, 5]], [0, 2, 3, 5]),
        ([[0, 2], [5, 5]], [0, 2]),
        ([[3, 9], [4, 5]], [3, 9]),
    ],
)
def test_ranges_that_touch_become_one(added: list[list[int]], bounds: list[int]) -> None:
    keys = Keys()
    for some in added:
        keys.add_bounds(2, some)
    assert keys.bounds() == {2: bounds}


def test_a_bound_that_has_no_other_is_left_out() -> None:
    keys = Keys()
    keys.add_bounds(0, [1, 3, 7])
    assert list(keys) == ["0:1", "0:2"]


def test_keys_without_an_epoch_have_minus_one() -> None:
    assert (epoch_of("x"), Keys(["x"]).last_epoch(), Keys().last_epoch()) == (-1, -1, -1)


def test_their_number_is_shown() -> None:
    assert repr(Keys(["0:1", "0:2", "x"])) == "<3 keys>"
