"""The port between the generations and what makes their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from areal_core.embedded._models.tokens import Prefix
from areal_core.embedded._models.weights import Weights


class PromptError(Exception):
    """The client's mistake: a prompt that the model cannot read."""


class Model(Protocol):
    """What makes tokens; `letters` and `transformer` have one each."""

    end_token: int
    ahead: int
    """How many tokens it is asked for before they are due: 0 has each made when it is due."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text*. Raises PromptError for a text it cannot read."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens that it made."""

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens can follow *prompt*. Raises PromptError for one it cannot read."""

    def load(self, path: str) -> tuple[int, Any]:
        """Return the version and the content of the weights in a file. Raises WeightsError."""

    def start(self) -> tuple[int, Any]:
        """Return version and content of the weights that a server has which was given none."""

    def step(self, batch: Sequence[Prefix], weights: Weights) -> list[tuple[int, float]]:
        """Return the next token, and its log-probability, of each in *batch*."""
