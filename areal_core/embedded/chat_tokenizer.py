"""The tokenizer of the embedded server's models, with the words of Hugging Face's: `ChatTokenizer`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from areal_core._checks import check_choice
from areal_core.embedded._models.letters import END_TOKEN
from areal_core.embedded._options import MODES

__all__ = ["ChatTokenizer"]

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class ChatTokenizer:
    """Writes chats for a server in the *mode* "text", "test" or "policy".

    In "text" and "test" a token is a byte, and the end is the character 4. Messages are written as the
    server itself writes chats, tools and tool calls as Hermes' models have them. In "policy" there are
    digits, "=", "_" and, for the end, ".". What is said stands there bare; a reply ends with "."; a tool call
    is "_" and the values of its arguments; and of tools nothing is written: the policy knows them by its
    training.

    Raises ValueError for another mode.
    """

    def __init__(self, mode: str = "text") -> None:
        check_choice("mode", mode, MODES)
        self._words: _Words = _Digits() if mode == "policy" else _Letters()

    @property
    def eos_token(self) -> str:
        """The text with which a reply ends."""
        return self._words.end

    @property
    def eos_token_id(self) -> int:
        """Its token."""
        return self._words.end_token

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **_: Any,
    ) -> str | list[int]:
        """Return the text of *conversation*, or its tokens with *tokenize*.

        *conversation* and *tools* are in OpenAI's words; a call's arguments are a dict, or text where they
        are no JSON object. Raises ValueError with *tokenize*, as `encode` does.
        """
        text = self._words.chat(conversation, tools, reply_follows=add_generation_prompt)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of *text*; there are no others to add. Raises ValueError for what has none."""
        return self._words.encode(text)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of *token_ids*, without ends if *skip_special_tokens*; any ids have one."""
        end = self._words.end_token
        return self._words.decode([one for one in token_ids if one != end or not skip_special_tokens])


class _Words(Protocol):
    """How one kind of model writes."""

    end: str
    end_token: int

    def chat(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        reply_follows: bool,
    ) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class _Letters:
    end_token = END_TOKEN
    end = chr(END_TOKEN)

    def chat(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        reply_follows: bool,
    ) -> str:
        offered = [self._turn("system", f"<tools>{json.dumps(list(tools))}</tools>")] if tools else []
        turns = [self._turn(message["role"], self._said(message)) for message in conversation]
        return "".join([*offered, *turns, "<|assistant|>\n" if reply_follows else ""])

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, tokens: Sequence[int]) -> str:
        # No UTF-8 has the byte FF: wherever it stands it becomes a replacement character, and nothing else.
        return bytes(one if 0 <= one < 256 else 0xFF for one in tokens).decode("utf-8", "replace")

    def _turn(self, role: str, text: str) -> str:
        return f"<|{role}|>\n{text}{self.end}\n"

    def _said(self, message: Mapping[str, Any]) -> str:
        content, calls = message.get("content") or "", message.get("tool_calls")
        if not calls:
            return str(content)
        said = [content] if content else []
        texts = [json.dumps(_call(one["function"])) for one in calls]
        return "\n".join([*said, *(f"<tool_call>\n{text}\n</tool_call>" for text in texts)])


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}


class _Digits:
    end = "."

    def __init__(self) -> None:
        from areal_core.embedded import policy  # NumPy: the other modes do without

        self._policy = policy
        self.end_token = policy.END

    def chat(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        reply_follows: bool,
    ) -> str:
        return "".join(map(self._turn, conversation))

    def encode(self, text: str) -> list[int]:
        try:
            pieces = [self._policy.encode(piece) for piece in text.split(self.end)]
        except ValueError:
            raise ValueError(
                f'the policy reads digits, "=" and "_", and "." for the end; {text[:60]!r} has others'
            ) from None
        return [token for piece in pieces for token in (*piece, self.end_token)][:-1]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(self._letter, tokens))

    def _letter(self, token: int) -> str:
        if token == self.end_token:
            return self.end
        return self._policy.decode([token]) if 0 <= token < self.end_token else _UNKNOWN

    def _turn(self, message: Mapping[str, Any]) -> str:
        said = message.get("content") or ""
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            values = arguments.values() if isinstance(arguments, Mapping) else [arguments]
            said += "_" + "".join(map(str, values))
        return said + (self.end if message["role"] == "assistant" else "")
