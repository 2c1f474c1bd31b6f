"""A server in rotation goes on where generation is open, and has the weights that the version says: also
where it comes or leaves in the middle of a control call, and where that is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import noticed
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.errors import ControlError, WeightUpdateError
from areal_core.remote_inf_engine import RemoteInfEngine
from scripted import (
    Answer,
    LoopFactory,
    ScriptedServer,
    asking,
    engine_on,
    in_turn,
    made,
    nothing,
    play_on,
    refusing,
    saying,
    scripted,
    silent,
    until,
)
from threaded_loops import turns_until

pytestmark = pytest.mark.any_loop
LOAD = "/update_weights_from_disk"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.1)
    noticed.notice(monkeypatch, Router, "put_in", "take_out")


def of(engine: RemoteInfEngine, server: ScriptedServer) -> Server:
    """Return what *engine* knows of *server*."""
    assert engine._state is not None
    return next(one for one in engine._state.router.servers if server.url.endswith(one.name))


def is_paused(server: ScriptedServer) -> bool:
    """Return whether *server* was told last to pause."""
    told = [call.path for call in server.calls if call.path.endswith("e_generation")]
    return bool(told) and told[-1] == "/pause_generation"


def loaded() -> Answer:
    """Answer that the weights are there."""
    return saying(b'{"success": true}', content_type="application/json")


def take_out(engine: RemoteInfEngine, server: ScriptedServer, why: str = "the test says so") -> None:
    """Take *server* out of rotation."""
    assert engine._state is not None
    engine._state.router.take_out(of(engine, server), why)


async def until_in(engine: RemoteInfEngine, server: ScriptedServer) -> None:
    """Wait until *server* is in rotation."""
    await turns_until(lambda: of(engine, server).why_out is None)


@contextlib.contextmanager
def kept_out(engine: RemoteInfEngine, server: ScriptedServer) -> Iterator[None]:
    """Keep *server* out of rotation for the block."""
    server.control["/health"] = refusing(503)
    take_out(engine, server)
    try:
        yield
    finally:
        del server.control["/health"]


@contextlib.asynccontextmanager
async def two(**config: Any) -> AsyncIterator[tuple[ScriptedServer, ScriptedServer, RemoteInfEngine]]:
    """Run two servers for the block, with an engine that looks after them."""
    async with scripted() as a, scripted() as b, engine_on(a, b, **config) as engine:
        await engine.agenerate(asking())
        yield a, b, engine


async def check_usable(engine: RemoteInfEngine, *servers: ScriptedServer) -> None:
    """See that generation is open, that *servers* are in rotation and go on, and no other is."""
    assert engine._state is not None
    assert engine._state.opening.is_open
    for server in servers:
        await until_in(engine, server)
        assert not is_paused(server)
    for _ in range(4):
        assert (await engine.agenerate(asking())).output_tokens == made()


@pytest.mark.parametrize("ends", ["refused", "cancelled"])
def test_a_server_that_returns_during_a_pause_that_fails_is_continued(
    loop_factory: LoopFactory, ends: str
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            answers = asyncio.Event()
            b.control["/pause_generation"] = until(answers, then=refusing(500))
            with kept_out(engine, a):
                pausing = asyncio.create_task(engine.pause_generation())
                await b.until("/pause_generation", 1)
            await until_in(engine, a)
            assert is_paused(a)
            if ends == "cancelled":
                pausing.cancel()
            else:
                answers.set()
            with pytest.raises((ControlError, asyncio.CancelledError)):
                await pausing
            await check_usable(engine, a, b)

    play_on(loop_factory, act)


def test_a_server_that_leaves_and_returns_while_others_are_continued_is_continued(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            await engine.pause_generation()
            answers = asyncio.Event()
            b.control["/continue_generation"] = until(answers, then=nothing)
            asked = len(a.of("/continue_generation"))
            continuing = asyncio.create_task(engine.continue_generation())
            await a.until("/continue_generation", asked + 1)
            await turns_until(lambda: not of(engine, a).may_be_paused)
            take_out(engine, a)
            await until_in(engine, a)
            assert is_paused(a)
            answers.set()
            await continuing
            await check_usable(engine, a, b)

    play_on(loop_factory, act)


def test_a_roll_back_that_is_cancelled_leaves_no_server_in_use_that_may_have_either_weights(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            a.control[LOAD] = b.control[LOAD] = loaded()
            await engine.update_weights_from_disk("/1", 1)
            rolls_on = asyncio.Event()
            a.control[LOAD] = in_turn(loaded(), until(rolls_on, then=loaded()))
            b.control[LOAD] = in_turn(refusing(500), loaded())
            updating = asyncio.create_task(engine.update_weights_from_disk("/2", 2))
            await a.until(LOAD, 3)  # the third gives it the first weights again
            await b.until(LOAD, 3)
            await turns_until(lambda: not of(engine, b).weights_unknown)
            a.control[LOAD] = b.control[LOAD] = loaded()
            updating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await updating
            assert of(engine, a).why_out is not None
            loads = len(a.of(LOAD))
            rolls_on.set()
            await check_usable(engine, a, b)
            assert [call.body["model_path"] for call in a.of(LOAD)[loads:]] == ["/1"]

    play_on(loop_factory, act)


@pytest.mark.parametrize("fails", ["update", "continue"])
def test_what_is_held_by_a_server_that_leaves_paused_goes_on_elsewhere(
    loop_factory: LoopFactory, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.calls._BETWEEN_TRIES_S", (0.01,))

    async def act() -> None:
        async with two() as (a, b, engine):
            a.control[LOAD] = b.control[LOAD] = loaded()
            await engine.update_weights_from_disk("/1", 1)
            with kept_out(engine, a):
                b.usual = silent  # as to what came a moment after it was paused
                came = len(b.generations)
                held = asyncio.create_task(engine.agenerate(asking()))
                await b.until("/generate", came + 1)
            await until_in(engine, a)
            b.control["/health"] = refusing(503)
            if fails == "update":
                b.control[LOAD] = refusing(500)
                with pytest.raises(WeightUpdateError):
                    await engine.update_weights_from_disk("/2", 2)
            else:
                b.control["/continue_generation"] = refusing(500)
                await engine.pause_generation()
                with pytest.raises(ControlError):
                    await engine.continue_generation()
            assert (await held).output_tokens == made()
            assert b.aborted == [b.generations[came].wire_id]

    play_on(loop_factory, act)


def test_a_server_that_is_lost_after_it_loaded_does_not_return_with_what_others_loaded(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            loads = asyncio.Event()
            a.control[LOAD], b.control[LOAD] = loaded(), until(loads, then=loaded())
            updating = asyncio.create_task(engine.update_weights_from_disk("/1", 1))
            await b.until(LOAD, 1)
            await turns_until(lambda: of(engine, a).weights == 1)
            take_out(engine, a)  # and it is restarted, with the weights that it began with
            loads.set()
            await updating
            await check_usable(engine, a, b)
            assert len(a.of(LOAD)) == 2

    play_on(loop_factory, act)


def test_a_server_that_returns_between_two_calls_that_give_weights_stays_out(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            async with engine.paused():
                with kept_out(engine, b):
                    await engine.call_all("/give", {"part": 1})
                probes = len(b.of("/health"))
                await b.until("/health", probes + 3)  # it has returned by now, if it does
                await engine.call_all("/give", {"part": 2})
                engine.set_version(1)
            why = "nobody here has the weights of version 1"
            await turns_until(lambda: why in (of(engine, b).why_out or ""))
            await check_usable(engine, a)
            assert not b.of("/give")

    play_on(loop_factory, act)


def test_a_server_that_returns_after_calls_that_gave_no_weights_is_used(loop_factory: LoopFactory) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            async with engine.paused():
                with kept_out(engine, b):
                    await engine.call_all("/flush_cache")
            await check_usable(engine, a, b)

    play_on(loop_factory, act)


def test_calls_in_a_pause_in_which_the_engine_ends_are_over_with_it(loop_factory: LoopFactory) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            await engine.pause_generation()
            await engine.call_all("/flush_cache")
            await asyncio.to_thread(engine.destroy)
            await asyncio.to_thread(engine.initialize, [a.url, b.url])
            await check_usable(engine, a, b)

    play_on(loop_factory, act)


def test_calls_in_a_pause_are_over_with_an_update_that_fails(loop_factory: LoopFactory) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            a.control[LOAD] = b.control[LOAD] = loaded()

            async def update() -> None:
                async with engine.paused():
                    await engine.call_all("/flush_cache")
                    with kept_out(engine, a), kept_out(engine, b):
                        await engine.update_weights_from_disk("/1", 1)

            with pytest.raises(WeightUpdateError):
                await update()
            await until_in(engine, a)
            await until_in(engine, b)
            await engine.update_weights_from_disk("/1", 1)
            await check_usable(engine, a, b)

    play_on(loop_factory, act)


def test_a_server_that_waits_for_a_version_says_so(loop_factory: LoopFactory) -> None:
    async def act() -> None:
        async with two() as (_, b, engine), engine.paused():
            with kept_out(engine, b):
                await engine.call_all("/give")
            why = "it waits until it is known which weights the others have"
            await turns_until(lambda: of(engine, b).why_out == why)

    play_on(loop_factory, act)


def test_what_pauses_in_a_context_that_pauses_leaves_it_to_that_to_continue(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            async with engine.paused():
                await engine.pause_generation()
            await check_usable(engine, a, b)
            await engine.pause_generation()
            async with engine.paused():
                pass
            assert is_paused(a)

    play_on(loop_factory, act)


def test_what_is_held_by_a_server_that_is_paused_as_it_leaves_goes_on_elsewhere(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            with kept_out(engine, a):
                b.usual = silent
                came = len(b.generations)
                held = asyncio.create_task(engine.agenerate(asking()))
                await b.until("/generate", came + 1)
            await until_in(engine, a)

            async def leave(request: Any, body: Any) -> Any:
                b.control["/health"] = refusing(503)
                of(engine, b).may_be_paused = False  # as a moment before it was told to pause
                take_out(engine, b)
                of(engine, b).may_be_paused = True
                return await nothing(request, body)

            b.control["/pause_generation"] = leave
            await engine.pause_generation()
            await engine.continue_generation()
            assert (await held).output_tokens == made()

    play_on(loop_factory, act)


def test_a_server_that_a_loop_was_bringing_in_as_it_stopped_is_brought_in_on_another(
    loop_factory: LoopFactory,
) -> None:
    async def act() -> None:
        here, stops = asyncio.get_running_loop(), loop_factory()
        async with two() as (a, b, engine):
            goes_on = asyncio.Event()
            told = len(a.of("/continue_generation"))

            async def until_it_is_told() -> None:
                await engine.agenerate(asking())
                a.control["/continue_generation"] = until(goes_on, then=nothing)
                take_out(engine, a)
                coming = a.until("/continue_generation", told + 1)
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coming, here))

            async def until_all_has_ended() -> None:
                others = asyncio.all_tasks() - {asyncio.current_task()}
                await asyncio.wait(others)

            await asyncio.to_thread(stops.run_until_complete, until_it_is_told())
            del a.control["/continue_generation"]
            await engine.agenerate(asking())
            await check_usable(engine, a, b)
            goes_on.set()
            await asyncio.to_thread(stops.run_until_complete, until_all_has_ended())
            await asyncio.to_thread(stops.close)

    play_on(loop_factory, act)


@pytest.mark.parametrize("again", ["is added again", "is there when the engine begins again"])
def test_a_server_that_may_have_any_weights_stays_out_when_it(loop_factory: LoopFactory, again: str) -> None:
    async def act() -> None:
        async with two() as (a, b, engine):
            a.control[LOAD], b.control[LOAD] = loaded(), refusing(500)
            with pytest.raises(WeightUpdateError):
                await engine.update_weights_from_disk("/1", 1)
            assert None not in engine.servers.values()
            if again == "is added again":
                engine.remove_server(a.url)
                engine.add_server(a.url)
            else:
                await asyncio.to_thread(engine.destroy)
                await asyncio.to_thread(engine.initialize, [a.url, b.url])
                assert None not in engine.servers.values()
            await turns_until(lambda: "nobody here has" in (of(engine, a).why_out or ""))
            b.control[LOAD] = loaded()
            await engine.update_weights_from_disk("/2", 2)
            await check_usable(engine, a, b)

    play_on(loop_factory, act)


def test_servers_that_wait_for_an_update_count_for_the_pause_before_it(loop_factory: LoopFactory) -> None:
    async def act() -> None:
        async with two(min_servers=2) as (a, b, engine):
            a.control[LOAD], b.control[LOAD] = loaded(), refusing(500)
            with pytest.raises(WeightUpdateError):
                await engine.update_weights_from_disk("/1", 1)
            await turns_until(lambda: all("nobody here" in (why or "") for why in engine.servers.values()))
            b.control[LOAD] = loaded()
            async with engine.paused():
                await engine.update_weights_from_disk("/2", 2)
            await check_usable(engine, a, b)

    play_on(loop_factory, act)
