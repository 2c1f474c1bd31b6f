"""One chat completion: from the messages of an agent to tokens, and from the tokens sampled to a message."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from areal_core._agents.call import Call, ToolCall
from areal_core._agents.chat_format import ChatFormat, ChatTemplateError
from areal_core._agents.conversation import Conversations
from areal_core._agents.recording import Recording
from areal_core._agents.reply import Frame, error_body, event_of, message_of
from areal_core._agents.request import Order, RefusedError
from areal_core._agents.speaking import Speaker, read_reply
from areal_core.errors import (
    ArealError,
    EngineStoppedError,
    GenerationTimeoutError,
    InferenceError,
    ServerStatusError,
)
from areal_core.types import InferenceEngine, ModelRequest, ModelResponse

_News: TypeAlias = "asyncio.Queue[Sequence[int] | None]"
"""Tokens as they come; None behind the last."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call under way."""

    order: Order
    frame: Frame
    prompt: list[int]
    stops: Sequence[str]
    began: float


class Completer:
    """Answers the calls of one episode, and records them.

    All of them go to one server, as long as it is there: what they have in common is in its cache. Raises
    RuntimeError when the *engine* has no chat format.
    """

    def __init__(self, engine: InferenceEngine, recording: Recording) -> None:
        chat = getattr(engine, "chat", None)
        if chat is None:
            raise RuntimeError(
                "the engine does not know how the model's chats are written; make it with "
                "RemoteInfEngine(..., chat=ChatFormat(tokenizer))"
            )
        self._chat: ChatFormat = chat
        self._engine = engine
        self._recording = recording
        self._conversations = Conversations()
        self._rid = uuid.uuid4().hex

    async def whole(self, order: Order) -> bytes:
        """Return the completion that *order* asks for. Raises RefusedError."""
        begun, request = self._begin(order)
        reply = await self._generate(request)
        content, tools = read_reply(
            self._chat, reply.output_tokens, begun.stops, tools=order.offered_tools is not None
        )
        return begun.frame.whole(self._end(begun, reply, content, tools))

    def stream(self, order: Order) -> AsyncGenerator[bytes]:
        """Return the events of the completion, as its tokens come; closing them ends it. Raises RefusedError.

        What goes wrong once they have begun is an event, which SDKs raise.
        """
        news: _News = asyncio.Queue()
        return self._events(*self._begin(order, news), news)

    async def _events(self, begun: _Begun, request: ModelRequest, news: _News) -> AsyncGenerator[bytes]:
        order = begun.order
        speaker = Speaker(self._chat, begun.stops, tools=order.offered_tools is not None)
        generation = asyncio.ensure_future(self._generate(request))
        generation.add_done_callback(lambda _: news.put_nowait(None))
        try:
            yield begun.frame.opening()
            while (tokens := await news.get()) is not None:
                if text := speaker.hear(tokens):
                    yield begun.frame.piece(text)
            reply = await generation
            rest, content, tools = speaker.end()
            for event in begun.frame.ending(self._end(begun, reply, content, tools), rest):
                yield event
        except RefusedError as error:
            yield event_of(error_body(error.status, str(error)))
        finally:
            if not generation.done():
                generation.cancel()
                await asyncio.wait((generation,))  # it has its server end it
            if not generation.cancelled():
                generation.exception()

    def _begin(self, order: Order, news: _News | None = None) -> tuple[_Begun, ModelRequest]:
        gconfig = order.gconfig(self._chat.gconfig)
        try:
            prompt = self._conversations.prompt(
                self._chat, order.messages, order.offered_tools, order.chat_template_kwargs or {}
            )
            on_tokens = None if news is None else news.put_nowait
            request = ModelRequest(prompt, gconfig, rid=self._rid, on_tokens=on_tokens)
        except (ChatTemplateError, ValueError) as error:
            raise RefusedError(400, str(error)) from error
        frame = Frame(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), order, self._chat)
        return _Begun(order, frame, prompt, gconfig.stop, time.monotonic()), request

    async def _generate(self, request: ModelRequest) -> ModelResponse:
        try:
            return await self._engine.agenerate(request)
        except ArealError as error:
            raise RefusedError(_status_of(error), str(error)) from error

    def _end(
        self, begun: _Begun, reply: ModelResponse, content: str | None, tools: Sequence[tuple[str, str]]
    ) -> Call:
        """Record the call that *reply* answers, and return it."""
        finish = "tool_calls" if tools and reply.stop_reason == "stop" else reply.stop_reason
        order = begun.order
        call = Call(
            id=begun.frame.id,
            prompt_tokens=begun.prompt,
            output_tokens=reply.output_tokens,
            output_logprobs=reply.output_logprobs,
            output_versions=reply.output_versions,
            versions_exact=reply.versions_exact,
            finish_reason=finish,
            content=content,
            tool_calls=tuple(ToolCall(f"call_{uuid.uuid4().hex}", *one) for one in tools),
            began=begun.began,
            ended=time.monotonic(),
            segments=reply.segments,
        )
        self._recording.add(call)
        self._conversations.remember(
            order.messages,
            order.offered_tools,
            order.chat_template_kwargs or {},
            message_of(call),
            call.prompt_tokens,
            call.output_tokens,
        )
        return call


def _status_of(error: ArealError) -> int:
    """Return the status that tells an agent whether its call was wrong, or what serves it."""
    if isinstance(error, ServerStatusError) and 400 <= error.status < 500:
        return error.status if error.status in (400, 413, 422) else 502
    if isinstance(error, GenerationTimeoutError):
        return 504
    if isinstance(error, EngineStoppedError):
        return 503
    return 502 if isinstance(error, InferenceError) else 500
