"""One chat completion: from the messages of an agent to tokens, and from the tokens sampled to a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from areal_core._agents.call import Call, ToolCall
from areal_core._agents.chat_format import ChatFormat, ChatTemplateError
from areal_core._agents.conversation import Conversations, Prompt
from areal_core._agents.recording import Recording
from areal_core._agents.reply import Frame, error_body, event_of, message_of
from areal_core._agents.request import Order, RefusedError, refuse_to_hold
from areal_core._agents.speaking import Speaker, read_reply
from areal_core._interruption import Interruption
from areal_core._json import writable
from areal_core._unique import unique_id
from areal_core.errors import (
    ArealError,
    EngineStoppedError,
    GenerationTimeoutError,
    InferenceError,
    ServerStatusError,
)
from areal_core.types import InferenceEngine, ModelRequest, ModelResponse

_LARGE = 2**16
"""Bytes of a body from which on its prompt is made in a thread: on the loop it would hold up all others."""
_News: TypeAlias = "asyncio.Queue[Sequence[int] | None]"
"""Tokens as they come; None behind the last."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call under way."""

    order: Order
    prompt: Prompt
    frame: Frame
    request: ModelRequest
    began: float


class _Generating(Interruption):
    """A context that ends with the episode whose *completer* it is for. Raises RefusedError then."""

    def __init__(self, completer: Completer) -> None:
        super().__init__()
        self._completer = completer

    def __enter__(self) -> Self:
        super().__enter__()
        self._completer.began(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._completer.ended(self)
        super().__exit__(*raised)

    def end(self) -> None:
        """End the body."""
        self._interrupt()

    def _error(self) -> Exception:
        return _over()


class Completer:
    """Answers the calls of one episode, and records them.

    All of them go to one server, as long as it is there: what they have in common is in its cache. They are
    made in the episode's context. Raises RuntimeError when the *engine* has no chat format.
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
        self._rid = unique_id()
        self._generating: set[_Generating] = set()
        self._has_ended = False
        self._is_idle: asyncio.Future[None] | None = None  # what `end` waits for

    async def whole(self, order: Order, size: int = 0) -> bytes:
        """Return the completion that *order*, a body of *size* bytes, asks for. Raises RefusedError."""
        begun = await self._begin(order, size)
        reply = await self._reply_to(begun.request)
        content, tools = read_reply(
            self._chat,
            reply.output_tokens,
            begun.request.gconfig.stop,
            tools=order.offered_tools is not None,
        )
        call = _call(begun, reply, content, tools)
        body = begun.frame.whole(call)
        self._record(begun, call)
        return body

    async def stream(self, order: Order, size: int = 0) -> AsyncGenerator[bytes]:
        """Yield the events of the completion, as its tokens come; closing them ends it.

        Raises RefusedError before the first of them; what goes wrong later is an event, which SDKs raise.
        """
        news: _News = asyncio.Queue()
        begun = await self._begin(order, size, news)
        speaker = Speaker(self._chat, begun.request.gconfig.stop, tools=order.offered_tools is not None)
        generation = asyncio.create_task(self._reply_to(begun.request))
        generation.add_done_callback(lambda _: news.put_nowait(None))
        try:
            tokens = await news.get()
            if tokens is None:
                await generation  # the reply is empty, or it has failed
            yield begun.frame.opening()
            try:
                while tokens is not None:
                    if text := speaker.hear(tokens):
                        yield begun.frame.piece(text)
                    tokens = await news.get()
                reply = await generation
            except RefusedError as error:
                yield event_of(error_body(error.status, str(error)))
                return
            rest, content, tools = speaker.end()
            call = _call(begun, reply, content, tools)
            events = list(begun.frame.ending(call, rest))
            self._record(begun, call)
            for event in events:
                yield event
        finally:
            await _ended(generation)

    async def end(self) -> None:
        """Answer no more, and end the generations under way, on their servers too."""
        self._has_ended = True
        for generating in self._generating:
            generating.end()
        if self._generating:
            self._is_idle = self._is_idle or asyncio.get_running_loop().create_future()
            await asyncio.wait((self._is_idle,))

    async def _begin(self, order: Order, size: int, news: _News | None = None) -> _Begun:
        if not self._chat.advisory:
            refuse_to_hold(order)
        gconfig = order.gconfig(self._chat)
        kwargs = order.chat_template_kwargs or {}
        asked = self._chat, order.messages, order.offered_tools, kwargs
        try:
            if size < _LARGE:
                prompt = self._conversations.prompt(*asked)
            else:
                prompt = await asyncio.to_thread(self._conversations.prompt, *asked)
            on_tokens = None if news is None else news.put_nowait
            request = ModelRequest(prompt.tokens, gconfig, rid=self._rid, on_tokens=on_tokens)
        except ValueError as error:  # ChatTemplateError, or no token at all
            raise RefusedError(400, str(error)) from error
        frame = Frame(f"chatcmpl-{unique_id()}", int(time.time()), order, self._chat)
        return _Begun(order, prompt, frame, request, time.monotonic())

    async def _reply_to(self, request: ModelRequest) -> ModelResponse:
        """Return the engine's reply. Raises RefusedError."""
        with _Generating(self):
            try:
                return await self._engine.agenerate(request)
            except ArealError as error:
                raise RefusedError(_status_of(error), str(error)) from error

    def began(self, generating: _Generating) -> None:
        """Know what generates for a call. Raises RefusedError when the episode has ended."""
        if self._has_ended:
            raise _over()
        self._generating.add(generating)

    def ended(self, generating: _Generating) -> None:
        """Know no more of it."""
        self._generating.discard(generating)
        if not self._generating and self._is_idle is not None:
            self._is_idle.set_result(None)

    def _record(self, begun: _Begun, call: Call) -> None:
        self._recording.add(call)
        with suppress(
            ChatTemplateError
        ):  # what the model said is no JSON: the agent cannot say it again either
            self._conversations.remember(begun.prompt, call.output_tokens, message_of(call))


def _call(begun: _Begun, reply: ModelResponse, content: str | None, tools: Sequence[tuple[str, str]]) -> Call:
    finish = "tool_calls" if tools and reply.stop_reason == "stop" else reply.stop_reason
    asked, read = begun.prompt.tokens, reply.input_tokens
    if type(read) is not list:  # an engine of somebody's own may have an array
        read = list(map(int, read))
    return Call(
        id=begun.frame.id,
        prompt_tokens=asked if read == asked else read,  # what is remembered: a long one is not kept twice
        output_tokens=reply.output_tokens,
        output_logprobs=reply.output_logprobs,
        output_versions=reply.output_versions,
        versions_exact=reply.versions_exact,
        finish_reason=finish,
        # A model may write half of a surrogate pair into its JSON.
        content=None if content is None else writable(content),
        tool_calls=tuple(
            ToolCall(f"call_{unique_id()}", writable(name), writable(arguments)) for name, arguments in tools
        ),
        began=begun.began,
        ended=time.monotonic(),
        segments=reply.segments,
    )


async def _ended(generation: asyncio.Task[ModelResponse]) -> None:
    """End *generation*, and leave nothing that would complain of it."""
    if not generation.done():
        generation.cancel()
        await asyncio.wait((generation,))  # it has its server end it
    if not generation.cancelled():
        generation.exception()


def _over() -> RefusedError:
    return RefusedError(410, "the session has ended: its episode is over")


def _status_of(error: ArealError) -> int:
    """Return the status that tells an agent whether its call was wrong, or what serves it."""
    if isinstance(error, ServerStatusError) and 400 <= error.status < 500:
        return error.status if error.status in (400, 413, 422) else 502
    if isinstance(error, GenerationTimeoutError):
        return 504
    if isinstance(error, EngineStoppedError):
        return 503
    return 502 if isinstance(error, InferenceError) else 500
