"""On which loop the servers are looked after, and that they are wherever the engine is used."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from contextvars import ContextVar

import pytest

import noticed
from areal_core._engine.events import Events
from areal_core._engine.lookout import Lookout
from areal_core._engine.router import Router
from areal_core.remote_inf_engine import RemoteInfEngine
from engine_tools import a_request, an_engine, check_none_live, check_reply
from reused_servers import ReusedServer
from threaded_loops import MakeLoop, ThreadedLoop, threaded_loops, turns_until

LONG = a_request(most=100_000)
SHORT = a_request(most=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.1)
    noticed.notice(monkeypatch, Router, "put_in")
    noticed.notice(monkeypatch, Lookout, "_start")


@pytest.fixture
def servers(servers: list[ReusedServer]) -> list[ReusedServer]:
    return servers[:2]


def lookout_of(engine: RemoteInfEngine) -> Lookout:
    assert engine._state is not None
    return engine._state.lookout


def looks_from(engine: RemoteInfEngine) -> asyncio.AbstractEventLoop | None:
    """Return the loop on which the servers of *engine* are looked after."""
    return place_of(lookout_of(engine))


def place_of(lookout: Lookout) -> asyncio.AbstractEventLoop | None:
    task = lookout._task
    return None if task is None or task.done() else task.get_loop()


async def look() -> None:
    """Look after no servers."""
    await asyncio.Event().wait()


async def use(lookout: Lookout) -> None:
    """Use an engine until cancelled."""
    with lookout.in_use():
        await asyncio.Event().wait()


def test_a_server_is_found_again_by_who_waits_on_another_loop_than_the_first_that_has_ended(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    request = a_request(most=300)
    with (
        an_engine(servers[0], setup_timeout=3.0) as engine,
        threaded_loops(loop_factory, 2) as (first, second),
    ):
        first.run(engine.agenerate(SHORT))
        waits = second.begin(engine.agenerate(request))
        servers[0].stats(in_flight=1)
        first.close()
        servers[0].kill()
        servers[0].start()
        check_reply(waits.result(20), request, latest=0)


def test_when_a_loop_ends_in_the_middle_of_generations_another_with_generations_takes_over(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine, threaded_loops(loop_factory, 2) as (first, second):
        using = [first.begin(engine.agenerate(LONG))]
        noticed.wait_for(lambda: looks_from(engine) is first.loop)
        using.append(second.begin(engine.agenerate(LONG)))
        second.settle()
        assert looks_from(engine) is first.loop
        first.close()
        noticed.wait_for(lambda: looks_from(engine) is second.loop)
    check_none_live(*servers)


def test_a_loop_that_is_closed_with_its_tasks_as_they_are_hands_over_too(loop_factory: MakeLoop) -> None:
    lookout = Lookout(look, lambda: None, Events())
    with threaded_loops(loop_factory, 1) as (other,):
        gone = ThreadedLoop(loop_factory)
        using = [gone.begin(use(lookout))]  # only this keeps them
        gone.settle()
        using.append(other.begin(use(lookout)))
        other.settle()
        assert place_of(lookout) is gone.loop
        tasks = asyncio.all_tasks(gone.loop)
        gone.break_off()
        noticed.wait_for(lambda: place_of(lookout) is other.loop)
        for task in tasks:  # asyncio complains of tasks that end like this
            task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_time_without_servers_is_counted_anew_only_after_nobody_looked_for_them(
    loop_factory: MakeLoop,
) -> None:
    gaps: list[None] = []
    lookout = Lookout(look, lambda: gaps.append(None), Events())
    with threaded_loops(loop_factory, 3) as (first, second, third):
        for loop in (first, first, second, first, second):
            using = loop.begin(use(lookout))
            loop.settle()
            assert place_of(lookout) is loop.loop
            using.cancel()
            loop.settle()
        assert len(gaps) == 1
        second.close()
        using = third.begin(use(lookout))
        third.settle()
        assert len(gaps) == 2


def test_a_loop_that_only_stops_leaves_the_servers_to_one_with_generations(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    stops, using = loop_factory(), []
    with an_engine(*servers) as engine, threaded_loops(loop_factory, 1) as (other,):

        async def main() -> None:
            async with engine.paused():
                await turns_until(lambda: looks_from(engine) is stops)
                using.append(other.begin(engine.agenerate(LONG)))
                await asyncio.to_thread(other.settle)
                assert len(lookout_of(engine)._uses) == 2
                assert looks_from(engine) is stops

        stops.run_until_complete(main())
        noticed.wait_for(lambda: looks_from(engine) is other.loop)
        stops.close()


def test_a_generation_takes_the_servers_over_from_a_loop_that_does_not_use_them(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine, threaded_loops(loop_factory, 2) as (first, second):
        first.run(engine.agenerate(SHORT))
        assert looks_from(engine) is first.loop
        second.run(engine.agenerate(SHORT))
        assert looks_from(engine) is second.loop
        second.run(engine.agenerate(SHORT))
        second.close()
        assert looks_from(engine) is None


def test_a_server_that_was_added_is_taken_in_with_the_next_control_call(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    with an_engine(servers[0]) as engine, threaded_loops(loop_factory, 1) as (loop,):
        engine.add_server(servers[1].addr)
        assert engine.servers[servers[1].addr] == "new"
        loop.run(engine.continue_generation())
        noticed.wait_for(lambda: engine.servers[servers[1].addr] is None)


@pytest.mark.any_loop
def test_a_control_call_before_the_first_generation_waits_for_a_silent_server_no_longer_than_later(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers, silence_timeout=0.4, control_timeout=4.0) as engine:
        os.kill(servers[0].pid, signal.SIGSTOP)
        try:
            with threaded_loops(loop_factory, 1) as (loop,):
                loop.run(engine.pause_generation())
                assert (engine.servers[servers[0].addr] or "").startswith("not well: ")
                assert engine.servers[servers[1].addr] is None
        finally:
            os.kill(servers[0].pid, signal.SIGCONT)


def test_what_the_first_workflow_has_in_its_context_is_not_kept(loop_factory: MakeLoop) -> None:
    class Trajectory:
        pass

    holds = ContextVar[Trajectory]("holds")

    async def look_in_context() -> None:
        assert holds.get(None) is None
        await look()

    lookout = Lookout(look_in_context, lambda: None, Events())

    async def workflow() -> weakref.ref[Trajectory]:
        trajectory = Trajectory()
        holds.set(trajectory)
        with lookout.in_use():
            await asyncio.sleep(0)
        return weakref.ref(trajectory)

    with threaded_loops(loop_factory, 1) as (loop,):
        kept = loop.run(workflow())
        loop.settle()
        gc.collect()
        assert lookout._task is not None
        assert not lookout._task.done()
        assert kept() is None
