"""What `check_trajectory_format` takes for a trajectory, and what it says of anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from areal_core.trajectory import TrajectoryShape, check_trajectory_format
from children import RunScript
from trajectories import Convert, a_trajectory, as_tensor, both_kinds, converted

NAN, INF = float("nan"), float("inf")


@both_kinds
@pytest.mark.parametrize(("batch_size", "seqlen"), [(1, 1), (1, 7), (4, 3), (3, 3)])
def test_a_correct_one_has_the_shape_of_its_tokens(convert: Convert, batch_size: int, seqlen: int) -> None:
    trajectory = converted(a_trajectory(batch_size, seqlen), convert)
    shape = check_trajectory_format(trajectory, batch_size=batch_size, expected_keys=trajectory)
    assert shape == TrajectoryShape(batch_size, seqlen)


@both_kinds
def test_tokens_and_attention_are_enough(convert: Convert) -> None:
    whole = a_trajectory(2, 5)
    least = {key: whole[key] for key in ("input_ids", "attention_mask")}
    assert check_trajectory_format(converted(least, convert)) == (2, 5)


@both_kinds
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_ids", np.array([[1, 2, 3]], np.uint8)),
        ("attention_mask", np.array([[True, True, False]])),
        ("attention_mask", np.array([[0, 0, 1]], np.uint8)),
        ("loss_mask", np.array([[True, False, False]])),
        ("loss_mask", np.array([[0.0, 0.5, 1.0]])),
        ("versions", np.array([[-1, 0, 9]], np.int8)),
        ("logprobs", np.array([[0.0, -INF, -1.5]], np.float16)),
        ("rewards", np.array([True])),
        ("rewards", np.array([3])),
        ("rewards", np.array([[0.0, 0.0, 1.0]])),
        ("advantages", np.array([[NAN, 1.0, 2.0]])),
        ("hidden", np.zeros((1, 3, 2, 2), np.float32)),
        ("features", np.zeros((1, 64))),
        ("empty", np.zeros((1, 0))),
        ("images", [object()]),
        ("images", [[np.zeros(3), "a text"]]),
    ],
)
def test_these_entries_are_fine(convert: Convert, key: str, value: Any) -> None:
    assert check_trajectory_format(converted(a_trajectory(1, 3, **{key: value}), convert)) == (1, 3)


INPUT_IDS = "where [batch, seqlen] is expected; give at least one sample of at least one token"


@both_kinds
@pytest.mark.parametrize(
    ("key", "value", "kind", "says"),
    [
        ("input_ids", np.arange(5), ValueError,
         ("input_ids has the shape [5] where [batch, seqlen] is expected; "
         "add the batch dimension to each array: array[None]")),
        ("input_ids", np.zeros((1, 5, 1), int), ValueError, f"input_ids has the shape [1, 5, 1] {INPUT_IDS}"),
        ("input_ids", np.zeros((0, 5), int), ValueError, f"input_ids has the shape [0, 5] {INPUT_IDS}"),
        ("input_ids", np.zeros((2, 0), int), ValueError, f"input_ids has the shape [2, 0] {INPUT_IDS}"),
        ("input_ids", np.array([[1, -7, 2, 3, 4]] * 2), ValueError,
         "input_ids has -7; give token ids from 0"),
        ("attention_mask", np.ones((2, 4), int), ValueError,
         ("attention_mask has the shape [2, 4] where [2, 5] is expected, as input_ids has; "
         "give one entry per token")),
        ("attention_mask", np.array([[1, 1, 1, 2, 0]] * 2), ValueError,
         "attention_mask has 2; give 1 for tokens and 0 for padding"),
        ("attention_mask", np.array([[1, 1, 1, -1, 0]] * 2), ValueError,
         "attention_mask has -1; give 1 for tokens and 0 for padding"),
        ("loss_mask", np.ones(2, int), ValueError,
         "loss_mask has the shape [2] where [2, 5] is expected, as input_ids has; give one entry per token"),
        ("loss_mask", np.ones((5, 2), int), ValueError,
         ("loss_mask has the shape [5, 2] where [2, ...] is expected, as input_ids is [2, 5]; "
         "give one entry per sample")),
        ("versions", np.array([[0, -2, 0, 0, 0]] * 2), ValueError,
         "versions has -2; give policy versions, and -1 for tokens that no policy made"),
        ("versions", np.zeros((2, 5, 1), int), ValueError,
         ("versions has the shape [2, 5, 1] where [2, 5] is expected, as input_ids has; "
         "give one entry per token")),
        ("logprobs", np.array([[0.0, NAN, 0.0, 0.0, 0.0]] * 2), ValueError,
         "logprobs has nan; give 0 for tokens that were not sampled"),
        ("loss_mask", np.array([[0.0, 1.0, NAN, 0.0, 0.0]] * 2), ValueError,
         "loss_mask has nan; give 0 for tokens that are not trained, and finite numbers for others"),
        ("loss_mask", np.array([[0.0, 1.0, INF, 0.0, 0.0]] * 2), ValueError,
         "loss_mask has inf; give 0 for tokens that are not trained, and finite numbers for others"),
        ("rewards", np.array([1.0, NAN]), ValueError,
         "rewards has nan; give finite numbers; return None from the workflow to reject the episode"),
        ("rewards", np.array([1.0, -INF]), ValueError,
         "rewards has -inf; give finite numbers; return None from the workflow to reject the episode"),
        ("rewards", np.array(1.0), ValueError,
         ("rewards has the shape [] where [2, ...] is expected, as input_ids is [2, 5]; "
         "give one entry per sample")),
        ("rewards", np.ones((2, 1)), ValueError,
         ("rewards has the shape [2, 1] where [2] is expected, or [2, 5]; "
         "give one number per sample, or one per token")),
        ("features", np.ones((3, 5)), ValueError,
         ("features has the shape [3, 5] where [2, ...] is expected, as input_ids is [2, 5]; "
         "give one entry per sample")),
        ("images", [], ValueError,
         ("images has the shape [0] where [2, ...] is expected, as input_ids is [2, 5]; "
         "give one entry per sample")),
        ("images", ["one"], ValueError,
         ("images has the shape [1] where [2, ...] is expected, as input_ids is [2, 5]; "
         "give one entry per sample")),
    ],
)  # fmt: skip
def test_wrong_shapes_and_entries_are_named_with_what_would_do(
    convert: Convert, key: str, value: Any, kind: type[Exception], says: str
) -> None:
    trajectory = converted(a_trajectory(2, 5, **{key: value}), convert)
    with pytest.raises(kind) as refused:
        check_trajectory_format(trajectory)
    assert str(refused.value) == says


OR_A_LIST = ", or a list with one entry per sample"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("input_ids", [[1, 2]], "input_ids is a list; give an array, or leave the key out"),
        ("input_ids", np.ones((1, 5)), "input_ids has the dtype float64; give integers such as int64"),
        ("input_ids", np.ones((1, 5), bool), "input_ids has the dtype bool; give integers such as int64"),
        ("attention_mask", np.ones((1, 5)),
         "attention_mask has the dtype float64; give integers such as int64, or bools"),
        ("versions", np.ones((1, 5)), "versions has the dtype float64; give signed integers"),
        ("versions", np.ones((1, 5), np.uint8), "versions has the dtype uint8; give signed integers"),
        ("logprobs", np.zeros((1, 5), int), "logprobs has the dtype int64; give floats"),
        ("loss_mask", None, "loss_mask is None; give an array, or leave the key out"),
        ("rewards", 1, "rewards is an int; give an array, or leave the key out"),
        ("rewards", 1.0, "rewards is a float; give an array, or leave the key out"),
        ("rewards", np.float32(1.0), "rewards is a float32; give an array, or leave the key out"),
        ("rewards", np.array([None]), "rewards has the dtype object; give numbers or bools"),
        ("images", ("one",), f"images is a tuple; give an array{OR_A_LIST}, or leave the key out"),
        ("question", "why?", f"question is a str; give an array{OR_A_LIST}, or leave the key out"),
        ("texts", np.array(["why?"]), f"texts has the dtype <U4; give numbers or bools{OR_A_LIST}"),
        ("tools", np.array([{}]), f"tools has the dtype object; give numbers or bools{OR_A_LIST}"),
    ],
)  # fmt: skip
def test_wrong_types_are_named_with_what_would_do(key: str, value: Any, says: str) -> None:
    with pytest.raises(TypeError) as refused:
        check_trajectory_format(a_trajectory(1, 5, **{key: value}))
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("trajectory", "kind", "says"),
    [
        (None, TypeError, ("the trajectory is None, not a dict; "
         "return a dict of arrays, or None to reject the episode")),
        ([a_trajectory()], TypeError, ("the trajectory is a list, not a dict; "
         "return a dict of arrays, or None to reject the episode")),
        ({}, ValueError,
         "the trajectory lacks ['input_ids', 'attention_mask']; it has []; add what is missing"),
        ({"rewards": np.ones(1), "input_ids": np.ones((1, 2), int)}, ValueError,
         "the trajectory lacks ['attention_mask']; it has ['input_ids', 'rewards']; add what is missing"),
        (a_trajectory() | {7: np.ones(1)}, TypeError,
         "the trajectory has the key 7, which is not a str; give values names"),
    ],
)  # fmt: skip
def test_what_is_no_dict_of_these_keys_is_refused(trajectory: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as refused:
        check_trajectory_format(trajectory)
    assert str(refused.value) == says


def test_another_batch_than_wanted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input_ids has the shape \[2, 5\] where \[1, seqlen\] is expected"):
        check_trajectory_format(a_trajectory(2, 5), batch_size=1)


@pytest.mark.parametrize(
    ("expected", "lacking", "odd"),
    [
        (["input_ids", "scores"], "'scores'", "'attention_mask', 'images'"),
        (["images"], "", "'attention_mask', 'input_ids'"),
    ],
)
def test_expected_keys_are_no_fewer_and_no_more(expected: list[str], lacking: str, odd: str) -> None:
    whole = a_trajectory()
    trajectory = {key: whole[key] for key in ("input_ids", "attention_mask")} | {"images": [0]}
    with pytest.raises(ValueError, match="return the same keys from every episode") as refused:
        check_trajectory_format(trajectory, expected_keys=iter(expected))
    assert f"lacks the keys [{lacking}] and has [{odd}], which are not expected" in str(refused.value)


def test_one_kind_of_arrays_it_is() -> None:
    trajectory = a_trajectory(1, 5, rewards=as_tensor(np.ones(1)))
    with pytest.raises(TypeError, match="rewards is a torch tensor where input_ids is a NumPy array"):
        check_trajectory_format(trajectory)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tensors_may_be_of_dtypes_that_numpy_has_not(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    logprobs = torch.zeros((1, 5), dtype=getattr(torch, dtype))
    trajectory = converted(a_trajectory(), as_tensor) | {"logprobs": logprobs}
    assert check_trajectory_format(trajectory) == (1, 5)
    logprobs[0, 3] = NAN
    with pytest.raises(ValueError, match="logprobs has nan"):
        check_trajectory_format(trajectory)


@pytest.mark.parametrize("dtype", ["bool", "uint16", "uint64"])  # torch cannot compare the last two
def test_a_tensor_of_these_is_none_of_tokens(dtype: str) -> None:
    tokens = as_tensor(np.ones((1, 5), dtype))
    with pytest.raises(
        TypeError, match=rf"input_ids has the dtype torch.{dtype}; give integers such as int64"
    ):
        check_trajectory_format(converted(a_trajectory(), as_tensor) | {"input_ids": tokens})


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32", "complex64"])
def test_dtypes_of_tensors_are_told_apart(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    versions = torch.zeros((1, 5), dtype=getattr(torch, dtype))
    with pytest.raises(TypeError, match=f"versions has the dtype torch.{dtype}; give signed integers"):
        check_trajectory_format(converted(a_trajectory(), as_tensor) | {"versions": versions})


def test_messages_never_show_what_is_in_a_trajectory() -> None:
    with pytest.raises(TypeError) as refused:
        check_trajectory_format(a_trajectory(prompt="my secret"))
    assert "my secret" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_numpys_unsigned_integers_are_tokens(dtype: str) -> None:
    assert check_trajectory_format(a_trajectory(1, 3, input_ids=np.ones((1, 3), dtype))) == (1, 3)


@pytest.mark.any_loop
def test_torch_is_never_imported(run_script: RunScript) -> None:
    script = run_script("""
        import sys
        import numpy as np
        from areal_core.trajectory import check_trajectory_format, concat_padded_tensors
        one = {"input_ids": np.ones((1, 2), int), "attention_mask": np.ones((1, 2), int)}
        print(check_trajectory_format(concat_padded_tensors([one, one])))
        print([name for name in ("torch", "aiohttp", "httpx") if name in sys.modules])
    """)
    assert (script.stdout, script.stderr) == ("TrajectoryShape(batch_size=2, seqlen=2)\n[]\n", "")
