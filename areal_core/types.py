"""What workflows and the inference engine say to each other."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any, Protocol

from areal_core._checks import (
    check_flag,
    check_integer,
    check_mapping,
    check_number,
    check_text,
    check_tokens,
)
from areal_core._field_docs import documented

__all__ = [
    "GenerationHyperparameters",
    "InferenceEngine",
    "ModelRequest",
    "ModelResponse",
    "RolloutWorkflow",
]


@documented
@dataclass(frozen=True, kw_only=True)
class GenerationHyperparameters:
    """Say how tokens are chosen and when to stop. Raises ValueError and TypeError for what makes no sense."""

    max_new_tokens: int = 16384
    """The most tokens of one reply, over all its segments."""

    min_new_tokens: int = 0
    """Before this many no stop is obeyed."""

    temperature: float = 1.0
    """0 is the same as ``greedy``."""

    top_p: float = 1.0
    """Choose among the likeliest tokens that have this probability together; 1: among all."""

    top_k: int = -1
    """Choose among this many of the likeliest; -1: among all."""

    greedy: bool = False
    """Always the likeliest token."""

    stop: Sequence[str] = ()
    """Texts that end a reply. One that lies across the border of two segments is not seen by servers."""

    stop_token_ids: Sequence[int] = ()
    """Tokens that end a reply."""

    ignore_eos: bool = False
    """Whether to go on behind the model's own end token."""

    skip_special_tokens: bool = True
    """Whether the server's text, if it makes one, leaves special tokens out."""

    seed: int | None = None
    """For servers that can sample the same tokens again; None: no seed."""

    lora_name: str | None = None
    """The adapter to generate with; None: the model itself."""

    frequency_penalty: float = 0.0
    """Servers count the tokens of a segment, not of the whole reply."""

    n_samples: int = 1
    """How many replies a prompt gets. It is for those who submit; `agenerate` makes one."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """Merged into the request's body as it is, over what the engine puts there."""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("min_new_tokens", 0), ("top_k", -1), ("n_samples", 1)):
            _set(self, name, check_integer(name, getattr(self, name), least=least))
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}; "
                "give less, or raise max_new_tokens"
            )
        _set(self, "temperature", check_number("temperature", self.temperature, least=0.0))
        _set(self, "top_p", check_number("top_p", self.top_p, least=0.0, most=1.0))
        if self.top_p == 0:
            raise ValueError("top_p=0 leaves no token to choose; greedy=True takes the likeliest")
        if self.top_k == 0:
            raise ValueError("top_k=0 leaves no token to choose; -1 is no limit")
        _set(self, "frequency_penalty", check_number("frequency_penalty", self.frequency_penalty))
        for name in ("greedy", "ignore_eos", "skip_special_tokens"):
            check_flag(name, getattr(self, name))
        if self.seed is not None:
            _set(self, "seed", check_integer("seed", self.seed))
        if self.lora_name is not None:
            check_text("lora_name", self.lora_name)
        _set(self, "stop", _texts("stop", self.stop))
        _set(self, "stop_token_ids", tuple(check_tokens("stop_token_ids", self.stop_token_ids)))
        _set(self, "extra", check_mapping("extra", self.extra))

    def new(self, **changes: Any) -> GenerationHyperparameters:
        """Return a copy with *changes*."""
        return dataclasses.replace(self, **changes)


@documented
@dataclass(frozen=True)
class ModelRequest:
    """Ask for one reply. Raises ValueError and TypeError for what is no prompt."""

    input_ids: Sequence[int] = field(repr=False)
    """The prompt, as token ids: integers from 0, NumPy's too. At least one."""

    gconfig: GenerationHyperparameters = field(default_factory=GenerationHyperparameters)

    rid: str | None = None
    """The conversation, which stays on one server, where its prefix is cached; None: it is of its own."""

    metadata: Mapping[str, Any] | None = None
    """The caller's own; never sent."""

    extra: Mapping[str, Any] | None = None
    """Merged into the request's body, over ``gconfig.extra``; None: nothing."""

    on_tokens: Callable[[Sequence[int]], object] | None = field(default=None, repr=False, compare=False)
    """Called on the loop with the tokens as they come, each of them once; None: nobody is. It must not block;
    what it raises ends the generation."""

    def __post_init__(self) -> None:
        _set(self, "input_ids", check_tokens("input_ids", self.input_ids))
        if not self.input_ids:
            raise ValueError("input_ids is empty; a prompt has at least one token")
        if not isinstance(self.gconfig, GenerationHyperparameters):
            raise TypeError(f"gconfig={short(self.gconfig)} is not a GenerationHyperparameters; give one")
        if self.rid is not None:
            check_text("rid", self.rid)
        if self.extra is not None:
            _set(self, "extra", check_mapping("extra", self.extra))
        if self.on_tokens is not None and not callable(self.on_tokens):
            raise TypeError(f"on_tokens={short(self.on_tokens)} cannot be called; give a function, or None")


@documented
@dataclass(frozen=True, kw_only=True)
class ModelResponse:
    """One reply. Its lists of output have one entry per token."""

    input_tokens: list[int]
    output_tokens: list[int]

    output_logprobs: list[float]
    """The log-probability with which each token was sampled, natural logarithm."""

    output_versions: list[int]
    """The oldest policy version that can have made each token."""

    versions_exact: bool
    """Whether those are the versions that made them, not only bounds from below."""

    stop_reason: str
    """``"stop"``, ``"length"``, or whatever else the server said."""

    latency: float
    """Seconds from the call to the reply, pauses and retries included."""

    ttft: float | None
    """Seconds to the first token; None when the reply was not streamed."""

    segments: int = 1
    """In how many uninterrupted pieces it was generated."""

    @property
    def input_len(self) -> int:
        """Count the prompt's tokens."""
        return len(self.input_tokens)

    @property
    def output_len(self) -> int:
        """Count the reply's tokens."""
        return len(self.output_tokens)


class InferenceEngine(Protocol):
    """What a workflow gets tokens from; `RemoteInfEngine` is one."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """Return a reply to *request*."""

    def get_version(self) -> int:
        """Return the policy version."""


class RolloutWorkflow(ABC):
    """Plays one episode: the interface to implement."""

    @abstractmethod
    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any] | None:
        """Play one episode on *data* and return its trajectory; None rejects it."""


def _texts(name: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, str | Iterable):
        raise TypeError(f"{name}={short(texts)} is neither a text nor several; give () for none")
    return tuple(check_text(name, text) for text in ((texts,) if isinstance(texts, str) else texts))


def _set(frozen: object, name: str, value: object) -> None:
    """Put in what a check made of a field."""
    object.__setattr__(frozen, name, value)
