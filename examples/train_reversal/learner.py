"""One step of training: from a batch of trajectories to better parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adam import Adam, cosine
from areal_core.embedded import policy
from areal_core.trajectory import concat_padded_tensors
from policy_gradient import Samples, group_advantages, logprobs_of, loss_and_gradient
from reversal import Trajectory

MINIBATCHES = 4
_HIGHEST_RATE, _LOWEST_RATE = 0.005, 0.0005


class Learner:
    """Has the parameters, and improves them in *steps* steps."""

    def __init__(self, seed: int, steps: int) -> None:
        self.parameters = policy.initial(seed)
        self._optimizer = Adam(self.parameters)
        self._shuffle = np.random.default_rng(seed)
        self._steps = steps
        self._step = 0

    def learn(self, batch: Sequence[Trajectory]) -> None:
        """Go over *batch* once, in minibatches."""
        rate = cosine(self._step, self._steps, _HIGHEST_RATE, _LOWEST_RATE)
        self._step += 1
        samples = samples_of(batch)
        samples = samples._replace(proximal=logprobs_of(self.parameters, samples.tokens))
        for rows in np.array_split(self._shuffle.permutation(len(samples.tokens)), MINIBATCHES):
            part = samples.rows(rows)
            if part.mask.any():
                _, gradient = loss_and_gradient(self.parameters, part)
                self._optimizer.step(gradient, rate)


def samples_of(batch: Sequence[Trajectory]) -> Samples:
    """Return the members of all groups, one below the other; the proximal policy is the one they are from."""
    rows = concat_padded_tensors(batch)
    sampled = rows["logprobs"][:, 1:]
    return Samples(
        tokens=rows["input_ids"],
        mask=rows["loss_mask"][:, 1:].astype(np.float32),
        behaviour=sampled,
        proximal=sampled,
        advantages=np.concatenate([group_advantages(group["rewards"]) for group in batch]),
    )
