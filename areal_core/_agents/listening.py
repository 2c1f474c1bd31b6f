"""Reads what a foreign server tells an agent, for the tokens in it. Pure.

Token ids stand where versions of vLLM and SGLang put them: those of the prompt beside the choices or in one,
those of the reply as ``token_ids`` or ``response_token_ids``.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from areal_core._agents.call import Call, ToolCall
from areal_core._engine.backend import ReplyError
from areal_core._engine.wire.decoding import FinishType, Logprob, TokenId, decode, failure


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(Struct):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Entry(Struct, gc=False):
    logprob: Logprob


class _Logprobs(Struct):
    content: list[_Entry] | None = None


class _Choice(Struct):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None
    logprobs: _Logprobs | None = None
    finish_reason: FinishType | None = None
    token_ids: list[TokenId] | None = None
    response_token_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None


class _Document(Struct):
    id: str = ""
    choices: list[_Choice] = []
    prompt_token_ids: list[TokenId] | None = None
    error: Any = None


_DOCUMENT = Decoder(_Document)


@dataclass(slots=True, eq=False)
class _Heard:
    """One choice, as far as it has come."""

    tokens: list[int] | None = None
    """None: no token ids have come."""
    logprobs: list[float] = field(default_factory=list)
    content: str = ""
    tools: dict[int, ToolCall] = field(default_factory=dict)
    finish: str = ""

    def take(self, choice: _Choice) -> None:
        for ids in (choice.token_ids, choice.response_token_ids):
            if ids is not None:
                self.tokens = [*(self.tokens or ()), *ids]
                break
        if choice.logprobs is not None:
            self.logprobs += [entry.logprob for entry in choice.logprobs.content or ()]
        said = choice.message or choice.delta or _Said()
        self.content += said.content or ""
        for place, one in enumerate(said.tool_calls or ()):
            self._take_tool(place if one.index is None else one.index, one)
        self.finish = choice.finish_reason or self.finish

    def _take_tool(self, index: int, more: _ToolCall) -> None:
        before, function = self.tools.get(index, ToolCall("", "", "")), more.function or _Function()
        self.tools[index] = ToolCall(
            before.id or more.id or "",
            before.name + (function.name or ""),
            before.arguments + (function.arguments or ""),
        )


class Listener:
    """Takes a reply, whole or event by event, and makes a `Call` of each choice in it."""

    def __init__(self, version: int, began: float) -> None:
        self._version = version
        self._began = began
        self._id = ""
        self._prompt: list[int] | None = None
        self._choices: dict[int, _Heard] = {}

    def take(self, document: bytes) -> None:
        """Take a whole reply, or the data of one event. Raises ReplyError for what is none."""
        told = decode(_DOCUMENT, document)
        if told.error is not None:
            raise failure(told.error)
        self._id = self._id or told.id
        self._prompt = told.prompt_token_ids or self._prompt
        for choice in told.choices:
            self._prompt = choice.prompt_token_ids or self._prompt
            self._choices.setdefault(choice.index, _Heard()).take(choice)

    def calls(self, ended: float, is_exact: bool, taken: Collection[str] = ()) -> Iterator[Call]:
        """Yield what was heard. Each has the server's id for it, or another where that is missing or *taken*.

        Raises ReplyError where tokens or log-probabilities are missing, and for what was cut off.
        """
        if not self._choices or not all(heard.finish for heard in self._choices.values()):
            raise ReplyError("it ended without a finish_reason")
        for index, heard in sorted(self._choices.items()):
            name = f"{self._id}-{index}" if index else self._id
            if not self._id or name in taken:
                name = f"chatcmpl-{uuid.uuid4().hex}"
            yield self._call(name, heard, ended, is_exact)

    def _call(self, name: str, heard: _Heard, ended: float, is_exact: bool) -> Call:
        if self._prompt is None or heard.tokens is None:
            raise ReplyError(
                "prompt_token_ids or token_ids are missing, though return_token_ids was asked for; use a "
                "server that has them, or a client with record=False"
            )
        if len(heard.logprobs) != len(heard.tokens):
            raise ReplyError(f"{len(heard.tokens)} tokens have {len(heard.logprobs)} log-probabilities")
        return Call(
            id=name,
            prompt_tokens=self._prompt,
            output_tokens=heard.tokens,
            output_logprobs=heard.logprobs,
            output_versions=[self._version] * len(heard.tokens),
            versions_exact=is_exact,
            finish_reason=heard.finish,
            content=heard.content or None,
            tool_calls=tuple(one for _, one in sorted(heard.tools.items())),
            began=self._began,
            ended=ended,
        )
