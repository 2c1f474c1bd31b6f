"""Spoilt requests: what agents send to the gateway, and anybody to the embedded server."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_tools import a_chat, a_chatting_engine, check_calls
from areal_core import workflow_context
from areal_core._agents.conversation import Conversations
from areal_core._agents.gateway import Listening, gateway_of
from areal_core._agents.reply import error_body
from areal_core._agents.request import RefusedError, read_order, refuse_to_hold
from areal_core._agents.scope import Scope
from areal_core.agents import ChatFormat, ChatTemplateError
from areal_core.embedded import EmbeddedServer, write_weights
from areal_core.remote_inf_engine import RemoteInfEngine
from conftest import MakeRunner
from logged import LogLines
from reused_servers import ReusedServer
from small_tokenizer import SmallTokenizer
from spoiling import Spoiler

CALL = {"id": "call_1", "type": "function", "function": {"name": "note", "arguments": '{"text": "x"}'}}
TOOL = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
MESSAGES: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "me"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "noted"},
    {"role": "developer", "content": "now"},
]
CHAT: dict[str, Any] = {
    "model": "policy",
    "messages": MESSAGES,
    "tools": [TOOL],
    "tool_choice": "auto",
    "stream": False,
    "stream_options": {"include_usage": True},
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["x"],
    "seed": 1,
    "frequency_penalty": 0.0,
    "logprobs": True,
    "return_token_ids": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "top_k": 5,
    "min_tokens": 0,
    "ignore_eos": False,
    "stop_token_ids": [7],
    "n": 1,
    "top_logprobs": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "function_call": "none",
    "repetition_penalty": 1.0,
    "add_generation_prompt": True,
}


# -- the gateway


def prompt_of(body: bytes, chat: ChatFormat) -> list[int]:
    """Do what a completer does with *body* before it asks for tokens. Raises RefusedError, ValueError."""
    order = read_order(body)
    refuse_to_hold(order)
    order.gconfig(chat)
    kwargs = order.chat_template_kwargs or {}
    return Conversations().prompt(chat, order.messages, order.offered_tools, kwargs).tokens


def test_a_spoilt_chat_is_refused_in_words_or_is_a_prompt() -> None:
    spoiler = Spoiler(seed=3)
    chats = [ChatFormat(SmallTokenizer(), "hermes"), a_chat("hermes")]
    ended: Counter[str] = Counter()
    words: list[str] = []
    for _ in range(3_000):
        body = spoiler.document(CHAT)
        for chat in chats:
            try:
                tokens = prompt_of(body, chat)
            except (RefusedError, ChatTemplateError) as error:
                ended["refused"] += 1
                words.append(str(error))
            else:
                ended["prompt"] += 1
                assert all(type(token) is int for token in tokens)
    assert min(ended["refused"], ended["prompt"]) > 500
    assert all(json.loads(error_body(400, one))["error"]["message"] for one in words)


@pytest.fixture
def engine(chatting_server: ReusedServer) -> Iterator[RemoteInfEngine]:
    with a_chatting_engine(chatting_server) as engine:
        yield engine


def test_whatever_an_agent_sends_the_gateway_answers_and_records_only_what_it_answered(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine, log_lines: LogLines
) -> None:
    spoiler = Spoiler(seed=4)
    chat = {**CHAT, "ignore_eos": True, "stop": None, "stop_token_ids": None}

    async def main() -> tuple[Counter[int], Any]:
        told: Counter[int] = Counter()
        gateway = await gateway_of(Listening())
        scope = Scope(engine)
        session = await workflow_context.get_aiohttp_session()
        async with gateway.session(scope) as (base_url, api_key):
            headers = {"Authorization": f"Bearer {api_key}"}
            for _ in range(250):
                body = spoiler.document({**chat, "stream": spoiler.choice((True, False))})
                url = f"{base_url}/chat/completions"
                async with asyncio.timeout(10), session.post(url, data=body, headers=headers) as reply:
                    said = await reply.read()
                told[reply.status] += 1
                if reply.status != 200:
                    assert json.loads(said)["error"]["message"]
        return told, scope.recording

    told, recording = make_runner().run(main)
    assert set(told) <= {200, 400, 413, 422}
    assert min(told[200], told[400]) > 20
    assert len(recording.calls) == told[200]
    check_calls(recording.calls, chatting_server.log())
    assert not [line for line in log_lines if line.level in ("error", "warning")]


def test_whatever_comes_instead_of_http_the_gateway_serves_the_next_one(
    make_runner: MakeRunner, engine: RemoteInfEngine, log_lines: LogLines
) -> None:
    spoiler = Spoiler(seed=5)
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()

    async def main() -> Counter[bytes]:
        told: Counter[bytes] = Counter()
        gateway = await gateway_of(Listening())
        async with gateway.session(Scope(engine)) as (base_url, api_key):
            host, _, path = base_url.removeprefix("http://").partition("/")
            head = (
                f"POST /{path}/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {api_key}"
                f"\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            for number in range(200):
                pieces = [head.encode() + body]
                if is_spoilt := number % 50 > 0:
                    pieces = list(spoiler.pieces(spoiler.raw(pieces[0])))
                reply = await exchanged(host, pieces)
                status = re.match(rb"HTTP/\d\.\d (\d\d\d) ", reply)
                assert status or not reply
                told[status[1] if status else b""] += 1
                assert is_spoilt or reply.startswith(b"HTTP/1.1 200 ")
        assert not gateway._sessions
        return told

    told = make_runner().run(main)
    assert not set(told) & {b"500", b"502"}
    assert told[b"200"] >= 4
    assert min(told[b"400"], told[b"401"]) > 10
    assert not [line for line in log_lines if line.level in ("error", "warning")]


TO_AN_END = b"\r\n\r\n" + b"x" * 20_000 + b"\r\n\r\n"
"""Ends a head or a body that is waited for, and is no request."""


async def exchanged(host: str, pieces: list[bytes]) -> bytes:
    """Send *pieces*, and a little later an end to them; return all that comes back."""
    said = bytearray()
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*host.split(":"))
        reading = asyncio.ensure_future(reader.read(2**16))
        try:
            writer.writelines(pieces)
            await asyncio.wait([reading], timeout=0.1)
            writer.write(TO_AN_END)  # or more may be waited for, or another request
            said += await reading
            while more := await reader.read(2**16):
                said += more
        except ConnectionError:  # it does not read what comes behind the end
            pass
        finally:
            writer.close()
    return bytes(said)


# -- the embedded server

SAMPLING = {
    "max_new_tokens": 3,
    "temperature": 1.0,
    "top_p": 1.0,
    "stop": ["zz"],
    "stop_token_ids": [7],
    "n": 1,
}


def asks(weights: str) -> dict[str, Any]:
    """Return by path what the embedded server understands."""
    return {
        "/generate": {"input_ids": [1, 2], "sampling_params": SAMPLING, "return_logprob": True, "rid": "r"},
        "/v1/completions": {"model": "m", "prompt": [1, 2], "max_tokens": 3, "logprobs": 1, "stop": ["zz"]},
        "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "seed": 1, "n": 1},
        "/inference/v1/generate": {
            "token_ids": [1, 2],
            "sampling_params": {"max_tokens": 3, "logprobs": 1, "seed": 1},
            "request_id": "q",
        },
        "/abort_request": {"rid": "r", "abort_all": False},
        "/abort_requests": {"request_ids": ["a", "b"]},
        "/inference/v1/abort_requests": {"request_ids": ["generate-tokens-a"]},
        "/update_weights_from_disk": {"model_path": weights, "weight_version": "1"},
        "/collective_rpc": {"method": "reload_weights", "kwargs": {"weights_path": weights}},
        "/update_weight_version": {"new_version": "3"},
        "/faults": [{"latency": 0, "next": 1}, "latency=0,next=1"],
    }


@pytest.mark.any_loop
@pytest.mark.parametrize("mode", ["test", "text", "policy"])
def test_whatever_anybody_asks_the_embedded_server_it_answers_in_words(tmp_path: Path, mode: str) -> None:
    weights = tmp_path / "weights"
    write_weights(weights, 1)
    paths, spoiler = asks(str(weights)), Spoiler(seed=6)
    told: Counter[int] = Counter()
    with EmbeddedServer(ms_per_token=0, mode=mode) as server:
        for _ in range(600):
            path = spoiler.choice(list(paths))
            status, said = posted(server, path, spoiler.document(paths[path]))
            told[status] += 1
            if status >= 400:
                assert b"the server failed" not in said, (path, said)
                assert json.loads(said)
            if path == "/faults":
                posted(server, "/faults", b"[]")
        assert server.stats().in_flight == 0
    assert set(told) <= {200, 400, 500}  # 500: weights that are none, as the servers it stands for say it
    assert min(told[200], told[400]) > 50


def posted(server: EmbeddedServer, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.addr, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()
