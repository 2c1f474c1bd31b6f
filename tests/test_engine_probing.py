"""What fails a probe here, and says nothing of the server, gives up nothing there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.resolver import ThreadedResolver

from areal_core._engine import aborts, prober, proof
from areal_core._engine.backend import HttpCall
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.errors import ControlError, InferenceError
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.workflow_context import (
    HttpConfig,
    configure_http,
    get_aiohttp_session,
    get_control_session,
)
from scripted import (
    Answer,
    Play,
    ScriptedServer,
    asking,
    engine_on,
    event,
    holding,
    made,
    scripted,
    silent,
    until_stage,
)
from threaded_loops import turns_until

Trouble = Callable[[Server], AbstractAsyncContextManager[None]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.05)


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


@pytest.fixture
def aborts_failed(monkeypatch: pytest.MonkeyPatch) -> list[InferenceError]:
    """Collect what aborts fail with; each is made again soon while something is short here."""
    really, failed = aborts._call, list[InferenceError]()

    async def noted(server: Server, call: HttpCall, unless_lost: bool) -> None:
        try:
            await really(server, call, unless_lost)
        except InferenceError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(aborts, "_call", noted)
    monkeypatch.setattr(aborts, "_WHILE_SHORT_S", (0.02,) * 500)
    return failed


def closing(answer: Any) -> Answer:
    """Answer by that, and have the next call open a connection of its own."""

    async def act(_: web.BaseRequest, __: dict[str, Any]) -> web.StreamResponse:
        response = web.json_response(answer)
        response.force_close()
        return response

    return act


well = closing({})


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
    """Let none be opened, not even in place of one that is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def no_names(_: Server) -> AsyncIterator[None]:
    async def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadedResolver, "resolve", fail)
        for session in (await get_control_session(), await get_aiohttp_session()):
            session.connector.clear_dns_cache()  # type: ignore[union-attr]
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


BRIEF = {name: TROUBLES[name] for name in ("descriptors", "names")}
brief = pytest.mark.parametrize(("trouble", "words"), BRIEF.values(), ids=BRIEF)


def url_of(server: ScriptedServer, trouble: Trouble) -> str:
    """Return the address of *server*, by name if the *trouble* is of names."""
    return server.url.replace("127.0.0.1", "localhost") if trouble is no_names else server.url


async def occupy_control(server: ScriptedServer) -> None:
    """Have a probe hold the one connection that there is for control calls."""
    server.control["/health"] = silent
    await server.until("/health", len(server.of("/health")) + 1)


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
        async with engine_on(url_of(server, trouble)) as engine:
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
    configure_http(HttpConfig(control_connect=0.1))

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


@brief
def test_a_generation_that_a_trouble_of_our_own_keeps_from_its_server_goes_on_when_it_is_over(
    play: Play, trouble: Trouble, words: str
) -> None:
    async def act() -> None:
        async with scripted(silent) as server, engine_on(url_of(server, trouble)) as engine:
            first = asyncio.create_task(engine.agenerate(asking()))  # which has a connection, and keeps it
            await server.until("/health", 5)  # others are closed by now
            async with trouble(known(engine)):
                waiting = asyncio.create_task(engine.agenerate(asking()))
                await until_stage(engine, "backing off")
            assert (await waiting).output_tokens == made()
            assert known(engine).departures == 0
            first.cancel()
            await asyncio.wait((first,))

    play(act)


@brief
def test_a_control_call_that_fails_by_a_trouble_of_our_own_gives_up_no_server(
    play: Play, trouble: Trouble, words: str
) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(url_of(server, trouble)) as engine:
            await engine.agenerate(asking())
            await occupy_control(server)
            async with trouble(known(engine)):
                with pytest.raises(ControlError, match=words):
                    await engine.pause_generation()
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert known(engine).departures == 0

    play(act)


@brief
def test_an_abort_that_a_trouble_of_our_own_keeps_from_its_server_is_made_when_it_is_over(
    play: Play, trouble: Trouble, words: str, aborts_failed: list[InferenceError]
) -> None:
    async def act() -> None:
        async with scripted(holding(1)) as server, engine_on(url_of(server, trouble)) as engine:
            generating = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            await occupy_control(server)
            async with trouble(known(engine)):
                generating.cancel()
                await turns_until(lambda: len(aborts_failed) >= 5)
            await server.until("/abort_request", 1)
            await turns_until(lambda: not known(engine).aborting)
            assert all(words in str(error) for error in aborts_failed)
            assert server.aborted == [call.wire_id for call in server.generations]
            assert (known(engine).departures, known(engine).unaborted) == (0, set())
            await asyncio.wait((generating,))

    play(act)


@pytest.mark.usefixtures("aborts_failed")
def test_a_server_that_is_kept_from_us_for_long_leaves_rotation_by_an_abort_that_is_made_later(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aborts, "_WHILE_SHORT_S", (0.01,))

    async def act() -> None:
        async with scripted(holding(1)) as server, engine_on(server) as engine:
            generating = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            await occupy_control(server)
            async with no_descriptors(known(engine)):
                generating.cancel()
                await asyncio.wait((generating,))
                assert (known(engine).departures, len(known(engine).unaborted)) == (1, 1)
            server.control["/health"] = well
            await turns_until(lambda: known(engine).why_out is None)
            assert server.aborted == [call.wire_id for call in server.generations]

    play(act)


@brief
def test_an_attempt_whose_weights_a_trouble_of_our_own_keeps_from_us_is_aborted_and_nobodys_fault(
    play: Play,
    trouble: Trouble,
    words: str,
    aborts_failed: list[InferenceError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "_BETWEEN_TRIES_S", (0.01,))
    monkeypatch.setattr("areal_core._engine.retries._full_jitter", lambda _: 0.0)
    blamed = list[Server]()
    monkeypatch.setattr(Router, "note_failure", lambda _, server: blamed.append(server))

    async def act() -> None:
        gate = asyncio.Event()

        async def gated(_: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            await gate.wait()
            return web.json_response(json.loads(event(body, 4, "length").removeprefix(b"data: ")))

        async with scripted(gated) as server, engine_on(url_of(server, trouble)) as engine:
            server.control |= {
                "/health": well,
                "/update_weights_from_disk": closing({"success": True}),
                "/get_model_info": closing({"weight_version": "1"}),
                "/pause_generation": well,
                "/continue_generation": well,
            }
            await engine.update_weights_from_disk("weights", 1)
            asked = len(server.of("/get_model_info"))
            generating = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            await occupy_control(server)
            async with trouble(known(engine)):
                gate.set()
                await turns_until(lambda: bool(aborts_failed) or generating.done())
                assert len(server.of("/get_model_info")) == asked
                assert all(words in str(error) for error in aborts_failed)
            assert (await generating).output_versions == [1] * 4
            first, second = (call.wire_id for call in server.generations)
            assert server.order == [("generate", first), ("abort", first), ("generate", second)]
            assert (blamed, known(engine).departures) == ([], 0)

    play(act)


def test_a_server_whose_addresses_cannot_be_reached_for_different_reasons_is_gone(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(_: Any, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        return [
            {"hostname": host, "host": one, "port": port, "family": family, "proto": 0, "flags": 0}
            for one, family in (("127.0.0.1", socket.AF_INET), ("ff02::1", socket.AF_INET6))
        ]  # nobody can connect to a group

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)

    async def act() -> None:
        async with contextlib.AsyncExitStack() as life:
            server = await life.enter_async_context(scripted())
            url = server.url.replace("127.0.0.1", "model.example")
            async with engine_on(url, silence_timeout=600.0) as engine:
                assert (await engine.agenerate(asking())).output_tokens == made()
                await life.aclose()
                await turns_until(lambda: known(engine).why_out is not None)
                assert "Multiple exceptions" in (known(engine).why_out or "")

    play(act)


def test_a_server_whose_name_is_gone_leaves_and_keeps_nobody_from_the_others(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def act() -> None:
        async with contextlib.AsyncExitStack() as life:
            gone, well = [await life.enter_async_context(scripted()) for _ in range(2)]
            name = gone.url.replace("127.0.0.1", "localhost")
            engine = await life.enter_async_context(engine_on(name, well))
            monkeypatch.setattr(ThreadedResolver, "resolve", fail)
            await engine.pause_generation()
            await engine.continue_generation()
            assert list(engine.servers.values()).count(None) == 1
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert not gone.generations

    play(act)
