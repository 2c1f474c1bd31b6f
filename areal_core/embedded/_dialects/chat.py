"""A chat as the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_core.embedded._checks import BadRequestError, mapping, string
from areal_core.embedded._models.model import Model

_ROLES = ("system", "developer", "user", "assistant", "tool")


class Chat:
    """Write chats as prompts of *model*.

    Each message ends as the model ends its own, so that a chat which goes on with the reply goes on with
    its tokens. A model that reads no role names (*bare*) gets what was said, one message after another.
    """

    def __init__(self, model: Model, bare: bool) -> None:
        self._model = model
        self._bare = bare

    def prompt(self, messages: Any) -> list[int]:
        """Return the tokens of *messages*, up to where the reply begins.

        Raises BadRequestError for what is no chat of texts, PromptError for what the model cannot read.
        """
        if not isinstance(messages, list) or not messages:
            raise BadRequestError("messages", messages, "is not a list of at least one message")
        tokens: list[int] = []
        for index, message in enumerate(messages):
            tokens += self._message(f"messages[{index}]", mapping(f"messages[{index}]", message))
        return tokens if self._bare else tokens + self._model.encode("<|assistant|>\n")

    def _message(self, where: str, message: dict[str, Any]) -> list[int]:
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise BadRequestError(f"{where}.role", role, f"is none of {', '.join(_ROLES)}")
        if message.get("tool_calls"):
            raise BadRequestError(
                f"{where}.tool_calls", message["tool_calls"], "is more than this server reads"
            )
        text = "".join(_texts(f"{where}.content", content))
        if self._bare:
            return self._model.encode(text)
        encode = self._model.encode
        return [*encode(f"<|{role}|>\n{text}"), self._model.end_token, *encode("\n")]


def _texts(where: str, content: Any) -> Sequence[str]:
    """Return the texts of a message: one, or parts that are all texts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise BadRequestError(where, content, "is neither a text nor a list of parts")
    texts = []
    for index, given in enumerate(content):
        part = mapping(f"{where}[{index}]", given)
        if part.get("type") != "text":
            raise BadRequestError(f"{where}[{index}].type", part.get("type"), "is not text")
        texts.append(string(f"{where}[{index}].text", part.get("text")))
    return texts
