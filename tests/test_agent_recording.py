"""The calls of an agent, as the trajectory that a trainer gets: rewards, returns, and what is refused."""

from __future__ import annotations

import contextvars
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core import workflow_context
from areal_core._agents.call import Call, ToolCall
from areal_core._agents.recording import Recording
from areal_core.trajectory import check_trajectory_format, concat_padded_tensors
from areal_core.workflow_executor import RolloutOutcome
from conftest import MakeExecutor
from executor_tools import WAIT_S, Engine, Playing, balance

DTYPES = {
    "input_ids": np.int64,
    "attention_mask": np.int32,
    "loss_mask": np.int32,
    "logprobs": np.float32,
    "versions": np.int32,
    "returns": np.float32,
    "rewards": np.float32,
    "sample_idx": np.int32,
}


def a_call(name: str, prompt: list[int], output: list[int], version: int = 0, **others: Any) -> Call:
    """Return a call; it began at the number that its name ends with."""
    fields: dict[str, Any] = {
        "id": name,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "output_logprobs": [-0.25 * (place + 1) for place in range(len(output))],
        "output_versions": [version] * len(output),
        "versions_exact": True,
        "finish_reason": "stop",
        "content": None,
        "began": float(name[-1]),
        "ended": float(name[-1]) + 0.5,
    }
    return Call(**fields | others)


def recording_of(*calls: Call) -> Recording:
    recording = Recording()
    for call in calls:
        recording.add(call)
    return recording


def two_rows() -> Recording:
    """Return a conversation of two turns, and a call of a sub-agent between them."""
    return recording_of(
        a_call("call-1", [1, 2], [3, 4], version=5),
        a_call("call-2", [7], [8], version=6),
        a_call("call-3", [1, 2, 3, 4, 5], [6], version=7),
    )


def as_lists(trajectory: dict[str, Any]) -> dict[str, Any]:
    return {key: array.tolist() for key, array in trajectory.items()}


def test_a_conversation_and_a_sub_agent_are_two_rows() -> None:
    trajectory = two_rows().to_trajectory(1.0, discount=0.5)
    assert as_lists(trajectory) == {
        "input_ids": [[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]],
        "loss_mask": [[0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0]],
        "logprobs": [[0, 0, -0.25, -0.5, 0, -0.25], [0, -0.25, 0, 0, 0, 0]],
        "versions": [[-1, -1, 5, 5, -1, 7], [-1, 6, -1, -1, -1, -1]],
        "returns": [[0, 0, 0.25, 0.25, 0, 1], [0, 0.5, 0, 0, 0, 0]],
        "rewards": [1, 0.5],
        "sample_idx": [0, 0],
    }
    assert {key: array.dtype for key, array in trajectory.items()} == DTYPES
    assert check_trajectory_format(trajectory, batch_size=2) == (2, 6)


def test_one_call_is_one_row() -> None:
    trajectory = recording_of(a_call("call-1", [1], [2, 3], version=4)).to_trajectory(-2)
    assert as_lists(trajectory) == {
        "input_ids": [[1, 2, 3]],
        "attention_mask": [[1, 1, 1]],
        "loss_mask": [[0, 1, 1]],
        "logprobs": [[0, -0.25, -0.5]],
        "versions": [[-1, 4, 4]],
        "returns": [[0, -2, -2]],
        "rewards": [-2],
        "sample_idx": [0],
    }
    assert {key: array.dtype for key, array in trajectory.items()} == DTYPES


def test_calls_are_kept_in_the_order_in_which_they_began() -> None:
    late, early, middle = (a_call(name, [1], [2]) for name in ("a-9", "b-1", "c-5"))
    twin = a_call("d-5", [1], [2])
    recording = recording_of(late, early, middle, twin)
    assert recording.calls == (early, middle, twin, late)
    assert recording_of(twin, late, middle, early).calls == (early, twin, middle, late)
    earlier = recording.calls
    recording.add(a_call("e-0", [1], [2]))
    assert [len(earlier), len(recording.calls)] == [4, 5]


def test_a_number_rewards_the_call_that_began_last() -> None:
    recording = recording_of(
        a_call("long-2", [9], [1], ended=3.0), a_call("short-1", [8], [1], ended=9.0), a_call("c-0", [7], [1])
    )
    trajectory = recording.to_trajectory(1.0, discount=0.5)
    assert as_lists(trajectory)["rewards"] == [0.25, 0.5, 1.0]
    assert trajectory["input_ids"][:, 0].tolist() == [7, 8, 9]


def test_a_mapping_rewards_calls_by_their_ids() -> None:
    def rewards(given: dict[str, Any], discount: float = 1.0) -> Any:
        calls = [a_call(f"call-{place}", [place], [9]) for place in range(4)]
        return recording_of(*calls).to_trajectory(given, discount=discount)["rewards"].tolist()

    assert rewards({"call-1": 1.0}) == [1, 1, 0, 0]
    assert rewards({"call-1": 1.0, "call-3": np.float32(-2)}) == [-1, -1, -2, -2]
    assert rewards({"call-0": 3, "call-2": 1.0, "call-1": 2.0}, 0.0) == [3, 2, 1, 0]
    assert rewards({}) == [0, 0, 0, 0]


def test_a_call_that_sampled_nothing_counts_in_returns_and_is_not_trained() -> None:
    recording = recording_of(
        a_call("a-1", [1], [2]), a_call("b-2", [1, 2, 3], []), a_call("c-3", [1, 2, 4], [5])
    )
    trajectory = recording.to_trajectory({"b-2": 1.0, "c-3": 4.0}, discount=0.5)
    assert trajectory["input_ids"].tolist() == [[1, 2, 4, 5]]
    assert trajectory["returns"].tolist() == [[0, 0.5 * (1 + 0.5 * 4), 0, 4]]


def test_a_number_for_a_last_call_that_sampled_nothing_reaches_those_before_it() -> None:
    recording = recording_of(a_call("a-1", [1], [2]), a_call("b-2", [1, 2, 3], []))
    assert recording.to_trajectory(1.0, discount=0.5)["rewards"].tolist() == [0.5]


@given(st.lists(st.none() | st.integers(-4, 4), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_return_is_the_sum_of_what_follows_discounted_per_call(
    own: list[int | None], discount: float
) -> None:
    calls = [a_call(f"call-{place}", [place], [9]) for place in range(len(own))]
    given = {call.id: float(value) for call, value in zip(calls, own, strict=True) if value is not None}
    trajectory = recording_of(*calls).to_trajectory(given, discount=discount)
    expected = [
        sum((value or 0) * discount**steps for steps, value in enumerate(own[place:]))
        for place in range(len(own))
    ]
    assert trajectory["returns"][:, 1].tolist() == expected
    assert trajectory["rewards"].tolist() == expected


def test_the_place_in_the_group_is_in_each_row() -> None:
    def within(sample_idx: int | None) -> Any:
        workflow_context.set(workflow_context.WorkflowContext(sample_idx=sample_idx))
        return two_rows().to_trajectory(0.0)["sample_idx"].tolist()

    assert contextvars.copy_context().run(within, 3) == [3, 3]
    assert contextvars.copy_context().run(within, None) == [0, 0]


def test_trajectories_of_different_numbers_of_rows_are_joined() -> None:
    one = recording_of(a_call("x-1", [1] * 7, [2], version=1)).to_trajectory(0.5)
    whole = concat_padded_tensors([two_rows().to_trajectory(1.0), one])
    assert check_trajectory_format(whole, expected_keys=DTYPES) == (3, 8)
    assert {key: array.dtype for key, array in whole.items()} == DTYPES
    assert whole["returns"].tolist() == [[0, 0, 1, 1, 0, 1, 0, 0], [0, 1, *[0] * 6], [*[0] * 7, 0.5]]
    assert whole["versions"].tolist()[0] == [-1, -1, 5, 5, -1, 7, -1, -1]
    assert whole["rewards"].tolist() == [1, 1, 0.5]


@pytest.mark.parametrize(
    ("reward", "discount", "kind", "says"),
    [
        (float("nan"), 1, ValueError, "reward=nan is out of range; give a finite number in -inf..inf"),
        (float("inf"), 1, ValueError, "reward=inf is out of range; give a finite number in -inf..inf"),
        (None, 1, TypeError, "reward=None is not a number; give one"),
        ("1", 1, TypeError, "reward='1' is not a number; give one"),
        ({"call-2": float("nan")}, 1, ValueError,
         "reward['call-2']=nan is out of range; give a finite number in -inf..inf"),
        ({"call-1": 0.0, "cal-2": 1.0}, 1, ValueError,
         ("reward has the ids 'cal-2', which no call has; there are 'call-1', 'call-2', 'call-3'; "
          "give ids of completions, or one number")),
        (dict.fromkeys((1, 2, 3, 4, 5), 0.0), 1, ValueError,
         ("reward has the ids 1, 2, 3 and 2 more, which no call has; there are 'call-1', 'call-2', 'call-3'; "
          "give ids of completions, or one number")),
        (1.0, 1.5, ValueError, "discount=1.5 is out of range; give a finite number in 0..1"),
        (1.0, -0.1, ValueError, "discount=-0.1 is out of range; give a finite number in 0..1"),
        (1.0, float("nan"), ValueError, "discount=nan is out of range; give a finite number in 0..1"),
        (1.0, True, TypeError, "discount=True is not a number; give one"),
        (1e39, 1, ValueError,
         "the rewards make a return of 1e+39, and float32 ends at 3.40282e+38; give less"),
        ({"call-1": -2e38, "call-3": -2e38}, 1, ValueError,
         "the rewards make a return of -4e+38, and float32 ends at 3.40282e+38; give less"),
    ],
    ids=[
        "nan",
        "infinity",
        "nothing",
        "a text",
        "nan of a call",
        "an unknown id",
        "many unknown ids",
        "discount above 1",
        "discount below 0",
        "discount nan",
        "discount a bool",
        "above float32",
        "sum below float32",
    ],
)  # fmt: skip
def test_rewards_that_make_no_sense_are_refused(
    reward: Any, discount: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        two_rows().to_trajectory(reward, discount=discount)
    assert str(refused.value) == says


def test_whether_it_was_right_is_a_reward() -> None:
    assert two_rows().to_trajectory(True)["rewards"].tolist() == [1.0, 1.0]
    assert two_rows().to_trajectory({"call-1": True, "call-3": False}, discount=0.0)["rewards"].max() <= 1.0


def test_of_many_ids_a_message_names_the_first_few() -> None:
    recording = recording_of(*(a_call(f"call-{place}", [1], [2]) for place in range(9)))
    with pytest.raises(ValueError, match="there are 'call-0', 'call-1', 'call-2' and 6 more; give ids"):
        recording.to_trajectory({"odd": 1.0})


def test_where_nothing_was_sampled_there_is_no_trajectory() -> None:
    with pytest.raises(ValueError, match=r"^no call was recorded; return None to reject the episode$"):
        Recording().to_trajectory(0.0)
    recording = recording_of(a_call("a-1", [1], []), a_call("b-2", [1, 2], []))
    with pytest.raises(
        ValueError, match=r"^nothing was sampled in 2 calls; return None to reject the episode$"
    ):
        recording.to_trajectory({"a-1": 1.0})


def test_an_id_is_taken_once() -> None:
    recording = recording_of(a_call("call-1", [1], [2]))
    with pytest.raises(ValueError, match="there is a call with the id 'call-1' already; add each once"):
        recording.add(a_call("call-1", [5], [6]))
    assert len(recording.calls) == 1
    assert recording.to_trajectory(0.0)["input_ids"].tolist() == [[1, 2]]


def test_a_recording_goes_on_after_it_made_a_trajectory() -> None:
    recording = recording_of(a_call("call-1", [1], [2]))
    first = recording.to_trajectory(1.0)
    recording.add(a_call("call-2", [1, 2, 3], [4]))
    assert recording.to_trajectory(1.0)["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert first["input_ids"].tolist() == [[1, 2]]


def test_reprs_count_and_show_nothing_that_was_said() -> None:
    assert repr(two_rows()) == "<Recording of 3 calls, 4 sampled tokens>"
    tool_call = ToolCall("t", "search", '{"query": "secret"}')
    call = a_call("call-1", [123], [456, 789], content="secret", tool_calls=(tool_call,))
    shown = repr(call)
    assert "call-1" in shown
    assert not any(said in shown for said in ("123", "456", "0.25", "secret"))


@pytest.mark.parametrize("field", ["output_tokens", "output_logprobs", "output_versions"])
def test_a_call_has_one_of_each_per_token(field: str) -> None:
    others: dict[str, Any] = {field: [0]}
    with pytest.raises(ValueError, match=r"the call 'call-1' has .* give one of each per token"):
        a_call("call-1", [1], [2, 3], **others)


def test_calls_are_told_apart_by_themselves() -> None:
    one, other = a_call("call-1", [1], [2]), a_call("call-1", [1], [2])
    assert one != other
    assert len({one, other}) == 2


def outcome_of(make_executor: MakeExecutor, play: Any, group_size: int, **config: Any) -> RolloutOutcome:
    engine = Engine(version=config.pop("version", 0))
    executor = make_executor(engine, consumer_batch_size=8, check_trajectory_format=True, **config)
    executor.submit(7, Playing(play), group_size=group_size)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    balance(executor.ledger)
    return outcome


def test_an_episode_of_two_rows_is_one_rollout(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        return two_rows().to_trajectory(1.0)

    outcome = outcome_of(make_executor, play, 1, version=7, max_head_offpolicyness=2)
    assert (outcome.status, outcome.origin) == ("accepted", 5)
    assert outcome.trajectory is not None
    assert as_lists(outcome.trajectory) == as_lists(two_rows().to_trajectory(1.0))


def test_members_of_a_group_may_have_different_numbers_of_rows(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        place = workflow_context.get().sample_idx
        assert place is not None
        calls = [a_call(f"call-{row}", [row], [place] * (place + 1), version=0) for row in range(place)]
        return recording_of(*calls).to_trajectory(float(place)) if calls else None

    trajectory = outcome_of(make_executor, play, 4).trajectory
    assert trajectory is not None
    assert trajectory["sample_idx"].tolist() == [1, 2, 2, 3, 3, 3]
    assert trajectory["rewards"].tolist() == [1, 2, 2, 3, 3, 3]
    assert trajectory["loss_mask"].sum(axis=1).tolist() == [2, 3, 3, 4, 4, 4]
    assert trajectory["returns"].sum(axis=1).tolist() == [2, 6, 6, 12, 12, 12]
    assert trajectory["input_ids"].shape == (6, 5)
