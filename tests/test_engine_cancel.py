"""Cancelling a generation: it ends soon, whatever it was doing, and its server is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from areal_core._engine import aborts, retries
from areal_core._engine.aborts import abort_leftovers
from areal_core._engine.backends import backend_named
from areal_core._engine.deadlines import Deadlines
from areal_core._engine.events import Events
from areal_core._engine.generation import Generation, Parts
from areal_core._engine.insisting import AFTER_CANCELLATION_S
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy
from areal_core._engine.proof import ask_weights
from areal_core._engine.recovery import probe
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange
from areal_core._http import clients
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import EmbeddedServer
from areal_core.errors import ServerUnreachableError
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.workflow_context import HttpConfig
from conftest import MakeRunner
from engine_tools import an_engine, check_balanced, check_none_live, lives, logs_of
from peers import FullListener
from scripted import (
    Play,
    ScriptedServer,
    asking,
    engine_on,
    hanging_up,
    holding,
    in_turn,
    made,
    nothing,
    refusing,
    saying,
    scripted,
    silent,
    until,
    until_stage,
)
from threaded_loops import gathered, turns_until

ASK, LOAD = "/get_model_info", "/update_weights_from_disk"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for longer than a test takes."""
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 10.0)


async def cancelled(generation: asyncio.Task[Any]) -> None:
    """Cancel a generation that must end by it, soon."""
    began = time.monotonic()
    generation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await generation
    assert time.monotonic() - began < 2


async def check_usable(engine: RemoteInfEngine, server: ScriptedServer) -> None:
    """See that nothing is left of a generation, and that the next is as good as ever."""
    server.script.clear()
    check_balanced(engine)
    assert (await engine.agenerate(asking())).output_tokens == made()


@pytest.mark.parametrize(
    "tokens", [None, 0, 2], ids=["before the answer", "before the tokens", "in the stream"]
)
def test_an_attempt_under_way_is_aborted_by_its_id_before_the_task_ends(
    play: Play, tokens: int | None
) -> None:
    async def act() -> None:
        answer = silent if tokens is None else holding(tokens)
        async with scripted(answer) as server, engine_on(server) as engine:
            generation = asyncio.create_task(engine.agenerate(asking(rid="talk")))
            await server.until("/generate", 1)
            if tokens:
                await turns_until(lambda: len(only(engine)._tokens) == tokens)
            await cancelled(generation)
            assert server.aborted == [call.wire_id for call in server.generations]
            await check_usable(engine, server)

    play(act)


def only(engine: RemoteInfEngine) -> Generation:
    assert engine._state is not None
    (generation,) = engine._state.generations
    return generation


@pytest.mark.parametrize(("status", "aborts_before"), [(503, 0), (500, 1)])
def test_one_that_backs_off_ends_at_once_with_nothing_more_to_abort(
    play: Play, status: int, aborts_before: int
) -> None:
    async def act() -> None:
        async with scripted(refusing(status)) as server, engine_on(server) as engine:
            generation = asyncio.create_task(engine.agenerate(asking()))
            await until_stage(engine, "backing off")
            await cancelled(generation)
            assert (len(server.generations), len(server.aborted)) == (1, aborts_before)
            await check_usable(engine, server)

    play(act)


def test_one_that_waits_for_a_slot_leaves_the_queue(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with (
            scripted(until(gate, then=refusing(400))) as server,
            engine_on(server, max_inflight_per_server=1) as engine,
        ):
            first = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            generation = asyncio.create_task(engine.agenerate(asking()))
            await until_stage(engine, "waiting for a slot")
            await cancelled(generation)
            gate.set()
            await asyncio.wait((first,))
            assert first.exception() is not None
            assert server.aborted == []
            await check_usable(engine, server)

    play(act)


def test_one_that_waits_for_paused_generation_ends_at_once(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            async with engine.paused():
                generation = asyncio.create_task(engine.agenerate(asking()))
                await until_stage(engine, "paused")
                await cancelled(generation)
            assert server.order == []
            await check_usable(engine, server)

    play(act)


def test_one_that_is_connecting_ends_within_the_grace(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aborts, "_AFTER_CANCELLATION_S", 0.2)

    async def act() -> None:
        with FullListener() as url:
            server = Server(Exchange(Address.parse(url), None, 2**20), backend_named("sglang"))
            router, events = Router(None, 10, lambda _: None), Events()
            router.add(server)
            router.put_in(server, lambda: True)
            config = InferenceEngineConfig()
            opening = Opening(events)
            parts = Parts(config, router, opening, Policy(events), events, Deadlines(60.0, opening))
            one = Generation(parts, asking())
            generation = asyncio.create_task(one.run())
            await turns_until(lambda: bool(server.calls))
            await cancelled(generation)
            assert server.in_flight == 0
            for abort in server.aborting:  # it goes on by itself
                abort.cancel()
            await asyncio.gather(*server.aborting, return_exceptions=True)
            assert len(server.unaborted) == 1

    play(act)


def test_one_that_is_aborting_waits_for_the_answer(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with scripted(refusing(500)) as server, engine_on(server) as engine:
            server.control["/abort_request"] = until(gate, then=nothing)
            generation = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/abort_request", 1)
            generation.cancel()
            asyncio.get_running_loop().call_later(0.1, gate.set)
            await cancelled(generation)
            assert gate.is_set()
            assert len(server.aborted) == 1
            await check_usable(engine, server)

    play(act)


@pytest.mark.parametrize("first", [silent, refusing(500)], ids=["by the cancellation", "by the engine"])
def test_an_abort_goes_on_though_its_task_is_cancelled_again_and_again(play: Play, first: Any) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with scripted(first) as server, engine_on(server) as engine:
            server.control["/abort_request"] = in_turn(until(gate, then=refusing(503)), nothing)
            generation = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            if first is not silent:
                await server.until("/abort_request", 1)
            generation.cancel()
            await server.until("/abort_request", 1)
            generation.cancel()
            await asyncio.sleep(0)
            await cancelled(generation)
            gate.set()
            await server.until("/abort_request", 2)  # the first was refused, and made again
            assert set(server.aborted) == {server.generations[0].wire_id}
            await check_usable(engine, server)

    play(act)


@pytest.mark.any_loop
def test_a_server_that_answers_no_abort_costs_the_task_less_than_its_grace(play: Play) -> None:
    assert AFTER_CANCELLATION_S < 5  # the default grace of tasks

    async def act() -> None:
        async with scripted(silent) as server, engine_on(server) as engine:
            server.control["/abort_request"] = silent
            generation = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            began = time.monotonic()
            generation.cancel()
            with pytest.raises(asyncio.CancelledError):
                await generation
            assert time.monotonic() - began < AFTER_CANCELLATION_S + 1

    play(act)


def the_server(engine: RemoteInfEngine) -> Server:
    assert engine._state is not None
    (server,) = engine._state.router.servers
    return server


async def a_crowd(engine: RemoteInfEngine, server: ScriptedServer, count: int) -> list[asyncio.Task[Any]]:
    """Have so many generations under way at *server*."""
    server.usual = holding(1)
    crowd = [asyncio.create_task(engine.agenerate(asking())) for _ in range(count)]
    await turns_until(lambda: engine.stats().servers[0].tokens == count)
    return crowd


def test_a_crowd_that_is_cancelled_at_once_costs_a_server_that_aborts_slowly_nothing(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_config", HttpConfig(control_connect=1.0))

    async def act() -> None:
        gate = asyncio.Event()
        async with scripted() as server, engine_on(server) as engine:
            known, crowd = the_server(engine), await a_crowd(engine, server, 60)
            server.control["/abort_request"] = until(gate, then=nothing)
            for one in crowd:
                one.cancel()
            await server.until("/abort_request", 8)
            later = time.monotonic() + 1.2  # longer than a connection may be waited for
            await turns_until(lambda: time.monotonic() > later)
            await probe(known, 5.0)
            async with engine.paused():
                pass
            assert len(server.aborted) == 8  # half of the connections
            gate.set()
            await gathered(*crowd)
            await turns_until(lambda: not known.aborting)
            assert set(server.aborted) == {call.wire_id for call in server.generations}
            assert (known.why_out, known.departures, known.unaborted) == (None, 0, set())

    play(act)


def test_of_a_crowd_that_is_cancelled_only_the_first_wait_for_a_server_that_takes_no_abort(
    play: Play,
) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with scripted() as server, engine_on(server) as engine:
            known, crowd = the_server(engine), await a_crowd(engine, server, 60)
            server.control = {"/abort_request": until(gate, then=hanging_up()), "/health": refusing(500)}
            for one in crowd:
                one.cancel()
            await server.until("/abort_request", 8)
            gate.set()
            await gathered(*crowd)
            await turns_until(lambda: not known.aborting)
            assert len(server.aborted) == 8
            assert (known.departures, len(known.unaborted)) == (1, 60)

    play(act)


def test_what_could_not_be_aborted_is_aborted_at_once_in_half_of_the_connections(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with scripted() as server, engine_on(server) as engine:
            known, ids = the_server(engine), {f"{number}" for number in range(40)}
            server.control["/abort_request"] = until(gate, then=in_turn(refusing(400), *[nothing] * 60))
            assert engine._state is not None
            engine._state.router.take_out(known, "a test wants it")
            known.unaborted |= ids
            aborting = asyncio.create_task(abort_leftovers(known))
            await server.until("/abort_request", 8)
            await probe(known, 5.0)
            assert len(server.aborted) == 8
            known.unaborted.add("late")
            gate.set()
            await aborting
            assert sorted(server.aborted) == sorted(ids | {"late"})
            assert not known.unaborted

    play(act)


def test_if_one_that_could_not_be_aborted_cannot_be_again_the_others_are_not_tried(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with scripted() as server, engine_on(server) as engine:
            known = the_server(engine)
            server.control["/abort_request"] = until(gate, then=hanging_up())
            known.unaborted |= {f"{number}" for number in range(40)}
            aborting = asyncio.create_task(abort_leftovers(known))
            await server.until("/abort_request", 8)
            gate.set()
            with pytest.raises(ServerUnreachableError, match="hung up before it answered"):
                await aborting
            assert (len(server.aborted), len(known.unaborted)) == (8, 40)

    play(act)


@pytest.mark.parametrize("follows", [False, True], ids=["in control", "following"])
def test_servers_that_are_asked_for_their_weights_on_many_connections_are_so_on_half_of_them(
    play: Play, follows: bool
) -> None:
    async def act() -> None:
        gate, told = asyncio.Event(), saying(b'{"weight_version": "1"}')
        async with scripted() as server:
            server.control |= {ASK: told, LOAD: saying(b'{"success": true}')}
            engine = RemoteInfEngine(InferenceEngineConfig(request_timeout=10.0), follows=follows)
            if follows:
                engine.set_version(1)
            await asyncio.to_thread(engine.initialize, server.url)
            try:
                if not follows:
                    await engine.update_weights_from_disk("weights", 1)
                known, before = the_server(engine), len(server.of(ASK))
                server.control[ASK] = until(gate, then=told)
                generating = asyncio.gather(*(engine.agenerate(asking()) for _ in range(40)))
                await server.until("/generate", 40)
                await server.until(ASK, before + 8)
                await probe(known, 5.0)
                assert len(server.of(ASK)) == before + 8
                alone = asyncio.create_task(ask_weights(known))
                await server.until(ASK, before + 9)
                gate.set()
                assert await alone == 1
                assert [reply.output_versions for reply in await generating] == [[1] * 4] * 40
            finally:
                await asyncio.to_thread(engine.destroy)

    play(act)


def test_weights_are_loaded_and_read_back_though_a_crowd_is_aborted(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()

        async def slowly(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            if not body.get("abort_all"):
                await gate.wait()
            return await nothing(request, body)

        async with scripted() as server, engine_on(server) as engine:
            crowd = await a_crowd(engine, server, 60)
            server.control |= {
                "/abort_request": slowly,
                LOAD: saying(b'{"success": true}'),
                ASK: saying(b'{"weight_version": "1"}'),
            }
            for one in crowd:
                one.cancel()
            await server.until("/abort_request", 8)
            async with asyncio.timeout(5):
                await engine.update_weights_from_disk("weights", 1)
            assert (len(server.of(ASK)), engine.get_version()) == (1, 1)
            gate.set()
            await gathered(*crowd)

    play(act)


def test_a_hundred_cancelled_tasks_of_a_runner_leave_nothing_on_the_server(
    make_runner: MakeRunner, make_embedded_server: Any
) -> None:
    server: EmbeddedServer = make_embedded_server(ms_per_token=20, sigma=0)
    runner = make_runner(200)
    with an_engine(server) as engine:
        tasks = [runner.submit(engine.agenerate, asking(500)) for _ in range(100)]
        server.stats(in_flight=100)
        for task in tasks:
            runner.cancel(task)
        for task in tasks:
            assert runner.wait_for_task(task, timeout=10).status == "cancelled"
        check_none_live(server)
        assert {life.how for life in lives(logs_of(server))} <= {"abort", "disconnect"}
        check_balanced(engine)
