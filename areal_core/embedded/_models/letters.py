"""Tokens made up without a policy: each is a pure function of all the tokens before it, prompt included.

A generation that is cut off and resumed from the tokens it had therefore continues as if nothing had
happened, and any server, whatever its seed, gives the same answer to the same prompt.

A token is a byte of text: the end token is ASCII's "end of transmission", all others are letters and
spaces. Text prompts are their UTF-8 bytes; prompts made of any other token ids are as good.

In the mode "test" the version of the weights turns the alphabet: versions less than 27 apart never make
the same letter after the same tokens, so that a token tells the version that made it. Whether a
generation ends does not depend on the version. The mode "text" always has the tokens of version 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from areal_core.embedded._models.tokens import Prefix, draw_of
from areal_core.embedded._models.weights import Weights, read_version

END_TOKEN = 4
CONTEXT_TOKENS = 131_072
"""Prompt and new tokens together."""
_LETTERS = b" abcdefghijklmnopqrstuvwxyz"
# Every token ends its generation with probability 1/128, so lengths have the mean that is also
# SGLang's default for max_new_tokens: about a third of them reaches that limit.
_END_ONE_IN = 128
# Odd, and about 2**32 divided by the golden ratio: versions get log-probabilities far apart.
_VERSION_STEP = 0x9E3779B1


def token_of(version: int, prefix: Sequence[int], may_end: bool = True) -> int:
    """Return the token that follows *prefix*, prompt and new tokens, under the weights *version*.

    It is what a server in the mode "test" generates; under version 0, also what one in the mode "text"
    does. *may_end* is False where the request has ``ignore_eos``, or ``min_new_tokens`` are not reached.
    """
    return _token(draw_of(prefix), version, may_end)


def logprob_of(version: int, prefix: Sequence[int]) -> float:
    """Return the log-probability that a server in the mode "test" gives the token after *prefix*."""
    return _logprob(draw_of(prefix), version)


class Letters:
    """Make up letters, after the version of the weights or (*versioned* is False) whatever it is."""

    end_token = END_TOKEN
    ahead = 256
    """Few enough to lose nothing when they are thrown away, and 0.5 ms of the server's time."""

    def __init__(self, versioned: bool) -> None:
        self._versioned = versioned

    def encode(self, text: str) -> list[int]:
        """Return the bytes of *text*."""
        return list(text.encode("utf-8", "replace"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens that were made here."""
        return bytes(tokens).decode("ascii")

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens can follow *prompt*, which may be any."""
        return max(0, CONTEXT_TOKENS - len(prompt))

    def load(self, path: str) -> tuple[int, None]:
        """Return the version in the file *path*. Raises WeightsError."""
        return read_version(path), None

    def start(self) -> tuple[int, None]:
        """Return version 0."""
        return 0, None

    def step(self, batch: Sequence[Prefix], weights: Weights) -> list[tuple[int, float]]:
        """Return the next token, and its log-probability, of each in *batch*."""
        version = weights.version if self._versioned else 0
        made = []
        for prefix in batch:
            draw = prefix.draw()
            made.append((_token(draw, version, prefix.may_end), _logprob(draw, version)))
        return made


def _token(draw: int, version: int, may_end: bool) -> int:
    if may_end and draw % _END_ONE_IN == 0:
        return END_TOKEN
    return _LETTERS[((draw >> 16) + version) % len(_LETTERS)]


def _logprob(draw: int, version: int) -> float:
    return math.log((((draw >> 32) + version * _VERSION_STEP) % 2**32 + 1) / 2**32)
