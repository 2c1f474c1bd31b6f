"""What fails a probe here, and says nothing of the server, gives up nothing there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.resolver import ThreadedResolver

from areal_core._engine import prober
from areal_core._engine.backend import HttpCall
from areal_core._engine.server import Server
from areal_core.errors import ControlError, InferenceError
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.workflow_context import HttpConfig, configure_http, get_control_session
from scarcity import descriptors
from scripted import Answer, Play, asking, engine_on, event, made, scripted, silent, until_stage
from threaded_loops import turns_until

Trouble = Callable[[Server], AbstractAsyncContextManager[None]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.05)
    configure_http(HttpConfig(control_connect=0.1))


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[InferenceError]:
    """Collect what probes of servers in rotation fail with."""
    ask, failures = prober._ask, list[InferenceError]()

    async def noted(server: Server, timeout_s: float) -> InferenceError | None:
        why = await ask(server, timeout_s)
        if why is not None:
            failures.append(why)
        return why

    monkeypatch.setattr(prober, "_ask", noted)
    return failures


async def well(_: web.BaseRequest, __: dict[str, Any]) -> web.StreamResponse:
    """Answer, and have the next call open a connection of its own."""
    response = web.json_response({})
    response.force_close()
    return response


def in_two(gate: asyncio.Event) -> Answer:
    """Answer by four tokens, the last two when the test says so."""

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await response.write(event(body, 2))
            await gate.wait()
            await response.write(event(body, 4, "length"))
        return response

    return answer


@contextlib.asynccontextmanager
async def no_descriptors(_: Server) -> AsyncIterator[None]:
    with descriptors(0):
        yield


@contextlib.asynccontextmanager
async def no_names(_: Server) -> AsyncIterator[None]:
    async def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadedResolver, "resolve", fail)
        (await get_control_session()).connector.clear_dns_cache()  # type: ignore[union-attr]
        yield


@contextlib.asynccontextmanager
async def full_pool(server: Server) -> AsyncIterator[None]:
    session = await get_control_session()
    calls = [
        asyncio.create_task(server.exchange.call(session, HttpCall("POST", "/never", b"{}"), 60.0))
        for _ in range(16)
    ]
    try:
        yield
    finally:
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


TROUBLES = {
    "descriptors": (no_descriptors, "Too many open files"),
    "names": (no_names, "Temporary failure in name resolution"),
    "pool": (full_pool, "no connection in time"),
}


def known(engine: RemoteInfEngine) -> Server:
    assert engine._state is not None
    (server,) = engine._state.router.servers
    return server


async def go_on_through(
    trouble: Trouble,
    is_enough: Callable[[RemoteInfEngine], bool],
    before: Callable[[RemoteInfEngine], None] = lambda _: None,
    after: Callable[[RemoteInfEngine], None] = lambda _: None,
) -> None:
    """See that a generation comes through the *trouble*, which lasts until there was enough of it, in one."""
    gate = asyncio.Event()
    async with scripted() as server:
        server.control |= {"/health": well, "/never": silent}
        server.script.append(in_two(gate))
        url = server.url.replace("127.0.0.1", "localhost") if trouble is no_names else server.url
        async with engine_on(url) as engine:
            generating = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            async with trouble(known(engine)):
                before(engine)
                await turns_until(lambda: is_enough(engine) or generating.done())
                after(engine)
            gate.set()
            reply = await generating
            assert (reply.output_tokens, reply.segments) == (made(), 1)
            assert len(server.generations) == 1


@pytest.mark.parametrize(("trouble", "words"), TROUBLES.values(), ids=TROUBLES)
def test_probes_that_fail_by_a_trouble_of_our_own_are_silence_and_cut_nothing_at_once(
    play: Play, failures: list[InferenceError], trouble: Trouble, words: str
) -> None:
    async def act() -> None:
        def see_it_stays(engine: RemoteInfEngine) -> None:
            assert all(words in str(one) for one in failures)
            assert known(engine).departures == 0

        await go_on_through(trouble, lambda _: len(failures) >= 3, after=see_it_stays)

    play(act)


def test_what_goes_on_at_a_server_that_is_out_is_not_cut_for_want_of_descriptors(play: Play) -> None:
    async def act() -> None:
        def take_out(engine: RemoteInfEngine) -> None:
            assert engine._state is not None
            engine._state.router.take_out(known(engine), "the test says so")

        def was_tried(engine: RemoteInfEngine) -> bool:
            return "Too many open files" in (known(engine).why_out or "")

        await go_on_through(no_descriptors, was_tried, before=take_out)

    play(act)


def test_a_generation_that_finds_no_descriptor_goes_on_when_there_are_some(play: Play) -> None:
    async def act() -> None:
        async with scripted(silent) as server, engine_on(server) as engine:
            first = asyncio.create_task(engine.agenerate(asking()))  # which has a connection, and keeps it
            await server.until("/health", 5)  # others are closed by now
            async with no_descriptors(known(engine)):
                waiting = asyncio.create_task(engine.agenerate(asking()))
                await until_stage(engine, "backing off")
            assert (await waiting).output_tokens == made()
            assert known(engine).departures == 0
            first.cancel()
            await asyncio.wait((first,))

    play(act)


def test_a_control_call_that_finds_no_descriptor_fails_and_gives_up_no_server(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            await engine.agenerate(asking())
            server.control["/health"] = silent
            await server.until("/health", len(server.of("/health")) + 1)  # on the connection that there is
            async with no_descriptors(known(engine)):
                with pytest.raises(ControlError, match="Too many open files"):
                    await engine.pause_generation()
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert known(engine).departures == 0

    play(act)
