"""Whole generations without a server, and the tokens they must have."""

from __future__ import annotations

from collections.abc import Sequence

from areal_core.embedded import logprob_of, token_of
from areal_core.embedded._generating.drafts import make
from areal_core.embedded._generating.generation import Ask, Generation
from areal_core.embedded._models.letters import END_TOKEN, Letters
from areal_core.embedded._models.tokens import Prefix, Sampling
from areal_core.embedded._models.weights import Weights


def complete(prompt: Sequence[int], sampling: Sampling | None = None, version: int = 0) -> Generation:
    """Return what a server in the mode "test" makes of *prompt* under the weights *version*."""
    sampling = sampling or Sampling()
    ask = Ask("r", prompt, sampling)
    generation = Generation(ask, Prefix("r", prompt, sampling), sampling.max_new_tokens, 0.0, 0.0)
    generation.begin(0.0)
    while generation.drafted is None:
        make(Letters(versioned=True), [generation], Weights(version), 0.0)
    generation.show(0.0)
    return generation


def predict(prompt: Sequence[int], count: int = 128, version: int = 0) -> tuple[list[int], list[float]]:
    """Return the tokens that follow *prompt* by the public functions, to the end or at most *count*."""
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < count and END_TOKEN not in tokens:
        logprobs.append(logprob_of(version, [*prompt, *tokens]))
        tokens.append(token_of(version, [*prompt, *tokens]))
    return tokens, logprobs
