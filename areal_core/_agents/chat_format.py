"""How a model's chats are written: its tokenizer with its chat template, and how it calls tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any, Protocol

from areal_core._agents.tool_calls import ToolCallParser, parser_named
from areal_core._checks import check_flag, check_integer
from areal_core.types import GenerationHyperparameters
from areal_core.workflows._gconfig import check_gconfig

__all__ = ["ChatFormat", "ChatTemplateError", "Tokenizer", "normal_message"]

_DEFAULTS = GenerationHyperparameters()
_MOST_GCONFIGS = 64
_METHODS = ("apply_chat_template", "encode", "decode")


class ChatTemplateError(ValueError):
    """These messages cannot be made into a prompt; what the template or the tokenizer raised is the cause."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer. Hugging Face's have it."""

    @property
    def eos_token(self) -> Any:
        """The text with which the chat template ends a reply."""

    @property
    def eos_token_id(self) -> Any:
        """Its token."""

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **kwargs: Any,
    ) -> Any:
        """Return the text of *conversation*, with *tokenize* False."""

    def encode(self, text: Any, *, add_special_tokens: bool) -> Any:
        """Return the tokens of *text*, and no others with *add_special_tokens* False."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any:
        """Return the text of *token_ids*."""


class ChatFormat:
    """Makes messages into tokens, and tokens into text, as one model was taught to.

    The tokenizer's ``eos_token`` must be what its chat template ends a reply with (for Gemma's chats that is
    ``<end_of_turn>``): by it the end of a reply is found in what the template wrote. Where it is another,
    each prompt is tokenized as a whole, and each call gets a row of its own.

    *tool_calls* says how the model writes its calls: ``"hermes"`` (Qwen's too), ``"none"``, or a parser of
    your own. *gconfig* has what a request leaves open. A request that wants the reply held to a tool or to a
    form (``tool_choice="required"``, ``response_format``) is refused, since nobody here holds the model to
    it; with *advisory* it is taken as advice, which its rewards may teach the model to follow.

    Raises TypeError for what is no tokenizer, parser or gconfig; ValueError for a name that no parser has,
    and for more samples than one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tool_calls: str | ToolCallParser = "hermes",
        gconfig: GenerationHyperparameters = _DEFAULTS,
        *,
        advisory: bool = False,
    ) -> None:
        self.eos_text, self.eos_id = _checked(tokenizer)
        self.parser = parser_named(tool_calls)
        self.gconfig = check_gconfig(gconfig)
        self.advisory = check_flag("advisory", advisory)
        self._gconfigs: dict[tuple[tuple[str, Any], ...], GenerationHyperparameters] = {(): self.gconfig}
        self._tokenizer = tokenizer
        # What Hugging Face calls cleaning up takes spaces out of what the model wrote, and more of them
        # from a whole than from its pieces.
        tidies = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._as_it_is: dict[str, Any] = {"clean_up_tokenization_spaces": False} if tidies else {}

    def gconfig_with(self, changes: tuple[tuple[str, Any], ...]) -> GenerationHyperparameters:
        """Return `gconfig` with *changes*, names and values that can be hashed; raises as it does.

        Agents want the same again and again, and to check it takes longer than all else that is asked.
        """
        found = self._gconfigs.get(changes)
        if found is None:
            found = self.gconfig.new(**dict(changes))
            if len(self._gconfigs) < _MOST_GCONFIGS:
                self._gconfigs[changes] = found
        return found

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        generation_prompt: bool,
    ) -> str:
        """Return what the template makes of *messages*, which are not changed.

        *tools*: as OpenAI has them, None for none. *kwargs*: for the template. *generation_prompt*: whether
        the beginning of a reply is put behind them. Raises ChatTemplateError.
        """
        conversation = [normal_message(message) for message in messages]
        return self.written(conversation, tools, kwargs, generation_prompt=generation_prompt)

    def written(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        generation_prompt: bool,
    ) -> str:
        """Return the same of messages that are normal already."""
        try:
            text = self._tokenizer.apply_chat_template(
                list(conversation),
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **(kwargs or {}),
            )
        except Exception as error:
            raise ChatTemplateError(
                f"the chat template cannot write these messages: {_words(error)}"
            ) from error
        if not isinstance(text, str):
            raise ChatTemplateError(f"the chat template gave a {type(text).__name__}, which is no text")
        return text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text*, in which special tokens are written out. Raises ChatTemplateError."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:
            raise ChatTemplateError(f"the tokenizer cannot encode these messages: {_words(error)}") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of *tokens*, without special ones."""
        return self._decode(tokens, skip=True)

    def shown(self, tokens: Sequence[int]) -> str:
        """Return the text of *tokens*, special ones included."""
        return self._decode(tokens, skip=False)

    def _decode(self, tokens: Sequence[int], *, skip: bool) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip, **self._as_it_is))


def normal_message(message: Any) -> dict[str, Any]:
    """Return *message* as chat templates know it.

    That is: nothing that is None but the content of a message with tool calls, where "" is None; content as
    one text; arguments that are JSON objects as dicts; "system" for "developer". Raises ChatTemplateError
    for content that is no text, and for what is no message.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ChatTemplateError(f"the message {short(message)} has no role; give one")
    normal = {name: value for name, value in message.items() if value is not None}
    content, calls = _content(normal.get("content", "")), normal.pop("tool_calls", None)
    if calls:
        normal["tool_calls"] = _calls(calls)
    normal["content"] = content or None if calls else content
    if normal["role"] == "developer":
        normal["role"] = "system"
    return normal


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatTemplateError(f"a message has {short(content)} as its content; give a text")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise ChatTemplateError(f"a message has content of the type {short(kind)}; only text can be written")
    return text


def _calls(calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ChatTemplateError(f"a message has tool_calls={short(calls)}; give a list of calls")
    return [_call(call) for call in calls]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    return {**call, "function": {**function, "arguments": _object_in(function.get("arguments"))}}


def _object_in(arguments: Any) -> Any:
    """Return the JSON object that *arguments* is the text of; what is none is returned as it is."""
    try:
        found = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _checked(tokenizer: Any) -> tuple[str, int]:
    """Return the text and the id of the eos token. Raises TypeError for what is no tokenizer of chats."""
    kind = type(tokenizer).__name__
    for method in _METHODS:
        if not callable(getattr(tokenizer, method, None)):
            raise TypeError(f"tokenizer, a {kind}, has no method {method}; give one like Hugging Face's")
    if getattr(tokenizer, "chat_template", kind) is None:
        raise TypeError(f"tokenizer, a {kind}, has no chat_template; set the one the model was taught with")
    eos = getattr(tokenizer, "eos_token", None)
    if not isinstance(eos, str) or not eos:
        raise TypeError(
            f"tokenizer, a {kind}, has eos_token={short(eos)}; set the one that its chat template ends "
            "a reply with"
        )
    return eos, check_integer("tokenizer.eos_token_id", getattr(tokenizer, "eos_token_id", None), least=0)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
