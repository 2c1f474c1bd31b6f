"""The tokenizer of the embedded server's models, with the words of Hugging Face's: `ChatTokenizer`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from areal_core._checks import check_choice
from areal_core.embedded._models.letters import END_TOKEN
from areal_core.embedded._options import MODES

__all__ = ["ChatTokenizer"]

_END = "\x04"  # ASCII's "end of transmission"


class ChatTokenizer:
    """Writes chats for a server in the *mode* "text", "test" or "policy", as that writes them itself.

    In "text" and "test" a token is a byte; roles are written out, and tool calls as Hermes' models do. In
    "policy" there are digits, "=", "_", and "." for the end; what is said stands there bare, and a tool call
    is "_" and its arguments. Raises ValueError for another mode.
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
        return self.encode(self._words.end, add_special_tokens=False)[0]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **_: Any,
    ) -> str | list[int]:
        """Return the text of *conversation*, or its tokens with *tokenize*."""
        text = self._words.chat(conversation, tools, reply_follows=add_generation_prompt)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of *text*; there are no others to add. Raises ValueError for what has none."""
        return self._words.encode(text)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of *token_ids*, without the end if special tokens are left out."""
        end = self.eos_token_id
        return self._words.decode([one for one in token_ids if one != end or not skip_special_tokens])


class _Words(Protocol):
    """How one kind of model writes."""

    end: str

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
    end = _END

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
        return bytes(one if one < 256 else 0xFF for one in tokens).decode("utf-8", "replace")

    def _turn(self, role: str, text: str) -> str:
        return f"<|{role}|>\n{text}{self.end}\n"

    def _said(self, message: Mapping[str, Any]) -> str:
        calls = [json.dumps(dict(call["function"])) for call in message.get("tool_calls") or ()]
        said = [message["content"]] if message.get("content") else []
        return "\n".join([*said, *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)])


assert ord(_END) == END_TOKEN


class _Digits:
    end = "."

    def chat(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        reply_follows: bool,
    ) -> str:
        return "".join(map(self._turn, conversation))

    def encode(self, text: str) -> list[int]:
        from areal_core.embedded import policy  # NumPy: the other modes do without

        pieces = [policy.encode(piece) for piece in text.split(self.end)]
        return [token for piece in pieces for token in (*piece, policy.END)][:-1]

    def decode(self, tokens: Sequence[int]) -> str:
        from areal_core.embedded import policy

        return "".join(self.end if one == policy.END else policy.decode([one]) for one in tokens)

    def _turn(self, message: Mapping[str, Any]) -> str:
        said = message.get("content") or ""
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            values = arguments.values() if isinstance(arguments, Mapping) else [arguments]
            said += "_" + "".join(map(str, values))
        return said + (self.end if message["role"] == "assistant" else "")
