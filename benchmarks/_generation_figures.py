"""What a generation of 32 000 tokens with log-probabilities costs the client, by the engine and plainly.

The plain way is what one writes with an aiohttp session and the standard json module: it has no checks, no
retries, no versions and no limits. Both end with the same two lists.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import uvloop

import _canned
from _answering_server import GROWING, LARGE_BYTES
from areal_core._engine.backend import Ask, HttpCall
from areal_core._engine.backends import backend_named
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange
from areal_core.config import InferenceEngineConfig
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters, ModelRequest
from areal_core.workflow_context import get_aiohttp_session

Lists = tuple[list[int], list[float]]
Generate = Callable[[], Awaitable[Lists]]
Client = Callable[[str, "Manner"], AbstractAsyncContextManager[Generate]]
"""Makes a client of the server at a URL, which asks in a manner, and gives its way to generate."""

PROMPT = _canned.tokens(1_000)
SAMPLING = GenerationHyperparameters(max_new_tokens=_canned.TOKENS)


class Manner:
    """How tokens are asked for."""

    def __init__(self, stream: bool, growing: bool = False) -> None:
        self.stream = stream
        self.growing = growing

    @property
    def extra(self) -> Mapping[str, Any]:
        """What the request has beside what every request has."""
        return {GROWING: True} if self.growing else {}


WHOLE = Manner(stream=False)
STREAMED = Manner(stream=True)
GROWING_STREAM = Manner(stream=True, growing=True)


@asynccontextmanager
async def by_engine(url: str, manner: Manner) -> AsyncIterator[Generate]:
    """Ask by `RemoteInfEngine.agenerate`."""
    config = InferenceEngineConfig(stream_replies=manner.stream)
    engine = RemoteInfEngine(config, backend="sglang")
    await asyncio.to_thread(engine.initialize, url.rstrip("/"))
    request = ModelRequest(PROMPT, SAMPLING, extra=manner.extra)

    async def generate() -> Lists:
        reply = await engine.agenerate(request)
        return reply.output_tokens, reply.output_logprobs

    yield generate
    await asyncio.to_thread(engine.destroy)


@asynccontextmanager
async def plainly(url: str, manner: Manner) -> AsyncIterator[Generate]:
    """Ask by a session of aiohttp's, with the standard json module."""
    body = _body(PROMPT, manner)
    async with aiohttp.ClientSession() as session:

        async def generate() -> Lists:
            async with session.post(url + "generate", json=body) as reply:
                if manner.stream:
                    return await _read_events(reply.content, manner.growing)
                return _lists((await reply.json())["meta_info"]["output_token_logprobs"])

        yield generate


def _body(prompt: list[int], manner: Manner) -> dict[str, Any]:
    sampling = {"max_new_tokens": _canned.TOKENS, "temperature": 1.0, "top_p": 1.0, "top_k": -1}
    asked = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True}
    return {"rid": "generation", **asked, "stream": manner.stream, **manner.extra}


async def _read_events(content: aiohttp.StreamReader, growing: bool) -> Lists:
    ids: list[int] = []
    chances: list[float] = []
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            if event != b"data: [DONE]":
                entries = json.loads(event[6:])["meta_info"]["output_token_logprobs"]
                new = entries[len(ids) :] if growing else entries
                ids += [entry[1] for entry in new]
                chances += [entry[0] for entry in new]
    return ids, chances


def _lists(entries: list[Any]) -> Lists:
    return [entry[1] for entry in entries], [entry[0] for entry in entries]


def generation(client: Client, url: str, manner: Manner, times: int) -> float:
    """Return the seconds of CPU that a generation costs the client's process; one goes before, unmeasured."""

    async def measured() -> float:
        async with client(url, manner) as generate:
            if await generate() != (_canned.tokens(), _canned.logprobs()):
                raise AssertionError("other tokens came than were sent")
            gc.collect()
            cpu = time.process_time()
            for _ in range(times):
                await generate()
            return (time.process_time() - cpu) / times

    return uvloop.run(measured())


def decoding(read: Callable[[bytes], Lists], times: int) -> float:
    """Return the seconds of CPU to make lists of a reply's JSON."""
    body = _canned.whole()
    return _cpu_of(lambda: read(body), times)


def read_by_backend(body: bytes) -> Lists:
    """Read a reply as the engine does."""
    piece = backend_named("sglang").reader(_ask([1], stream=False)).whole(body)
    return list(piece.tokens), list(piece.logprobs)


def read_plainly(body: bytes) -> Lists:
    """Read it by the standard json module."""
    return _lists(json.loads(body)["meta_info"]["output_token_logprobs"])


def encoding(write: Callable[[list[int]], bytes], times: int) -> float:
    """Return the seconds of CPU to make JSON of a request with a prompt of 32 000 tokens."""
    prompt = _canned.tokens()
    return _cpu_of(lambda: write(prompt), times)


def write_by_backend(prompt: list[int]) -> bytes:
    """Write a request as the engine does."""
    return backend_named("sglang").generate(_ask(prompt, stream=True)).body or b""


def write_plainly(prompt: list[int]) -> bytes:
    """Write it by the standard json module."""
    return json.dumps(_body(prompt, STREAMED)).encode()


def _ask(prompt: list[int], stream: bool) -> Ask:
    return Ask("generation", prompt, _canned.TOKENS, 0, SAMPLING, {}, stream=stream)


def _cpu_of(work: Callable[[], object], times: int) -> float:
    work()
    gc.collect()
    cpu = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - cpu) / times


async def receive_by_exchange(url: str) -> int:
    """Receive a large reply as the engine does, and return its size."""
    exchange = Exchange(Address.parse(url.rstrip("/")), None, 2 * LARGE_BYTES)
    return len(await exchange.call(await get_aiohttp_session(), HttpCall("GET", "/large"), 60.0))


async def receive_plainly(url: str) -> int:
    """Receive it by a session of aiohttp's."""
    async with aiohttp.ClientSession() as session, session.get(url + "large") as reply:
        return len(await reply.read())


def receiving(receive: Callable[[str], Awaitable[int]], url: str) -> Mapping[str, float]:
    """Return what a byte of a reply of 64 MB costs: CPU, and memory at the peak, in bytes."""

    async def measured() -> Mapping[str, float]:
        before, cpu = _peak_bytes(), time.process_time()
        if await receive(url) != LARGE_BYTES:
            raise AssertionError("another number of bytes came than was sent")
        return {
            "cpu": (time.process_time() - cpu) / LARGE_BYTES,
            "peak": (_peak_bytes() - before) / LARGE_BYTES,
        }

    return uvloop.run(measured())


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
