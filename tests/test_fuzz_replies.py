"""Spoilt replies of servers: of HTTP itself, and of chats that an agent's own server gives."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from areal_core._agents.listening import Listener
from areal_core._engine.backend import ReplyError
from areal_core._engine.wire.exchange import Exchange
from areal_core.errors import InferenceError
from exchanging import (
    CHUNKED,
    KEY,
    LAST_CHUNK,
    POST,
    STREAM,
    RunWithSession,
    all_shown,
    chunks,
    exchange_with,
    reply_of,
    take_request,
)
from peers import talking
from spoiling import Spoiler

PLAYS = 400
AT_MOST_S = 3.0

REPLIES = (
    reply_of("200 OK", b'{"text": "whole"}', "Content-Type: application/json"),
    CHUNKED + chunks(b'{"text": ', b'"whole"}') + LAST_CHUNK,
    STREAM + chunks(b'data: {"text": 1}\n\n', b"data: [DONE]\n\n") + LAST_CHUNK,
    reply_of(
        "503 Busy",
        b'{"error": {"message": "busy"}}',
        "Retry-After: 3",
        "Date: Thu, 26 Nov 2026 11:45:32 GMT",
    ),
    reply_of("307 Moved", b"", "Location: http://127.0.0.1:1/elsewhere"),
    reply_of("200 OK", b"packed", "Content-Encoding: gzip"),
)


async def ask_once(exchange: Exchange, session: Any, *, streaming: bool) -> None:
    if not streaming:
        await exchange.call(session, POST, AT_MOST_S)
        return
    async with exchange.open(session, POST) as reply:
        if reply.streamed:
            async for _ in reply.events():
                pass
        else:
            await reply.read()


def test_a_server_whose_http_is_spoilt_costs_one_call_an_error_in_time(use: RunWithSession) -> None:
    spoiler = Spoiler(seed=1)
    ended: Counter[str] = Counter()
    errors: list[InferenceError] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader)
        for piece in spoiler.pieces(spoiler.raw(spoiler.choice(REPLIES))):
            writer.write(piece)
        await writer.drain()

    async def work(session: Any) -> None:
        async with talking(talk) as peer:
            exchange = exchange_with(peer)
            for number in range(PLAYS):
                try:
                    async with asyncio.timeout(AT_MOST_S):
                        await ask_once(exchange, session, streaming=number % 2 == 0)
                except InferenceError as error:
                    ended[type(error).__name__] += 1
                    errors.append(error)
                else:
                    ended["whole"] += 1

    use(work)
    assert not any(KEY in all_shown(error) for error in errors)
    assert all(str(error).isprintable() and len(str(error)) < 2_000 for error in errors)
    assert ended["whole"]  # what is spoilt may be a word that nobody needs
    assert {"MalformedReplyError", "ServerUnreachableError", "ServerStatusError"} <= ended.keys()


CALL = {"id": "call_1", "type": "function", "function": {"name": "note", "arguments": '{"text": "x"}'}}
WHOLE = {
    "id": "chatcmpl-1",
    "prompt_token_ids": [1, 2, 3],
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "tool_calls": [CALL]},
            "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.1}]},
            "finish_reason": "stop",
            "token_ids": [4, 5],
        }
    ],
}


def piece(tokens: list[int], finish: str | None, **more: Any) -> dict[str, Any]:
    entries = [{"logprob": -0.25} for _ in tokens]
    choice = {"index": 0, "delta": {"content": "h"}, "logprobs": {"content": entries}, "token_ids": tokens}
    return {"id": "chatcmpl-2", "choices": [{**choice, "finish_reason": finish}], **more}


STREAMED = [piece([4], None, prompt_token_ids=[1, 2]), piece([5, 6], None), piece([], "length")]


def test_a_chat_that_is_spoilt_is_an_error_or_has_all_that_is_trained_on() -> None:
    spoiler = Spoiler(seed=2)
    ended: Counter[str] = Counter()
    for _ in range(20_000):
        documents = spoiler.choice(([WHOLE], STREAMED))
        at = spoiler.choice(range(len(documents)))
        listener = Listener(3, 0.0)
        try:
            for number, document in enumerate(documents):
                listener.take(spoiler.document(document) if number == at else _as_it_is(document))
            calls = list(listener.calls(1.0, is_exact=True, taken={"chatcmpl-1"}))
        except ReplyError:
            ended["refused"] += 1
            continue
        ended["heard"] += 1
        assert calls
        for call in calls:
            assert len(call.output_tokens) == len(call.output_logprobs) == len(call.output_versions)
            tokens = [*call.prompt_tokens, *call.output_tokens]
            assert all(type(token) is int and 0 <= token < 2**63 for token in tokens)
            assert all(type(one) is float and -9999.0 < one <= 0.01 for one in call.output_logprobs)
            assert call.id != "chatcmpl-1"
            assert call.finish_reason
    assert min(ended["heard"], ended["refused"]) > 1_000


def _as_it_is(document: Any) -> bytes:
    return json.dumps(document).encode()
