"""A server in SGLang's dialect on the test's own loop, which answers each generation as the test says.

The token at place i of a conversation is i: so one that is lost or doubled shows, whoever resumed it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from aiohttp import web

from areal_core.config import InferenceEngineConfig
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters, ModelRequest
from peers import serving
from threaded_loops import turns_until

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Play = Callable[[Callable[[], Awaitable[None]]], None]
Answer = Callable[[web.BaseRequest, dict[str, Any]], Awaitable[web.StreamResponse]]


class Call(NamedTuple):
    """One request that a server saw."""

    path: str
    body: dict[str, Any]
    at: float
    """Seconds on the loop's clock."""
    headers: dict[str, str]
    connection: object

    @property
    def wire_id(self) -> str:
        """The id of the generation it is about."""
        return str(self.body["rid"])


class ScriptedServer:
    """What it was asked, and what it is to answer: each generation one of `script`, then `usual`."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.script: deque[Answer] = deque()
        self.usual: Answer = making()
        self.control: dict[str, Answer] = {}
        """By path: what the other calls are answered, if not by an empty document."""
        self._arrived = asyncio.Condition()
        self._answering: set[asyncio.Task[Any]] = set()

    def of(self, path: str) -> list[Call]:
        """Return the calls of one *path*."""
        return [call for call in self.calls if call.path == path]

    @property
    def generations(self) -> list[Call]:
        """The generations it was asked for."""
        return self.of("/generate")

    @property
    def aborted(self) -> list[str]:
        """The wire ids it was told to abort."""
        return [call.wire_id for call in self.of("/abort_request")]

    @property
    def order(self) -> list[tuple[str, str]]:
        """Generations and aborts in the order in which they came: the path's last word, and the id."""
        calls = [call for call in self.calls if call.path in ("/generate", "/abort_request")]
        return [(call.path.strip("/").partition("_")[0], call.wire_id) for call in calls]

    async def until(self, path: str, count: int) -> None:
        """Wait until so many calls of *path* have come."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.of(path)) >= count)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Note and answer one request."""
        body = json.loads(await request.read() or b"{}")
        now = asyncio.get_running_loop().time()
        self.calls.append(Call(request.path, body, now, dict(request.headers), request.protocol))
        async with self._arrived:
            self._arrived.notify_all()
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            return await self._answer_to(request.path)(request, body)
        finally:
            self._answering.discard(task)

    def hang_up(self) -> None:
        """Answer no request that has come."""
        for task in self._answering:
            task.cancel()

    def _answer_to(self, path: str) -> Answer:
        if path == "/generate":
            return self.script.popleft() if self.script else self.usual
        return self.control.get(path, nothing)


@asynccontextmanager
async def scripted(*script: Answer) -> AsyncIterator[ScriptedServer]:
    """Run a server for the block."""
    server = ScriptedServer()
    server.script.extend(script)
    async with serving(server.answer) as peer:
        server.url = peer.url
        try:
            yield server
        finally:
            server.hang_up()


@asynccontextmanager
async def engine_on(*servers: ScriptedServer | str, **config: Any) -> AsyncIterator[RemoteInfEngine]:
    """Give an engine that is initialized on *servers*, which may be on this loop."""
    options = {"request_timeout": 20.0, "setup_timeout": 10.0, **config}
    engine = RemoteInfEngine(InferenceEngineConfig(**options))
    addresses = [one if isinstance(one, str) else one.url for one in servers]
    try:
        await asyncio.to_thread(engine.initialize, addresses)
        yield engine
    finally:
        await asyncio.to_thread(engine.destroy)


def play_on(loop_factory: LoopFactory, act: Callable[[], Awaitable[None]]) -> None:
    """Run *act* on a new loop, which must not complain."""

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(15):
            await act()

    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert complaints == []


def asking(tokens: int = 4, prompt: int = 3, **more: Any) -> ModelRequest:
    """Return a request for so many tokens."""
    return ModelRequest(list(range(prompt)), GenerationHyperparameters(max_new_tokens=tokens), **more)


def made(tokens: int = 4, prompt: int = 3) -> list[int]:
    """Return what it must be answered."""
    return list(range(prompt, prompt + tokens))


async def until_stage(engine: RemoteInfEngine, stage: str) -> None:
    """Wait until a generation says that it is in this stage."""
    words = {"waiting for a slot": "waiting for a server", "paused": "waiting for generation"}.get(
        stage, stage
    )
    assert engine._state is not None
    generations = engine._state.generations
    await turns_until(lambda: any(words in one.stage for one in generations))


# Answers


def event(body: dict[str, Any], tokens: int, finish: str | None = None) -> bytes:
    """Return the event that says there are so many tokens now."""
    ids = list(range(len(body["input_ids"]), len(body["input_ids"]) + tokens))
    return b"data: " + json.dumps(document(body, ids, finish)).encode() + b"\n\n"


def document(body: dict[str, Any], ids: Sequence[int], finish: str | None) -> dict[str, Any]:
    """Return a reply with these tokens."""
    meta = {
        "id": body["rid"],
        "finish_reason": finish and {"type": finish},
        "completion_tokens": len(ids),
        "output_token_logprobs": [[-0.5, token, None] for token in ids],
    }
    return {"text": "", "output_ids": list(ids), "meta_info": meta}


def making(tokens: int | None = None, finish: str = "length") -> Answer:
    """Answer by *tokens* (None: as many as are asked for), one event each, and the *finish*."""

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        count = body["sampling_params"]["max_new_tokens"] if tokens is None else tokens
        events = [event(body, so_far) for so_far in range(1, count)]
        return await _streamed(request, *events, event(body, count, finish), b"data: [DONE]\n\n")

    return answer


def refusing(status: int, words: str = "no", **headers: str) -> Answer:
    """Answer by an error status."""

    async def answer(_: web.BaseRequest, __: dict[str, Any]) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": words}}, status=status, headers=named)

    return answer


def racing(usual: Answer, known: Iterable[object] = ()) -> Answer:
    """Hang up on each request that comes on a connection which has brought one before; else be *usual*.

    Those in *known* have brought one.
    """
    known = set(known)

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        if request.protocol in known:
            return await hanging_up()(request, body)
        known.add(request.protocol)
        return await usual(request, body)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Answer by one after the other."""
    left = iter(answers)

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        return await next(left)(request, body)

    return answer


def until(gate: asyncio.Event, *, then: Answer) -> Answer:
    """Answer when the test says so."""

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        await gate.wait()
        return await then(request, body)

    return answer


async def nothing(_: web.BaseRequest, __: dict[str, Any]) -> web.StreamResponse:
    """Answer by an empty document."""
    return web.json_response({})


def hanging_up(after: int | None = None) -> Answer:
    """Hang up after so many tokens; None: before an answer."""

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if after is not None:
            await response.prepare(request)
            for so_far in range(1, after + 1):
                await response.write(event(body, so_far))
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def saying(*pieces: bytes, content_type: str = "text/event-stream") -> Answer:
    """Answer by these bytes, as they are."""

    async def answer(request: web.BaseRequest, _: dict[str, Any]) -> web.StreamResponse:
        return await _streamed(request, *pieces, content_type=content_type)

    return answer


def holding(after: int = 0, finish: str | None = None) -> Answer:
    """Begin a stream, give so many tokens, and never end it."""

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with suppress(ConnectionError):
            await response.prepare(request)
            for so_far in range(1, after + 1):
                await response.write(event(body, so_far, finish if so_far == after else None))
            await asyncio.get_running_loop().create_future()
        return response

    return answer


async def silent(_: web.BaseRequest, __: dict[str, Any]) -> web.StreamResponse:
    """Never answer."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def _streamed(
    request: web.BaseRequest, *pieces: bytes, content_type: str = "text/event-stream"
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": content_type})
    with suppress(ConnectionError):
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
    return response
