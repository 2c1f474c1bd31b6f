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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from areal_core._agents.chat_format import ChatFormat, ChatTemplateError, normal_message

__all__ = ["Conversations", "Prompt"]

_Message: TypeAlias = Mapping[str, Any]

_OF_A_REPLY = ("role", "content", "name", "reasoning", "reasoning_content", "thinking")
"""What a reply says, besides its tool calls. SDKs give it back with more fields, some of their own."""

_ENCODER = msgspec.json.Encoder(order="sorted")
_AS_IT_STANDS = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class _Told:
    """Messages with what was made of them. Whoever sends them again, and more, need not wait for it again."""

    setting: bytes
    """Tools, and arguments for the template."""
    raw: list[bytes]
    normal: list[dict[str, Any]]
    keys: list[bytes]
    """For each message one of the conversation up to it."""
    running: hashlib.blake2b
    """Makes the next of those."""

    def add(self, normal: dict[str, Any]) -> None:
        """Append a *normal* message."""
        self.running.update(_encoded(_said(normal)))
        self.normal.append(normal)
        self.keys.append(self.running.digest())

    def key_with(self, normal: dict[str, Any]) -> bytes:
        """Return the key of the conversation with one more *normal* message."""
        running = self.running.copy()
        running.update(_encoded(_said(normal)))
        return running.digest()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model goes on from."""

    tokens: list[int]
    told: _Told
    text: _Text
    """Of the messages, as the template wrote them."""


@dataclass(frozen=True, slots=True)
class _Text:
    """What tells whether a text begins with this one. The prompts of an episode, kept, grow as its square."""

    length: int
    digest: bytes

    @classmethod
    def of(cls, text: str) -> _Text:
        data = text.encode("utf-8", "surrogatepass")
        return cls(len(text), hashlib.blake2b(data, digest_size=16).digest())

    def begins(self, text: str) -> bool:
        """Return whether *text* begins with this one."""
        return len(text) >= self.length and _Text.of(text[: self.length]) == self


@dataclass(frozen=True, slots=True)
class _Known:
    """A conversation up to a reply."""

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    text: _Text
    """What the prompt was, as the template wrote it."""


class Conversations:
    """The conversations of one recording. Not for several threads at once."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._last: _Told | None = None

    def prompt(
        self,
        fmt: ChatFormat,
        messages: Sequence[_Message],
        tools: Sequence[_Message] | None,
        kwargs: Mapping[str, Any],
    ) -> Prompt:
        """Return what there is to go on from: *messages*, with *tools* and *kwargs* given to the template.

        Its tokens begin with those of the longest remembered conversation that *messages* begin with, if the
        template writes it the same with what comes behind it. Raises ChatTemplateError.
        """
        self._last = told = _told(messages, tools, kwargs, self._last)
        text = fmt.written(told.normal, tools, kwargs, generation_prompt=True)
        count, known = self._longest(told)
        behind = _behind_reply(fmt, known, told.normal[:count], tools, kwargs, text) if known else None
        if known is None or behind is None:
            return Prompt(fmt.encode(text), told, _Text.of(text))
        ended = list(known.output_tokens[-1:]) == [fmt.eos_id]
        behind_it = _after(fmt, behind, ended=ended)
        return Prompt([*known.prompt_tokens, *known.output_tokens, *behind_it], told, _Text.of(text))

    def remember(self, prompt: Prompt, output_tokens: Sequence[int], reply_message: _Message) -> None:
        """Remember that *output_tokens* were sampled after *prompt*, and told as *reply_message*.

        Their tokens are kept, and must not be changed. Of two that say the same, the later is remembered.
        Raises ChatTemplateError for a message that cannot come again.
        """
        key = prompt.told.key_with(normal_message(reply_message))
        self._known[key] = _Known(prompt.tokens, output_tokens, prompt.text)

    def _longest(self, told: _Told) -> tuple[int, _Known | None]:
        """Return what is known of the most messages, and how many these are."""
        for count in range(len(told.keys), 0, -1):
            if known := self._known.get(told.keys[count - 1]):
                return count, known
        return 0, None


def _told(
    messages: Sequence[_Message],
    tools: Sequence[_Message] | None,
    kwargs: Mapping[str, Any],
    last: _Told | None,
) -> _Told:
    """Return what is made of *messages*: of those that were the *last* to be told, what was made then."""
    setting = _encoded([list(tools or ()), dict(kwargs)])
    raw = [_encoded(message, _AS_IT_STANDS) for message in messages]
    if last is not None and last.setting == setting and raw[: len(last.raw)] == last.raw:
        told = _Told(setting, raw, [*last.normal], [*last.keys], last.running.copy())
    else:
        told = _Told(setting, raw, [], [], hashlib.blake2b(setting, digest_size=16))
    for message in messages[len(told.normal) :]:
        told.add(normal_message(message))
    return told


def _behind_reply(
    fmt: ChatFormat,
    known: _Known,
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
        turn = fmt.written(told, tools, kwargs, generation_prompt=False)
    except ChatTemplateError:  # a template may want the user to have the last word
        return None
    before = known.text.length
    end = turn.rfind(fmt.eos_text, before)
    if end < 0 or not text.startswith(turn) or not known.text.begins(turn):
        return None
    content = told[-1]["content"] or ""
    return text[end + len(fmt.eos_text) :] if _says(turn[before:end], content) else None


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


def _encoded(value: Any, encoder: msgspec.json.Encoder = _ENCODER) -> bytes:
    """Return *value* as JSON, of which several after another can be told apart."""
    try:
        return encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatTemplateError(f"these messages cannot be written as JSON: {error}") from error
