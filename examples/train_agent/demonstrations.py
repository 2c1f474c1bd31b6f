"""What the policy knows before it is trained by its rewards: how agents talk, from a careless one.

Models learn the form of tool calls from demonstrations, and from rewards when to make them and what to say.
Here too, or else it would take thousands of episodes more. The demonstrations are hardly worth imitating: of
their digits three in five are right, and two in five have the answer checked, without heeding the verdict.
"""

from __future__ import annotations

import numpy as np

from adam import Adam, cosine
from areal_core.embedded import ChatTokenizer, policy
from areal_core.embedded.policy import Floats
from policy_gradient import Samples, logprobs_of, loss_and_gradient
from questions import DIGITS

_TOKENIZER = ChatTokenizer("policy")
_CARE = 0.6
_CHECKED = 0.4
_ROWS = 64
_HIGHEST_RATE, _LOWEST_RATE = 0.01, 0.001


def imitate(parameters: dict[str, Floats], seed: int, steps: int) -> None:
    """Change *parameters* in place, towards saying what demonstrations say: *steps* steps, each of others."""
    draw, optimizer = np.random.default_rng(seed), Adam(parameters)
    for step in range(steps):
        demonstrations = _samples([_demonstration(draw) for _ in range(_ROWS)])
        # To imitate is to find all that is said equally good, and to have said it with today's policy.
        logprobs = logprobs_of(parameters, demonstrations.tokens)
        _, gradient = loss_and_gradient(
            parameters, demonstrations._replace(behaviour=logprobs, proximal=logprobs)
        )
        optimizer.step(gradient, cosine(step, steps, _HIGHEST_RATE, _LOWEST_RATE))


def _demonstration(draw: np.random.Generator) -> list[tuple[int, bool]]:
    """Return the tokens of one, placed, and of each whether the agent says it."""
    digits = draw.integers(0, 10, DIGITS).tolist()
    right = digits[::-1]
    turns = [(f"{_text(digits)}=", False)]
    if draw.random() < _CHECKED:
        answer = _careless(right, draw)
        turns += [(f"_{_text(answer)}.", True), (f"{int(answer == right)}=", False)]
    turns += [(f"{_text(_careless(right, draw))}.", True)]
    row = [(token, said) for text, said in turns for token in _TOKENIZER.encode(text)]
    padding = len(policy.place([token for token, _ in row])) - len(row)
    return [(policy.PAD, False)] * padding + row


def _careless(right: list[int], draw: np.random.Generator) -> list[int]:
    return [digit if draw.random() < _CARE else int(draw.integers(0, 10)) for digit in right]


def _text(digits: list[int]) -> str:
    return "".join(map(str, digits))


def _samples(rows: list[list[tuple[int, bool]]]) -> Samples:
    width = max(map(len, rows))
    padded = np.array([row + [(policy.PAD, False)] * (width - len(row)) for row in rows])
    mask = padded[:, 1:, 1].astype(np.float32)
    unknown = np.zeros_like(mask)
    return Samples(padded[..., 0], mask, unknown, unknown, np.ones(len(rows), np.float32))
