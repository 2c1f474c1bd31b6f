"""Messages to tokens, those that were sampled as they are: `Conversations`.

An agent sends its whole conversation with every call, as text. Tokenized again, the model's own replies may
become other tokens than it sampled: another prompt than what a trainer has probabilities for. So the tokens
of each reply are remembered, and where the agent's messages begin with a conversation that was, only what
comes behind it is tokenized::

    remembered            prompt tokens, sampled tokens <eos>
    the template writes   [messages, reply                    ...] whatever comes behind the reply's eos
    the next prompt       prompt tokens, sampled tokens <eos> ...  tokenized
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from areal_core._agents.chat_format import ChatFormat, ChatTemplateError, normal_message

__all__ = ["Conversations"]

_Message: TypeAlias = Mapping[str, Any]

_OF_A_REPLY = ("role", "content", "name", "reasoning", "reasoning_content", "thinking")
"""What a reply says, besides its tool calls. SDKs give it back with more fields, some of their own."""

_ENCODER = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True, slots=True)
class _Known:
    """A conversation up to a reply."""

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]


class Conversations:
    """The conversations of one recording. Not for several threads at once."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}

    def prompt(
        self,
        fmt: ChatFormat,
        messages: Sequence[_Message],
        tools: Sequence[_Message] | None,
        kwargs: Mapping[str, Any],
    ) -> list[int]:
        """Return the tokens to go on from *messages*, with *tools* and *kwargs* given to the template.

        They begin with those of the longest remembered conversation that *messages* begin with, if the
        template writes it the same with what comes behind it. Raises ChatTemplateError.
        """
        normal = [normal_message(message) for message in messages]
        text = fmt.written(normal, tools, kwargs, generation_prompt=True)
        count, known = self._longest(normal, tools, kwargs)
        behind = _behind_reply(fmt, normal[:count], tools, kwargs, text) if known else None
        if known is None or behind is None:
            return fmt.encode(text)
        ended = list(known.output_tokens[-1:]) == [fmt.eos_id]
        return [*known.prompt_tokens, *known.output_tokens, *_after(fmt, behind, ended=ended)]

    def remember(
        self,
        messages: Sequence[_Message],
        tools: Sequence[_Message] | None,
        kwargs: Mapping[str, Any],
        reply_message: _Message,
        prompt_tokens: Sequence[int],
        output_tokens: Sequence[int],
    ) -> None:
        """Remember that *output_tokens* were sampled after *prompt_tokens*, and told as *reply_message*.

        The lists are kept, and must not be changed. Of two that say the same, the later is remembered.
        """
        *_, key = _keys([normal_message(one) for one in (*messages, reply_message)], tools, kwargs)
        self._known[key] = _Known(prompt_tokens, output_tokens)

    def _longest(
        self, normal: Sequence[dict[str, Any]], tools: Sequence[_Message] | None, kwargs: Mapping[str, Any]
    ) -> tuple[int, _Known | None]:
        """Return what is known of the most messages, and how many these are."""
        best: tuple[int, _Known | None] = (0, None)
        for count, key in enumerate(_keys(normal, tools, kwargs), 1):
            if known := self._known.get(key):
                best = (count, known)
        return best


def _behind_reply(
    fmt: ChatFormat,
    told: Sequence[dict[str, Any]],
    tools: Sequence[_Message] | None,
    kwargs: Mapping[str, Any],
    text: str,
) -> str | None:
    """Return what stands in *text* behind the eos of the last of *told*, a reply.

    None: in *text* they are not written as they are alone, or the reply is not written as it was told, as by
    templates that leave out earlier thoughts; then a model must not see those either.
    """
    try:
        before = fmt.written(told[:-1], tools, kwargs, generation_prompt=True)
        turn = fmt.written(told, tools, kwargs, generation_prompt=False)
    except ChatTemplateError:  # a template may want the user to have the last word
        return None
    end = turn.rfind(fmt.eos_text, len(before))
    if end < 0 or not turn.startswith(before) or not text.startswith(turn):
        return None
    content = told[-1]["content"] or ""
    return text[end + len(fmt.eos_text) :] if _says(turn[len(before) : end], content) else None


def _says(turn: str, content: str) -> bool:
    """Return whether *content* is in *turn*, whatever the whitespace."""
    return "".join(content.split()) in "".join(turn.split())


def _after(fmt: ChatFormat, behind: str, *, ended: bool) -> list[int]:
    """Return the tokens of *behind*, and of the eos before it unless the reply *ended* with one."""
    tokens = fmt.encode(fmt.eos_text + behind)
    if not ended:
        return tokens
    # With the eos before it, as some tokenizers give it the whitespace behind.
    return tokens[1:] if tokens[:1] == [fmt.eos_id] else fmt.encode(behind)


def _keys(
    normal: Sequence[dict[str, Any]], tools: Sequence[_Message] | None, kwargs: Mapping[str, Any]
) -> Iterator[bytes]:
    """Yield for each message, all of them normal, a key of the conversation up to it."""
    running = hashlib.blake2b(_encoded([list(tools or ()), dict(kwargs)]), digest_size=16)
    for message in normal:
        running.update(_encoded(_said(message)))
        yield running.digest()


def _said(normal: dict[str, Any]) -> dict[str, Any]:
    """Return of a normal message what makes it another."""
    if normal["role"] != "assistant":
        return normal
    said = {name: normal[name] for name in _OF_A_REPLY if normal.get(name)}
    if calls := normal.get("tool_calls"):
        said["tool_calls"] = [_called(call) for call in calls]
    return said


def _called(call: dict[str, Any]) -> Any:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    return [call.get("id"), function.get("name"), function.get("arguments")]


def _encoded(value: Any) -> bytes:
    """Return *value* as JSON, of which several after another can be told apart."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatTemplateError(f"these messages cannot be written as JSON: {error}") from error
