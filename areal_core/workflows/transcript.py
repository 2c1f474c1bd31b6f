"""A conversation as a trainer wants it: `Transcript`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from areal_core._checks import check_tokens
from areal_core.types import ModelResponse

__all__ = ["Transcript"]


class Transcript:
    """The tokens of one conversation, in their order, and of each who made it.

    Add what the model is told, and its replies; `tokens` is then the next prompt.
    """

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        """All tokens so far."""
        self._trained: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self.tell(prompt)

    def tell(self, tokens: Iterable[int]) -> None:
        """Add *tokens* that the model is told, and is not trained on.

        Raises TypeError and ValueError for what is no token id.
        """
        told = check_tokens("tokens", tokens)
        self._add(told, 0, [0.0] * len(told), [-1] * len(told))

    def hear(self, reply: ModelResponse) -> None:
        """Add the tokens of a *reply* to `tokens`, to be trained. Raises ValueError for a reply to others."""
        if reply.input_tokens != self.tokens:
            raise ValueError(
                f"the reply is to {reply.input_len} tokens that are not the {len(self.tokens)} of this "
                "conversation; ask with `tokens`"
            )
        self._add(reply.output_tokens, 1, reply.output_logprobs, reply.output_versions)

    def trajectory(self, reward: float) -> dict[str, Any]:
        """Return all that as a trajectory of one sample.

        Its arrays are ``[1, seqlen]``: input_ids (int64), attention_mask (int32), loss_mask (int32: 1 for the
        replies' tokens, 0 for others), logprobs (float32: 0 for others), and versions (int32: -1 for others);
        and ``[1]``: rewards (float32).
        """
        return {
            "input_ids": np.array([self.tokens], np.int64),
            "attention_mask": np.ones((1, len(self.tokens)), np.int32),
            "loss_mask": np.array([self._trained], np.int32),
            "logprobs": np.array([self._logprobs], np.float32),
            "versions": np.array([self._versions], np.int32),
            "rewards": np.array([reward], np.float32),
        }

    def _add(self, tokens: list[int], trained: int, logprobs: list[float], versions: list[int]) -> None:
        self.tokens += tokens
        self._trained += [trained] * len(tokens)
        self._logprobs += logprobs
        self._versions += versions
