"""What a body of ``POST /v1/chat/completions`` asks for, and what of it is refused.

Refused is what would be ignored in silence: what changes how tokens are sampled, or what a reply contains,
in a way that is not done here. Fields that nobody knows are left alone, as OpenAI's clients send many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from areal_core.types import GenerationHyperparameters

MOST_BODY_BYTES = 64 * 2**20


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

    def gconfig(self, default: GenerationHyperparameters) -> GenerationHyperparameters:
        """Return *default* with what this asks for. Raises RefusedError for what makes no sense."""
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
            "ignore_eos": self.ignore_eos,
            "stop_token_ids": self.stop_token_ids,
        }
        changes = {name: value for name, value in asked.items() if value is not None}
        try:
            return default.new(**changes) if changes else default
        except (TypeError, ValueError) as error:
            raise RefusedError(400, str(error)) from None


_DECODER = msgspec.json.Decoder(Order)


def read_order(body: bytes) -> Order:
    """Return what *body* asks for. Raises RefusedError."""
    try:
        order = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"the body is no chat completion that can be made here: {error}") from None
    _refuse(order.presence_penalty, "presence_penalty", "no server is asked for it here")
    _refuse(order.logit_bias, "logit_bias", "no server is asked for it here")
    _refuse(order.functions, "functions", "give tools instead")
    if (order.response_format or {}).get("type", "text") != "text":
        _refuse(order.response_format, "response_format", "replies are not held to a form")
    if order.modalities not in (None, ["text"]):
        _refuse(order.modalities, "modalities", "there is but text")
    if order.tool_choice not in (None, "none", "auto"):
        _refuse(order.tool_choice, "tool_choice", "the model is not held to a tool; leave it out")
    return order


def _refuse(value: object, name: str, why: str) -> None:
    if value:
        shown = type(value).__name__ if isinstance(value, Mapping | list) else repr(value)
        raise RefusedError(400, f"{name} ({shown}) cannot be honoured: {why}")
