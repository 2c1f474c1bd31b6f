"""Where the tokens come from: each is a pure function of all the tokens before it, prompt included.

A generation that is cut off and resumed from the tokens it had therefore continues as if nothing had
happened, and any server, whatever its seed, gives the same answer to the same prompt.

A token is a byte of text: the end token is ASCII's "end of transmission", all others are letters and
spaces. Text prompts are their UTF-8 bytes; prompts made of any other token ids are as good.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

END_TOKEN = 4
_LETTERS = b" abcdefghijklmnopqrstuvwxyz"
# Every token ends its generation with probability 1/128, so lengths have the mean that is also
# SGLang's default for max_new_tokens: about a third of them reaches that limit.
_END_ONE_IN = 128


@dataclass(frozen=True)
class Sampling:
    """What ends a generation, named as SGLang names it."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The tokens after a prompt, and why there are no more."""

    tokens: list[int]
    logprobs: list[float]
    finish: str
    """``"stop"``, or ``"length"`` when max_new_tokens were made."""
    matched: int | str | None
    """The token or the string that stopped it; None at ``"length"``."""


def encode(text: str) -> list[int]:
    """Return the tokens of *text*."""
    return list(text.encode("utf-8", "replace"))


def decode(tokens: Sequence[int]) -> str:
    """Return the text of *tokens* that `complete` made."""
    return bytes(tokens).decode("ascii")


def complete(prompt: Sequence[int], sampling: Sampling) -> Completion:
    """Return what follows *prompt*: equal arguments give an equal completion, in every process."""
    tokens: list[int] = []
    logprobs: list[float] = []
    longest = max((len(stop.encode()) for stop in sampling.stop), default=0)
    draws = _draws(prompt, tokens, sampling)
    while len(tokens) < sampling.max_new_tokens:
        token, logprob = next(draws)
        tokens.append(token)
        logprobs.append(logprob)
        if len(tokens) < sampling.min_new_tokens:
            continue
        if token in sampling.stop_token_ids or (token == END_TOKEN and not sampling.ignore_eos):
            return Completion(tokens, logprobs, "stop", token)
        if longest:
            tail = decode(tokens[-longest:])
            for stop in sampling.stop:
                if tail.endswith(stop):
                    return Completion(tokens, logprobs, "stop", stop)
    return Completion(tokens, logprobs, "length", None)


def _draws(prompt: Sequence[int], tokens: list[int], sampling: Sampling) -> Iterator[tuple[int, float]]:
    """Yield token after token with its log-probability; each is to be in *tokens* before the next."""
    prefix = hashlib.blake2b(struct.pack(f"<{len(prompt)}Q", *prompt), digest_size=8)
    while True:
        draw = int.from_bytes(prefix.copy().digest(), "little")
        may_end = not sampling.ignore_eos and len(tokens) + 1 >= sampling.min_new_tokens
        letter = _LETTERS[(draw >> 16) % len(_LETTERS)]
        token = END_TOKEN if may_end and draw % _END_ONE_IN == 0 else letter
        yield token, math.log(((draw >> 32) + 1) / 2**32)
        prefix.update(token.to_bytes(8, "little"))
