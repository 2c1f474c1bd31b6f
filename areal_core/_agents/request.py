"""What a body of ``POST /v1/chat/completions`` asks for, and what of it is refused.

Refused is what would change how tokens are sampled, or what a reply contains, in a way that is not done here.
Advice, such as ``reasoning_effort`` and ``parallel_tool_calls``, is not followed, and neither are fields that
nobody knows: OpenAI's clients send many.
"""

from __future__ import annotations

from reprlib import repr as short
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from areal_core._agents.chat_format import ChatFormat
from areal_core.types import GenerationHyperparameters

MOST_BODY_BYTES = 16 * 2**20
"""A prompt of a million tokens has about 4 MB."""


class RefusedError(Exception):
    """A call that is not answered with a completion: an HTTP status, and the reason in words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StreamOptions(Struct):
    """How a stream ends."""

    include_usage: bool = False


class Order(Struct, kw_only=True):
    """One call. Beside OpenAI's fields are those that SGLang and vLLM add."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    model: str = ""
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = False
    return_token_ids: bool | None = False
    chat_template_kwargs: dict[str, Any] | None = None
    top_k: int | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    # What is refused, but for these values.
    n: Literal[1] | None = None
    top_logprobs: Literal[0] | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    function_call: Any = None
    best_of: Literal[1] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of; None: of none."""
        return None if self.tool_choice == "none" or not self.tools else self.tools

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the reply."""
        if self.stop is None:
            return ()
        return tuple(one for one in ([self.stop] if isinstance(self.stop, str) else self.stop) if one)

    def gconfig(self, chat: ChatFormat) -> GenerationHyperparameters:
        """Return that of *chat* with what this asks for. Raises RefusedError for what makes no sense."""
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        asked: dict[str, Any] = {
            "max_new_tokens": most,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stops or None,
            "seed": self.seed,
            "frequency_penalty": self.frequency_penalty,
            "top_k": -1 if self.top_k == 0 else self.top_k,
            "min_new_tokens": self.min_tokens,
            "greedy": None if self.temperature is None else self.temperature == 0,
            "ignore_eos": self.ignore_eos,
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
        }
        try:
            return chat.gconfig_with(tuple([pair for pair in asked.items() if pair[1] is not None]))
        except (TypeError, ValueError) as error:
            raise RefusedError(400, str(error)) from None


_DECODER = msgspec.json.Decoder(Order)


# What an agent may not set of what `apply_chat_template` takes: its own template, a program, above all.
_NOT_FOR_AGENTS = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
_GUIDES = "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"


def read_order(body: bytes) -> Order:
    """Return what *body* asks for. Raises RefusedError for what is no call, or cannot be done."""
    try:
        order = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"the body is no chat completion that can be made here: {error}") from None
    _refuse_other_sampling(order)
    _refuse_other_prompts(order)
    if order.modalities not in (None, ["text"]):
        raise _refused("modalities", order.modalities, "there is but text")
    return order


def refuse_to_hold(order: Order) -> None:
    """Raise RefusedError where *order* wants the reply held to a tool, or to a form."""
    if order.tool_choice not in (None, "none", "auto"):
        raise _refused("tool_choice", order.tool_choice, f"the model is not held to a tool{_AS_ADVICE}")
    if (order.response_format or {}).get("type", "text") != "text":
        raise _refused(
            "response_format", order.response_format, f"replies are not held to a form{_AS_ADVICE}"
        )


_AS_ADVICE = "; ChatFormat(..., advisory=True) lets the model do as it likes"


def _refuse_other_sampling(order: Order) -> None:
    for name in ("presence_penalty", "logit_bias", "min_p", *_GUIDES):
        if value := getattr(order, name):
            raise _refused(name, value, "no server is asked for it here")
    if order.repetition_penalty not in (None, 1):
        raise _refused("repetition_penalty", order.repetition_penalty, "no server is asked for it here")


def _refuse_other_prompts(order: Order) -> None:
    if order.functions or order.function_call not in (None, "none", "auto"):
        raise _refused("functions", order.functions, "give tools instead")
    if order.continue_final_message or order.add_generation_prompt is False:
        raise _refused("continue_final_message", True, "a reply is a message of its own")
    odd = _NOT_FOR_AGENTS.intersection(order.chat_template_kwargs or ())
    if odd:
        raise _refused("chat_template_kwargs", sorted(odd), "these are not for agents to set")


def _refused(name: str, value: object, why: str) -> RefusedError:
    return RefusedError(400, f"{name}={short(value)} cannot be honoured: {why}")
