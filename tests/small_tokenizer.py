"""A tokenizer of chats as Hugging Face's are, small enough to see through, for tests of agents.

A token is a byte, a pair of letters or digits, or special; `encode` makes all pairs that it can. A model
samples as it likes: `sampled` gives single bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

SPECIAL = {"<|im_start|>": 1, "<|im_end|>": 2, "<|endoftext|>": 3}
START, END, OTHER_END = SPECIAL.values()

_FIRST_BYTE, _FIRST_PAIR = 16, 1_000
_PIECE = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
_PAIR = re.compile(rb"[A-Za-z0-9]{2}|(?s:.)")
_BY_TOKEN = {token: text for text, token in SPECIAL.items()}


class SmallTokenizer:
    """Its template is like Qwen's: tools stand in the system's turn, and tools' answers are the user's.

    It counts the tokens that it decodes.
    """

    eos_token: Any = "<|im_end|>"
    eos_token_id: Any = END

    def __init__(self) -> None:
        self.decoded = 0

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Any = None,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **kwargs: Any,
    ) -> Any:
        assert not tokenize
        head = turn("system", json.dumps({"tools": tools, **kwargs})) if tools or kwargs else ""
        body = "".join(self.turn(message) for message in conversation)
        return head + body + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def turn(self, message: dict[str, Any]) -> str:
        said = [message["content"]] if message["content"] else []
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
        said += [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
        role = "user" if message["role"] == "tool" else message["role"]
        return turn(role, "\n".join(said))

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        pieces = filter(None, _PIECE.split(text))
        return [token for piece in pieces for token in ([SPECIAL[piece]] if piece in SPECIAL else _of(piece))]

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> Any:
        tokens = list(token_ids)
        self.decoded += len(tokens)
        kept = [token for token in tokens if not (skip_special_tokens and token in _BY_TOKEN)]
        return b"".join(map(_bytes, kept)).decode(errors="replace")


def turn(role: str, content: str) -> str:
    """Return one turn as the template writes it."""
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def sampled(said: str | bytes, *, end: int | None = END) -> list[int]:
    """Return tokens that say this, one for each byte, and the one at the *end*; None: it was cut off."""
    data = said if isinstance(said, bytes) else said.encode()
    return [_FIRST_BYTE + byte for byte in data] + ([] if end is None else [end])


def _of(text: str) -> list[int]:
    return [_token(piece) for piece in _PAIR.findall(text.encode())]


def _token(piece: bytes) -> int:
    return _FIRST_BYTE + piece[0] if len(piece) == 1 else _FIRST_PAIR + 256 * piece[0] + piece[1]


def _bytes(token: int) -> bytes:
    if token in _BY_TOKEN:
        return _BY_TOKEN[token].encode()
    if token >= _FIRST_PAIR:
        return bytes(divmod(token - _FIRST_PAIR, 256))
    return bytes([token - _FIRST_BYTE])
