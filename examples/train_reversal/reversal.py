"""The task: write a string of digits backwards. ``31415=`` is to be answered by ``51413`` and the end.

`Reverse` is the workflow. It plays one episode: it asks the engine for a reply and says what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from areal_core import (
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    RolloutWorkflow,
    workflow_context,
)
from areal_core.embedded import policy
from areal_core.types import InferenceEngine

Trajectory: TypeAlias = dict[str, Any]
"""Arrays of one row per answer; a group's answers to one prompt are the rows of one trajectory."""

LENGTHS = 3, 6
"""The least digits of a prompt, and the most."""
_MOST_TOKENS = 8  # a longest answer is 6 digits and the end; what runs on for one more is wrong already


class Prompts:
    """An endless data loader: lists of *batch_size* strings of digits, the same for the same *seed*."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._draw = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            yield [self._prompt() for _ in range(self.batch_size)]

    def _prompt(self) -> str:
        length = self._draw.integers(LENGTHS[0], LENGTHS[1] + 1)
        return "".join(map(str, self._draw.integers(0, 10, length)))


class Reverse(RolloutWorkflow):
    """Asks for one string backwards.

    Requests are called *name*, the number of the rollout, and the place in its group. The embedded server
    draws pace and tokens by that: another run meets the same slow ones, whoever plays them.
    """

    def __init__(self, name: str, temperature: float = 1.0) -> None:
        self._name = name
        self._wanted = GenerationHyperparameters(max_new_tokens=_MOST_TOKENS, temperature=temperature)

    async def arun_episode(self, engine: InferenceEngine, data: str) -> Trajectory:
        """Return a trajectory with the reward of *data* backwards."""
        prompt = policy.encode(f"{data}=")
        context = workflow_context.get()
        rid = f"{self._name}-{context.task_id}-{context.sample_idx or 0}"
        reply = await engine.agenerate(ModelRequest(prompt, self._wanted, rid=rid))
        return trajectory(reply, reward(data, reply.output_tokens))


def reward(digits: str, answer: Sequence[int]) -> float:
    """Return the share of places, the end's included, at which *answer* has the right token.

    It is a share of the longer of the two: an answer that is too long is not all right.
    """
    right = [*policy.encode(digits[::-1]), policy.END]
    matches = sum(one == other for one, other in zip(answer, right, strict=False))
    return matches / max(len(answer), len(right))


def trajectory(reply: ModelResponse, reward: float) -> Trajectory:
    """Return what there is to train on: arrays of one row, with prompt and answer one after the other.

    The padding before a prompt is part of what the policy reads, so it is attended to.
    """
    prompt = policy.place(reply.input_tokens)
    count = len(prompt) + reply.output_len
    no_prompt = [0] * len(prompt)
    return {
        "input_ids": np.array([prompt + reply.output_tokens]),
        "attention_mask": np.ones((1, count), np.int64),
        "loss_mask": np.array([no_prompt + [1] * reply.output_len]),
        "versions": np.array([[-1] * len(prompt) + reply.output_versions]),
        "logprobs": np.array([no_prompt + reply.output_logprobs], np.float32),
        "rewards": np.array([reward], np.float32),
        "segments": np.array([reply.segments]),
    }


class Answer(NamedTuple):
    """One answer, and how right it is."""

    prompt: str
    tokens: list[int]
    versions: list[int]
    """Of the policy that made each token."""
    reward: float

    @property
    def exact(self) -> bool:
        """Whether all of it is right."""
        return self.reward == 1


def answers(trajectory: Trajectory) -> list[Answer]:
    """Return the answers in *trajectory*, one for each row."""
    return [_answer(trajectory, row) for row in range(len(trajectory["rewards"]))]


def _answer(trajectory: Trajectory, row: int) -> Answer:
    tokens, versions = trajectory["input_ids"][row], trajectory["versions"][row]
    made = versions >= 0
    prompt = tokens[: int(made.argmax())].tolist()
    return Answer(
        policy.decode(prompt).lstrip("_"),
        tokens[made].tolist(),
        versions[made].tolist(),
        float(trajectory["rewards"][row]),
    )
