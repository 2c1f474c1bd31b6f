"""Several trajectories made into one by `concat_padded_tensors`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from areal_core.trajectory import check_trajectory_format, concat_padded_tensors
from trajectories import Convert, a_trajectory, as_given, as_tensor, both_kinds, converted

FEATURES = 4
PER_TOKEN = ("input_ids", "attention_mask", "loss_mask", "logprobs", "versions", "hidden", "flags")


def one_of_all(batch_size: int, seqlen: int, seed: int) -> dict[str, Any]:
    """Return a trajectory of random numbers with every sort of value."""
    rng = np.random.default_rng(seed)
    shape = (batch_size, seqlen)
    return {
        "input_ids": rng.integers(1, 150_000, shape),
        "attention_mask": np.ones(shape, np.int8),
        "loss_mask": rng.random(shape) < 0.5,
        "logprobs": -rng.random(shape, np.float32),
        "versions": rng.integers(-1, 9, shape, np.int16),
        "rewards": rng.random(batch_size, np.float32),
        "hidden": rng.random((*shape, 2, 3)).astype(np.float16),
        "flags": np.ones(shape, bool),
        "features": rng.random((batch_size, FEATURES)),
        "images": [f"image {seed} {place}" for place in range(batch_size)],
    }


several = st.lists(
    st.builds(one_of_all, st.integers(1, 3), st.integers(1, 2 * FEATURES), st.integers(0, 2**32)),
    min_size=2,
    max_size=5,
)


def check_all_is_there(whole: dict[str, Any], parts: list[dict[str, Any]], convert: Convert) -> None:
    """See that the rows of *whole* are those of *parts* and padding, in the dtypes of *parts*."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    batch_size = sum(len(part["input_ids"]) for part in parts)
    assert list(whole) == list(parts[0])
    assert check_trajectory_format(whole, expected_keys=parts[0]) == (batch_size, longest)
    row = 0
    for part in parts:
        count, seqlen = part["input_ids"].shape
        for key, value in part.items():
            found = whole[key][row : row + count]
            assert len(found) == count
            if key == "images":
                assert found == value
                continue
            assert whole[key].dtype == convert(value).dtype
            numbers = np.asarray(found)
            if key in PER_TOKEN:
                assert numbers.shape[1] == longest
                assert (numbers[:, seqlen:] == (-1 if key == "versions" else 0)).all()
                numbers = numbers[:, :seqlen]
            assert_array_equal(numbers, value)
        row += count


@given(several)
def test_every_row_is_there_and_behind_it_padding(parts: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(parts)
    check_all_is_there(concat_padded_tensors(parts), before, as_given)
    check_all_is_there(concat_padded_tensors(parts), parts, as_given)  # the first has changed nothing


@given(several)
def test_of_tensors_too(parts: list[dict[str, Any]]) -> None:
    tensors = [converted(part, as_tensor) for part in parts]
    check_all_is_there(concat_padded_tensors(tensors), parts, as_tensor)
    check_all_is_there(concat_padded_tensors(tensors), parts, as_tensor)


@given(several, several)
def test_it_does_not_matter_in_how_many_steps(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    whole = concat_padded_tensors([concat_padded_tensors(first), concat_padded_tensors(second)])
    check_all_is_there(whole, first + second, as_given)


@both_kinds
@pytest.mark.parametrize("seqlens", [(5, 5), (5, 6)])
def test_the_result_shares_no_memory_with_what_it_is_made_of(
    convert: Convert, seqlens: tuple[int, int]
) -> None:
    parts = [converted(a_trajectory(1, seqlen), convert) for seqlen in seqlens]
    whole = concat_padded_tensors(parts)
    for key in whole:
        before = parts[0][key].tolist()
        whole[key][:] = 7
        assert parts[0][key].tolist() == before


def test_one_alone_is_returned_as_it_is() -> None:
    one = a_trajectory(3, 7)
    assert concat_padded_tensors([one]) is one


@both_kinds
def test_of_different_dtypes_comes_the_one_that_has_room_for_both(convert: Convert) -> None:
    for seqlen in (5, 6):  # equal lengths take another way
        small = a_trajectory(1, 5, rewards=np.array([2]), input_ids=np.ones((1, 5), np.int16))
        large = a_trajectory(1, seqlen, rewards=np.array([0.5]), input_ids=np.full((1, seqlen), 70_000))
        for parts in ([small, large], [large, small]):
            whole = concat_padded_tensors([converted(part, convert) for part in parts])
            assert sorted(whole["rewards"].tolist()) == [0.5, 2.0]
            assert sorted(whole["input_ids"][:, 0].tolist()) == [1, 70_000]


def test_rows_in_another_order_in_memory_and_read_only_ones_are_fine() -> None:
    turned = np.arange(6).reshape(3, 2).T
    turned.flags.writeable = False
    whole = concat_padded_tensors([a_trajectory(2, 3, input_ids=turned), a_trajectory(1, 4)])
    assert whole["input_ids"].tolist() == [[0, 2, 4, 0], [1, 3, 5, 0], [10, 11, 12, 13]]
    whole["input_ids"][0, 0] = 9


def test_a_list_is_made_longer_and_its_entries_are_the_same() -> None:
    image, other = object(), object()
    parts = [a_trajectory(1, 2, images=[image]), a_trajectory(1, 3, images=[other])]
    assert concat_padded_tensors(parts)["images"] == [image, other]
    assert parts[0]["images"] == [image]


def test_gradients_come_through() -> None:
    torch = pytest.importorskip("torch")
    for seqlen in (2, 3):
        parts = [converted(a_trajectory(1, length), as_tensor) for length in (2, seqlen)]
        for part in parts:
            part["logprobs"].requires_grad_()
        (concat_padded_tensors(parts)["logprobs"] * 3.0).sum().backward()
        for part in parts:
            assert torch.equal(part["logprobs"].grad, torch.full_like(part["logprobs"], 3.0))


def test_tensors_on_two_devices_are_refused() -> None:
    pytest.importorskip("torch")
    parts = [converted(a_trajectory(1, length), as_tensor) for length in (2, 3)]
    parts[1]["rewards"] = parts[1]["rewards"].to("meta")
    with pytest.raises(
        ValueError, match=r"rewards of trajectories\[1\] is on meta where .* is on cpu; move all"
    ):
        concat_padded_tensors(parts)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in a_trajectory(1, 3).items() if name != key}


ONE_PER_SAMPLE = "is expected, as its input_ids has 1 samples; give one entry per sample"
LET_DIFFER = "let only the batch differ, and the seqlen in arrays with one entry per token"


@pytest.mark.parametrize(
    ("second", "kind", "says"),
    [
        (None, TypeError, "trajectories[1] is None, not a dict; leave it out"),
        (
            without("versions") | {"scores": np.ones(1)},
            ValueError,
            (
                "trajectories[1] lacks ['versions'] and has ['scores'], other than trajectories[0]; "
                "give all the same keys"
            ),
        ),
        (
            a_trajectory(1, 3, input_ids=np.arange(3)),
            ValueError,
            (
                "input_ids of trajectories[1] has the shape [3] where [batch, seqlen] is expected; "
                "add the batch dimension: array[None]"
            ),
        ),
        (
            a_trajectory(1, 3, input_ids=[[1, 2, 3]]),
            TypeError,
            "input_ids of trajectories[1] is a list; give an array",
        ),
        (
            a_trajectory(1, 3, rewards=1.0),
            TypeError,
            "rewards of trajectories[1] is a float; give an array, or a list with one entry per sample",
        ),
        (
            a_trajectory(1, 3, rewards=[1.0]),
            ValueError,
            (
                "rewards of trajectories[1] is a list where that of trajectories[0] is a NumPy array; "
                "give all as one kind"
            ),
        ),
        (
            a_trajectory(1, 3, rewards=np.array(1.0)),
            ValueError,
            f"rewards of trajectories[1] has the shape [] where [1, ...] {ONE_PER_SAMPLE}",
        ),
        (
            a_trajectory(1, 3, images=["a", "b"]),
            ValueError,
            f"images of trajectories[1] has the shape [2] where [1, ...] {ONE_PER_SAMPLE}",
        ),
        (
            a_trajectory(1, 3, rewards=np.array([None])),
            TypeError,
            "rewards of trajectories[1] has the dtype object; give a list with one entry per sample",
        ),
        (
            a_trajectory(1, 3, loss_mask=np.ones((1, 4))),
            ValueError,
            (
                "loss_mask of trajectories[1] has the shape [1, 4] where [1, 3] is expected, "
                "as input_ids has; give one entry per token"
            ),
        ),
        (
            a_trajectory(1, 3, features=np.ones((1, 5))),
            ValueError,
            (
                "features of trajectories[1] has the shape [1, 5] where that of trajectories[0] has [1, 4]; "
                f"{LET_DIFFER}"
            ),
        ),
        (
            a_trajectory(1, 3, hidden=np.ones((1, 3, 3))),
            ValueError,
            (
                "hidden of trajectories[1] has the shape [1, 3, 3] where that of trajectories[0] has "
                f"[1, 2, 2]; {LET_DIFFER}"
            ),
        ),
        (
            a_trajectory(1, 3, rewards=np.ones((1, 3))),
            ValueError,
            (
                "rewards of trajectories[1] has the shape [1, 3] where that of trajectories[0] has [1]; "
                f"{LET_DIFFER}"
            ),
        ),
        (
            a_trajectory(1, 3, versions=np.zeros((1, 3), np.uint8)),
            ValueError,
            ("versions of trajectories[1] has the dtype uint8, where padding is -1; give signed integers"),
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key_and_place(
    second: Any, kind: type[Exception], says: str
) -> None:
    extra = {"images": ["a"], "features": np.ones((1, 4)), "hidden": np.ones((1, 2, 2))}
    first = a_trajectory(1, 2, **{key: extra[key] for key in second or () if key in extra})
    with pytest.raises(kind) as refused:
        concat_padded_tensors([first, second])
    assert str(refused.value) == says


def test_arrays_and_tensors_do_not_mix() -> None:
    parts = [a_trajectory(1, 2), converted(a_trajectory(1, 3), as_tensor)]
    with pytest.raises(ValueError, match=r"input_ids of trajectories\[1\] is a torch tensor where that of"):
        concat_padded_tensors(parts)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ([], ValueError, "trajectories is empty; give at least one"),
        ([None], TypeError, "trajectories[0] is None, not a dict; leave it out"),
        (
            [without("input_ids")] * 2,
            ValueError,
            (
                "trajectories[0] lacks input_ids; it has ['attention_mask', 'logprobs', 'loss_mask', "
                "'rewards', 'versions']; add it"
            ),
        ),
    ],
)
def test_none_at_all_and_ones_without_tokens_are_refused(
    given: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        concat_padded_tensors(given)
    assert str(refused.value) == says
