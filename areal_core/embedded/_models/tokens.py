"""What a generation consists of: its sampling parameters, its tokens so far, and why it ended."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How to generate, named as SGLang names it; each dialect translates its own names."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    """0 takes the likeliest token. Like the two below, it matters to the policy alone: elsewhere a token
    is a function of those before it."""
    top_p: float = 1.0
    seed: int | None = None
    """None draws from the server's seed and the request's id."""


@dataclass(frozen=True)
class Finish:
    """Why a generation has no more tokens."""

    kind: str
    """``"stop"``, ``"length"`` or ``"abort"``."""
    matched: int | str | None = None
    """The token or the string that stopped it."""
    message: str | None = None
    """Who aborted it, or where."""


class Prefix:
    """The tokens of one generation, prompt and all, and a running hash of them.

    A model draws from the hash, so that what it makes is a function of the tokens before.
    """

    __slots__ = ("_hash", "key", "logprobs", "prompt", "sampling", "tokens")

    def __init__(self, key: str, prompt: Sequence[int], sampling: Sampling) -> None:
        self.key = key
        """What makes the draws of one request differ from another's, where the tokens alone do not."""
        self.prompt = prompt
        self.sampling = sampling
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._hash = _hash_of(prompt)

    @property
    def may_end(self) -> bool:
        """Whether the next token may be the one that ends."""
        return not self.sampling.ignore_eos and len(self.tokens) + 1 >= self.sampling.min_new_tokens

    def draw(self) -> int:
        """Return 64 bits: a function of all the tokens there are."""
        return int.from_bytes(self._hash.copy().digest(), "little")

    def add(self, token: int, logprob: float) -> None:
        """Append *token*."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self._hash.update(token.to_bytes(8, "little"))

    def cut(self, count: int) -> None:
        """Forget all new tokens but the first *count*."""
        if count < len(self.tokens):
            del self.tokens[count:], self.logprobs[count:]
            self._hash = _hash_of([*self.prompt, *self.tokens])


def draw_of(prefix: Sequence[int]) -> int:
    """Return what `Prefix.draw` does when these are its tokens."""
    return int.from_bytes(_hash_of(prefix).digest(), "little")


def _hash_of(tokens: Sequence[int]) -> hashlib.blake2b:
    return hashlib.blake2b(struct.pack(f"<{len(tokens)}Q", *tokens), digest_size=8)
