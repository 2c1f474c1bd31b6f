"""What the demo's training is made of: task, reward, advantage, loss, optimizer, and what it writes down."""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest

from adam import Adam, cosine
from areal_core import ModelRequest, ModelResponse, WorkflowContext, workflow_context
from areal_core.distributed import WorkerStats
from areal_core.embedded import policy
from areal_core.embedded.policy import END, Floats, Parameters
from areal_core.trajectory import check_trajectory_format, concat_padded_tensors
from areal_core.workflow_executor import RolloutLedger
from journal import Journal, step_of
from learner import MINIBATCHES, Learner, samples_of
from policy_gradient import CLIP, ENTROPY_BONUS, Samples, group_advantages, logprobs_of, loss_and_gradient
from reversal import Answer, Prompts, Reverse, Trajectory, answers, reward, trajectory


class Parrot:
    """An engine that answers what it was told to, and keeps what it was asked."""

    def __init__(self, answer: list[int], versions: list[int] | None = None) -> None:
        self.answer = answer
        self.versions = versions or [0] * len(answer)
        self.asked: list[ModelRequest] = []

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.asked.append(request)
        return reply(list(request.input_ids), self.answer, self.versions)

    def get_version(self) -> int:
        return 0


def reply(prompt: list[int], answer: list[int], versions: list[int], segments: int = 1) -> ModelResponse:
    return ModelResponse(
        input_tokens=prompt,
        output_tokens=answer,
        output_logprobs=[-0.5 * place for place in range(1, len(answer) + 1)],
        output_versions=versions,
        versions_exact=True,
        stop_reason="stop",
        latency=0.0,
        ttft=None,
        segments=segments,
    )


def group(*versions: list[int], rewards: tuple[float, ...] | None = None, segments: int = 1) -> Trajectory:
    """Return a trajectory of one answer to ``12=`` for each of *versions*, all digits 0."""
    prompt = policy.encode("12=")
    worth = rewards or (0.0,) * len(versions)
    return concat_padded_tensors(
        [
            trajectory(reply(prompt, [0] * len(made), made, segments), one)
            for made, one in zip(versions, worth, strict=True)
        ]
    )


# The task


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ([3, 2, 1, END], 1.0),
        ([3, 2, 1], 3 / 4),  # cut off before the end
        ([3, 2, END], 2 / 4),
        ([3, 2, 1, 0, END], 3 / 5),  # too long: the places after the right ones count against it
        ([1, 2, 3, END], 2 / 4),
        ([END], 0.0),
        ([7] * 8, 0.0),
        ([3, 2, 1, END, 5, 5, 5, 5], 4 / 8),
    ],
)
def test_the_reward_is_the_share_of_places_that_are_right(answer: list[int], worth: float) -> None:
    assert reward("123", answer) == pytest.approx(worth)


def test_prompts_are_of_3_to_6_digits_and_the_same_for_the_same_seed() -> None:
    first, again, other = (list(itertools.islice(Prompts(64, seed), 3)) for seed in (1, 1, 2))
    assert first == again != other
    prompts = [prompt for batch in first for prompt in batch]
    assert len(prompts) == 3 * 64
    assert {len(prompt) for prompt in prompts} == {3, 4, 5, 6}
    assert {digit for prompt in prompts for digit in prompt} == set("0123456789")


def test_an_episode_asks_for_a_reversal_and_returns_what_the_executor_takes() -> None:
    engine = Parrot([2, 1, END], versions=[4, 4, 5])
    workflow = Reverse("some", temperature=0.5)
    played = asyncio.run(workflow.arun_episode(engine, "12"))

    check_trajectory_format(played)
    assert played["input_ids"].tolist() == [[*policy.place(policy.encode("12=")), 2, 1, END]]
    assert played["loss_mask"].tolist() == [[0] * 7 + [1] * 3]
    assert played["versions"].tolist() == [[-1] * 7 + [4, 4, 5]]
    assert played["logprobs"].tolist() == [[0.0] * 7 + [-0.5, -1.0, -1.5]]
    assert played["rewards"].tolist() == [1.0]
    assert answers(played) == [Answer("12=", [2, 1, END], [4, 4, 5], 1.0)]
    assert engine.asked[0].input_ids == policy.encode("12=")
    assert engine.asked[0].gconfig.temperature == 0.5
    assert (
        len(policy.place(policy.encode("123456="))) + engine.asked[0].gconfig.max_new_tokens <= policy.PLACES
    )


def test_a_request_has_the_same_name_in_whichever_process_it_is_made() -> None:
    workflow = Reverse("some")

    async def play(copy: Reverse, task_id: int, sample_idx: int | None) -> str | None:
        engine = Parrot([END])
        workflow_context.set(WorkflowContext(task_id=task_id, sample_idx=sample_idx))
        await copy.arun_episode(engine, "12")
        return engine.asked[0].rid

    there: Reverse = pickle.loads(pickle.dumps(workflow))
    for copy in (workflow, there):
        names = [asyncio.run(play(copy, *place)) for place in ((7, 0), (7, 1), (8, None))]
        assert names == ["some-7-0", "some-7-1", "some-8-0"]


def test_answers_of_a_group_are_without_the_padding() -> None:
    found = answers(group([1, 1, 1], [2], rewards=(0.25, 0.5)))
    assert found == [Answer("12=", [0, 0, 0], [1, 1, 1], 0.25), Answer("12=", [0], [2], 0.5)]
    assert not found[0].exact


# The loss


def test_advantages_are_in_standard_deviations_from_the_mean_of_the_group() -> None:
    advantages = group_advantages(np.array([1.0, 0.0, 0.0, 1.0]))
    assert advantages == pytest.approx(np.array([1, -1, -1, 1]), abs=1e-5)
    assert group_advantages(np.array([0.3, 0.3, 0.3])).tolist() == [0, 0, 0]


def test_each_group_has_advantages_of_its_own_and_padding_is_not_trained_on() -> None:
    batch = [group([0, 0], [0, 0, 0], rewards=(0.0, 1.0)), group([0], [0], rewards=(8.0, 9.0))]
    samples = samples_of(batch)
    assert samples.tokens.shape == (4, 10)
    assert samples.advantages == pytest.approx(np.array([-1, 1, -1, 1]), abs=1e-4)
    assert samples.mask.sum(1).tolist() == [2, 3, 1, 1]
    assert samples.mask[0].tolist() == [0] * 6 + [1, 1, 0]  # of the tokens from the second on
    assert samples.behaviour[0].tolist() == [0.0] * 6 + [-0.5, -1.0, 0.0]


def one_token(proximal_by: float = 0.0, behaviour_by: float = 0.0, advantage: float = 1.0) -> Samples:
    """Return a row of which one token is trained on, with policies that find it less likely by so much."""
    tokens = np.array([[*policy.place(policy.encode("12=")), 2, 1]])
    current = logprobs_of(policy.initial(0), tokens)
    mask = np.zeros_like(current)
    mask[0, 6] = 1
    proximal = current - proximal_by
    return Samples(tokens, mask, proximal - behaviour_by, proximal, np.array([advantage]))


def entropy_of(samples: Samples) -> float:
    chances = policy.softmax(policy.run(policy.initial(0), samples.tokens).logits)[0, 6]
    return float(-(chances * np.log(chances)).sum())


@pytest.mark.parametrize(
    ("ratio", "weight", "advantage", "gain"),
    [
        (1.0, 1.0, 2.0, 2.0),
        (1.1, 1.0, 2.0, 2.2),
        (1.5, 1.0, 2.0, 2.4),  # clipped: it is likely enough
        (0.5, 1.0, 2.0, 1.0),
        (1.5, 1.0, -2.0, -3.0),
        (0.5, 1.0, -2.0, -1.6),  # clipped: it is unlikely enough
        (1.0, 3.0, 2.0, 6.0),
        (1.0, 0.1, 2.0, 0.2),
        (1.0, 9.0, 2.0, 10.0),  # at most 5 times
    ],
)
def test_the_loss_of_a_token(ratio: float, weight: float, advantage: float, gain: float) -> None:
    samples = one_token(math.log(ratio), math.log(weight), advantage)
    loss, gradient = loss_and_gradient(policy.initial(0), samples)
    assert loss == pytest.approx(-gain - ENTROPY_BONUS * entropy_of(samples), rel=1e-5)

    # Where it is clipped, all that is left is the entropy's.
    clipped = (ratio - 1) * advantage > CLIP * abs(advantage)
    _, of_entropy = loss_and_gradient(policy.initial(0), samples._replace(advantages=np.array([0.0])))
    same = all(np.allclose(gradient[name], of_entropy[name], atol=1e-7) for name in gradient)
    assert same is clipped


def test_the_loss_is_the_mean_over_the_tokens_trained_on() -> None:
    one = one_token(advantage=2.0)
    two = Samples(*(np.concatenate([array, array]) for array in one))
    two.mask[1] = 0
    assert loss_and_gradient(policy.initial(0), two)[0] == pytest.approx(
        loss_and_gradient(policy.initial(0), one)[0]
    )


# The optimizer


def test_the_first_step_of_adam_goes_down_by_the_rate_in_each_number() -> None:
    parameters: dict[str, Floats] = {"a": np.array([1.0, 2.0]), "b": np.array([[3.0]])}
    kept = parameters["a"]
    Adam(parameters).step({"a": np.array([0.2, -0.01]), "b": np.array([[0.0]])}, rate=0.1)
    assert parameters["a"] is kept
    assert kept == pytest.approx(np.array([0.9, 2.1]), abs=1e-5)
    assert parameters["b"] == pytest.approx(np.array([[3.0]]))


def test_the_second_step_of_adam_is_by_both_means() -> None:
    parameters: dict[str, Floats] = {"a": np.array([0.0])}
    optimizer = Adam(parameters)
    optimizer.step({"a": np.array([0.2])}, rate=0.0)
    optimizer.step({"a": np.array([0.4])}, rate=0.1)
    mean = (0.9 * 0.1 * 0.2 + 0.1 * 0.4) / (1 - 0.9**2)
    square = (0.95 * 0.05 * 0.2**2 + 0.05 * 0.4**2) / (1 - 0.95**2)
    assert parameters["a"] == pytest.approx(np.array([-0.1 * mean / square**0.5]))


def test_adam_bounds_the_norm_over_all_parameters_together() -> None:
    large: dict[str, Floats] = {"a": np.array([0.0]), "b": np.array([0.0])}
    small: dict[str, Floats] = {"a": np.array([0.0]), "b": np.array([0.0])}
    ours, other = Adam(large), Adam(small)
    ours.step({"a": np.array([300.0]), "b": np.array([400.0])}, rate=0.1)
    other.step({"a": np.array([0.6]), "b": np.array([0.8])}, rate=0.1)
    for optimizer in (ours, other):  # a small one after it: the first one's size shows
        optimizer.step({"a": np.array([0.1]), "b": np.array([-0.1])}, rate=0.1)
    assert large["a"] == pytest.approx(small["a"])
    assert large["b"] == pytest.approx(small["b"])


def test_the_rate_falls_from_the_highest_to_the_lowest() -> None:
    rates = [cosine(step, 11, 0.005, 0.0005) for step in range(11)]
    assert rates[0] == pytest.approx(0.005)
    assert rates[5] == pytest.approx((0.005 + 0.0005) / 2)
    assert rates[10] == pytest.approx(0.0005)
    assert rates == sorted(rates, reverse=True)
    assert cosine(0, 1, 0.005, 0.0005) == pytest.approx(0.005)


@pytest.mark.parametrize(
    "unlikelier", [0.0, 1.0], ids=["sampled by the policy", "by one less sure of itself"]
)
def test_what_was_rewarded_becomes_likelier_and_what_was_not_less_likely(unlikelier: float) -> None:
    learner = Learner(seed=0, steps=9)
    prompt = policy.encode("12=")
    tokens = np.array([[*policy.place(prompt), digit, END] for digit in (2, 5)])
    right, wrong = [], []
    for _ in range(9):
        logprobs = logprobs_of(learner.parameters, tokens)[:, 6:]
        right.append(math.exp(logprobs[0, 0]))
        wrong.append(math.exp(logprobs[1, 0]))
        one = concat_padded_tensors(
            [
                trajectory(reply(prompt, [2, END], [0, 0]), 1.0),
                trajectory(reply(prompt, [5, END], [0, 0]), 0.0),
            ]
        )
        one["logprobs"][:, 7:] = logprobs - unlikelier
        learner.learn([one] * 4)
    assert right[-1] > 4 * right[0]
    assert wrong[-1] < wrong[0]


def test_each_answer_is_in_one_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[Samples] = []

    def noted(parameters: Parameters, part: Samples) -> tuple[float, dict[str, Floats]]:
        parts.append(part)
        return loss_and_gradient(parameters, part)

    monkeypatch.setattr("learner.loss_and_gradient", noted)
    batch = [group([0], [0], rewards=(0.0, float(number))) for number in range(6)]
    for number, one in enumerate(batch):
        one["logprobs"][:, -1] = [2 * number, 2 * number + 1]  # tells one from another
    Learner(seed=0, steps=1).learn(batch)
    assert [len(part.tokens) for part in parts] == [3] * MINIBATCHES
    order = [value for part in parts for value in part.behaviour[:, -1].tolist()]
    assert sorted(order) == list(range(12)) != order


def test_a_batch_without_a_token_to_train_on_changes_nothing() -> None:
    learner = Learner(seed=0, steps=1)
    batch = [group([0, 0], [0], rewards=(0.0, 1.0)) for _ in range(4)]
    for one in batch:
        one["loss_mask"][:] = 0
    learner.learn(batch)
    assert all((learner.parameters[name] == array).all() for name, array in policy.initial(0).items())


# What is written down


def test_a_step_tells_how_old_the_tokens_are_that_were_trained_on() -> None:
    old = group([2, 3], [5], rewards=(0.5, 1.0), segments=3)
    old["loss_mask"][0, 7] = 0  # the one of version 2
    step = step_of([old, group([4, 4], rewards=(0.0,))], version=5, waited=1.5, seconds=9.0)
    assert step.ages == [1, 2, 1]  # 5; 4 and 4; 3
    assert (step.trained, step.masked, step.resumed) == (4, 1, 4)
    assert step.mean_staleness == pytest.approx(1.0)
    assert step.max_staleness == 2
    assert step.reward == pytest.approx(0.5)
    assert (step.waited, step.seconds) == (1.5, 9.0)


def test_a_batch_that_is_masked_to_the_last_token_has_no_staleness() -> None:
    masked = group([0, 0])
    masked["loss_mask"][:] = 0
    step = step_of([masked], version=9, waited=0.0, seconds=0.0)
    assert (step.trained, step.masked, step.max_staleness, step.mean_staleness) == (0, 2, 0, 0.0)


def _journal(*batches: list[Trajectory], max_staleness: int = 2, version: int = 5) -> Journal:
    journal = Journal("a run", max_staleness)
    journal.start()
    for batch in batches:
        journal.delivered(batch, version, running=0)
        journal.updated()
    return journal


@pytest.mark.parametrize(("oldest", "over"), [(3, 0), (2, 1)])
def test_a_token_over_the_bound_is_counted(oldest: int, over: int) -> None:
    journal = _journal([group([oldest, 5])], [group([4, 5])])
    assert journal.over == over
    assert journal.is_sound is (over == 0)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_lost_a_group_is_not_sound(lost: int) -> None:
    journal = _journal([group([5])])
    journal.ledger = RolloutLedger(
        submitted=15 + lost, pending=1, running=2, finished=3, collected=4, discarded=5
    )
    assert journal.is_sound is not bool(lost)


@pytest.mark.parametrize(("numbers", "died"), [([], 0), ([1, 2], 0), ([2, 4], 2)])
def test_the_workers_that_died_are_those_whose_numbers_are_gone(numbers: list[int], died: int) -> None:
    journal = _journal([group([5])])
    journal.workers = [
        WorkerStats(
            number=number,
            running=0,
            ended=0,
            ended_per_s=0.0,
            silent_s=0.0,
            stalled_s=0.0,
            is_draining=False,
        )
        for number in numbers
    ]
    assert journal.died == died


def test_the_answer_shown_is_the_last_of_those_with_the_most_versions() -> None:
    journal = _journal(
        [group([5, 5]), group([3, 4], [3, 4, 5])],
        [group([3, 5, 4], [4, 5, 3]), group([5, 4])],
        [group([4, 5], [5])],
    )
    assert journal.interrupted is not None
    assert journal.interrupted.versions == [4, 5, 3]
    assert _journal([group([5, 5])]).interrupted is None


def test_the_figures_of_a_run_are_those_of_its_steps() -> None:
    solved: dict[str, Any] = {"rewards": (0.95,)}
    journal = _journal([group([5, 5])], [group([4, 5, 5], **solved)], [group([5], **solved)])
    assert journal.solved_after == journal.steps[1].seconds <= journal.seconds
    assert (journal.samples, journal.tokens, journal.masked) == (3, 6, 0)
    assert journal.mean_staleness == pytest.approx(1 / 6)
    assert 0 <= journal.idle <= 1
    assert _journal([group([5])]).solved_after is None
