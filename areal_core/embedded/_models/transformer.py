"""The mode "policy": tokens sampled from the transformer, many generations in one forward pass.

At temperature 0 a token is the likeliest. Else it is drawn by a hash of the tokens before it and of the
seed, the request's own or the server's with the request's id: a generation that is cut off and resumed
goes on as it would have. Log-probabilities are those of the policy itself, whatever the temperature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from areal_core.embedded import policy
from areal_core.embedded._models.model import PromptError
from areal_core.embedded._models.tokens import Prefix
from areal_core.embedded._models.weights import Weights


class PolicyModel:
    """Sample from a transformer; the content of its weights are the parameters."""

    end_token = policy.END
    ahead = 0
    """Each token is made when it is due, together with all the others that are."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text*. Raises PromptError for a text that is not of digits, "=" and "_"."""
        try:
            return policy.encode(text)
        except ValueError:
            raise PromptError(f'the policy reads digits, "=" and "_"; {text[:60]!r} has others') from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of *tokens*; the end has none."""
        return policy.decode(tokens)

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens can follow *prompt*. Raises PromptError for one it cannot read."""
        if not prompt:
            raise PromptError("the policy goes on from one token at least; the prompt has none")
        if max(prompt) > policy.END:
            raise PromptError(f"the policy has tokens 0..{policy.END}; the prompt has {max(prompt)}")
        placed = len(policy.place(list(prompt)))
        if placed > policy.PLACES:
            raise PromptError(f"the policy has room for {policy.PLACES} tokens; the prompt has {placed}")
        return policy.PLACES - placed

    def load(self, path: str) -> tuple[int, policy.Parameters]:
        """Return version and parameters from the file *path*. Raises WeightsError."""
        return policy.load(path)

    def start(self) -> tuple[int, policy.Parameters]:
        """Return version 0, the same parameters in every server."""
        return 0, policy.initial()

    def step(self, batch: Sequence[Prefix], weights: Weights) -> list[tuple[int, float]]:
        """Return the next token, and its log-probability, of each in *batch*."""
        logits = policy.next_logits(weights.content, [[*one.prompt, *one.tokens] for one in batch])
        for row, one in zip(logits, batch, strict=True):
            if not one.may_end:
                row[policy.END] = -np.inf
        logprobs = np.log(np.maximum(policy.softmax(logits), np.finfo(np.float32).tiny))
        tokens = [_choose(row, one) for row, one in zip(logits, batch, strict=True)]
        return [(token, float(row[token])) for token, row in zip(tokens, logprobs, strict=True)]


def _choose(logits: policy.Floats, prefix: Prefix) -> int:
    sampling = prefix.sampling
    if sampling.temperature == 0:
        return int(logits.argmax())
    # In 64 bits: a very low temperature must not overflow.
    scores = logits.astype(np.float64) - logits.max()
    chances = np.exp(scores / sampling.temperature)
    likeliest = np.argsort(-chances, kind="stable")
    heaps = np.cumsum(chances[likeliest])
    heaps /= heaps[-1]
    # As few tokens as have top_p together, and at least one.
    kept = int(np.searchsorted(heaps, sampling.top_p)) + 1
    drawn = _uniform(prefix) * heaps[min(kept, len(heaps)) - 1]
    return int(likeliest[np.searchsorted(heaps, drawn, side="right")])


def _uniform(prefix: Prefix) -> float:
    """Return a number from 0 to before 1."""
    seed = prefix.key if prefix.sampling.seed is None else prefix.sampling.seed
    key = f"{seed}/{prefix.draw()}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) / 2**53
