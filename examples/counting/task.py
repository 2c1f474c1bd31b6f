"""The task: ``345=`` is to be answered by ``678`` and the end. `CountOn` is the workflow."""

from __future__ import annotations

import random
from typing import Any, TypeAlias

import torch

from areal_core import GenerationHyperparameters, InferenceEngineConfig
from areal_core.embedded import policy
from areal_core.types import InferenceEngine
from areal_core.workflows import SingleTurnWorkflow

PROMPTS, GROUP = 16, 8  # prompts for a step; answers to each
GCONFIG = GenerationHyperparameters(max_new_tokens=6)  # a right answer has 4
CONFIG = InferenceEngineConfig(consumer_batch_size=PROMPTS, max_head_offpolicyness=2)

Trajectory: TypeAlias = dict[str, Any]


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Return prompts of one to five digits that go up, with what comes next; 0 follows 9."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        first, length = draw.randrange(10), draw.randint(1, 5)
        digits = [(first + place) % 10 for place in range(length + 3)]
        prompt = policy.place([*digits[:length], policy.SEPARATOR])  # padded: that is what the policy reads
        made.append({"input_ids": prompt, "answer": [*digits[length:], policy.END]})
    return made


def rightness(prompt: list[int], reply: list[int], item: dict[str, Any]) -> float:
    """Return the share of places at which *reply* has the right token; one too long is not all right."""
    matches = sum(one == other for one, other in zip(reply, item["answer"], strict=False))
    return float(matches / max(len(reply), len(item["answer"])))


class CountOn(SingleTurnWorkflow):
    """Ask once; the trajectory is of torch's tensors."""

    def __init__(self, gconfig: GenerationHyperparameters = GCONFIG) -> None:
        super().__init__(rightness, gconfig, reward_in="loop")

    async def arun_episode(self, engine: InferenceEngine, data: dict[str, Any]) -> Trajectory:
        """Return the trajectory of one question and its answer."""
        arrays = await super().arun_episode(engine, data)
        return {key: torch.from_numpy(array) for key, array in arrays.items()}
