"""A chat completion in OpenAI's words, whole and as a stream.

https://platform.openai.com/docs/api-reference/chat. ``prompt_token_ids`` and ``token_ids`` are vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from areal_core._agents.call import Call, ToolCall
from areal_core._agents.chat_format import ChatFormat
from areal_core._agents.request import Order
from areal_core._json import json_of

DONE = b"data: [DONE]\n\n"
RECORDED = {"X-Areal-Core-Recorded": "1"}
"""Header of a completion that is recorded already, so that nobody does it once more."""
_MODEL = "policy"


@dataclass(frozen=True, slots=True)
class Frame:
    """What all that is said of one completion has in common."""

    id: str
    created: int
    """When it was asked for, in seconds since 1970."""
    order: Order
    chat: ChatFormat

    def whole(self, call: Call) -> bytes:
        """Return the completion as one document."""
        choice: dict[str, Any] = {
            "index": 0,
            "message": message_of(call),
            "logprobs": self._logprobs(call),
            "finish_reason": call.finish_reason,
        }
        document = self._frame("chat.completion", choice)
        document["usage"] = _usage(call)
        if self.order.return_token_ids:
            choice["token_ids"] = call.output_tokens
            document["prompt_token_ids"] = call.prompt_tokens
        return json_of(document)

    def opening(self) -> bytes:
        """Return the event that says who speaks."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """Return the event with the *text* that is new."""
        return self._event({"content": text})

    def ending(self, call: Call, rest: str) -> Iterator[bytes]:
        """Return the events from the *rest* of the text to the end."""
        if rest:
            yield self.piece(rest)
        if call.tool_calls:
            calls = [{"index": index, **_tool_call(one)} for index, one in enumerate(call.tool_calls)]
            yield self._event({"tool_calls": calls})
        yield self._event({}, call)
        if self.order.stream_options is not None and self.order.stream_options.include_usage:
            usage = {**self._frame("chat.completion.chunk"), "usage": _usage(call)}
            yield event_of(json_of(usage))
        yield DONE

    def _event(self, delta: dict[str, Any], call: Call | None = None) -> bytes:
        """Return the event with *delta*; with the *call*, the one that says how it ended."""
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        document = self._frame("chat.completion.chunk", choice)
        if call is not None:
            choice |= {"finish_reason": call.finish_reason, "logprobs": self._logprobs(call)}
            if self.order.return_token_ids:
                choice["token_ids"] = call.output_tokens
                document["prompt_token_ids"] = call.prompt_tokens
        return event_of(json_of(document))

    def _frame(self, kind: str, *choices: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.order.model,
            "choices": choices,
        }

    def _logprobs(self, call: Call) -> dict[str, Any] | None:
        if not self.order.logprobs:
            return None
        texts = [self.chat.shown([token]) for token in call.output_tokens]
        entries = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, logprob in zip(texts, call.output_logprobs, strict=True)
        ]
        return {"content": entries, "refusal": None}


def message_of(call: Call) -> dict[str, Any]:
    """Return the message that the agent is given, and gives back in its next call."""
    message: dict[str, Any] = {"role": "assistant", "content": call.content, "refusal": None}
    if call.tool_calls:
        message["tool_calls"] = [_tool_call(one) for one in call.tool_calls]
    return message


def error_body(status: int, text: str) -> bytes:
    """Return OpenAI's body for a call that failed."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json_of({"error": {"message": text, "type": kind, "param": None, "code": status}})


def models() -> bytes:
    """Return the list of models. There is one, under whatever name an agent asks it."""
    return json_of({"object": "list", "data": [_model(_MODEL)]})


def model(name: str) -> bytes:
    """Return the model that an agent calls *name*."""
    return json_of(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "areal_core"}


def event_of(document: bytes) -> bytes:
    """Return the event whose data is *document*."""
    return b"data: " + document + b"\n\n"


def _tool_call(one: ToolCall) -> dict[str, Any]:
    function = {"name": one.name, "arguments": one.arguments}
    return {"id": one.id, "type": "function", "function": function}


def _usage(call: Call) -> dict[str, Any]:
    prompt, new = len(call.prompt_tokens), len(call.output_tokens)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
