"""Replies of an SGLang server, made once: what the generation rows read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

TOKENS = 32_000
VOCABULARY = 151_936
EVENTS = 1_000
GROWING_EVENTS = 40
"""Few, as each repeats all tokens: a thousand of them would be 700 MB."""


def tokens(count: int = TOKENS) -> list[int]:
    """Return token ids, the same each time."""
    draw = random.Random(20250)
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def logprobs(count: int = TOKENS) -> list[float]:
    """Return log-probabilities with as many digits as a float32 has when it is written as a float64."""
    draw = random.Random(20251)
    return [-draw.expovariate(2.0) for _ in range(count)]


def whole() -> bytes:
    """Return the reply as one document of about 1.4 MB."""
    return json.dumps(_reply(tokens(), logprobs(), TOKENS, is_last=True)).encode()


def events(count: int = EVENTS, *, growing: bool = False) -> list[bytes]:
    """Return the reply as *count* server-sent events, of which each has what is new, or all there is."""
    return [*_events(count, growing), b"data: [DONE]\n\n"]


def _events(count: int, growing: bool) -> Iterator[bytes]:
    ids, chances = tokens(), logprobs()
    step = TOKENS // count
    for end in range(step, TOKENS + 1, step):
        since = 0 if growing else end - step
        reply = _reply(ids[since:end], chances[since:end], end, is_last=end == TOKENS)
        yield b"data: " + json.dumps(reply).encode() + b"\n\n"


def _reply(ids: list[int], chances: list[float], so_far: int, *, is_last: bool) -> dict[str, Any]:
    return {
        "text": "",
        "output_ids": ids,
        "meta_info": {
            "id": "generation",
            "finish_reason": {"type": "length", "length": so_far} if is_last else None,
            "prompt_tokens": 1_000,
            "cached_tokens": 0,
            "completion_tokens": so_far,
            "weight_version": "default",
            "e2e_latency": 1.0,
            "input_token_logprobs": [],
            "output_token_logprobs": [
                [chance, token, None] for chance, token in zip(chances, ids, strict=True)
            ],
        },
    }
