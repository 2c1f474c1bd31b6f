"""The one deadline of a generation: what counts against it, what does not, and what ends a wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web
from tenacity import wait_random_exponential

from areal_core._engine import aborts, opening, retries
from areal_core._engine.deadlines import Deadlines
from areal_core._engine.events import Events
from areal_core._engine.limits import Limits
from areal_core._engine.opening import Opening
from areal_core._engine.server import Pin
from areal_core.embedded import EmbeddedServer
from areal_core.errors import EngineStoppedError, GenerationTimeoutError, ServerStatusError
from areal_core.remote_inf_engine import RemoteInfEngine
from conftest import MakeRunner
from engine_tools import an_engine
from logged import LogLines
from scripted import (
    Answer,
    Play,
    asking,
    engine_on,
    event,
    hanging_up,
    holding,
    made,
    refusing,
    saying,
    scripted,
    silent,
    until,
    until_stage,
)
from threaded_loops import turns_until


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for so long that a test that does so fails."""
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 100.0)


def test_the_error_says_what_there_is_and_what_was_done_last_and_the_server_is_told(play: Play) -> None:
    async def act() -> None:
        script = [hanging_up(1), holding(2)]
        async with scripted(*script) as server, engine_on(server, request_timeout=0.3) as engine:
            with pytest.raises(GenerationTimeoutError) as late:
                await engine.agenerate(asking(7))
            assert isinstance(late.value, TimeoutError)
            name = server.url.removeprefix("http://")
            assert str(late.value) == (
                "no complete reply within request_timeout=0.3 s: 3 of 7 tokens after 2 attempts, "
                f"last generating on {name}"
            )
            assert server.aborted == [call.wire_id for call in server.generations]

    play(act)


@pytest.mark.parametrize("answer", [silent, holding(0)], ids=["silent", "headers only"])
def test_a_server_that_never_answers_costs_the_deadline_and_no_more(play: Play, answer: Answer) -> None:
    async def act() -> None:
        async with scripted(answer) as server, engine_on(server, request_timeout=0.2) as engine:
            with pytest.raises(GenerationTimeoutError, match="0 of 4 tokens after 1 attempts, last gen"):
                await engine.agenerate(asking())
            assert len(server.aborted) == 1
            assert (await engine.agenerate(asking())).output_tokens == made()

    play(act)


@pytest.mark.parametrize("retry_after", ["0", "3600"])
@pytest.mark.usefixtures("patient")
def test_a_delay_that_would_pass_the_deadline_is_not_waited_for(play: Play, retry_after: str) -> None:
    async def act() -> None:
        full = refusing(503, "queue full", Retry_After=retry_after)
        async with scripted(full) as server, engine_on(server, request_timeout=15.0) as engine:
            began = time.monotonic()
            with pytest.raises(GenerationTimeoutError, match="0 of 4 tokens after 1 attempts") as late:
                await engine.agenerate(asking())
            assert time.monotonic() - began < 10
            assert "503: queue full" in str(late.value)
            assert isinstance(late.value.__cause__, ServerStatusError)
            assert "last generating on" in str(late.value)

    play(act)


def test_a_generation_that_is_late_while_backing_off_says_so(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not late when the delay is drawn: the deadline strikes in it.
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 0.9)
    monkeypatch.setattr(retries.Patience, "_is_enough", lambda *_: False)

    async def act() -> None:
        async with scripted(refusing(503)) as server, engine_on(server, request_timeout=0.2) as engine:
            with pytest.raises(GenerationTimeoutError, match=r"last generating on .*, then backing off$"):
                await engine.agenerate(asking())
            assert server.aborted == []

    play(act)


def test_one_deadline_covers_all_attempts(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_full_jitter", wait_random_exponential(multiplier=0.01))

    async def act() -> None:
        gate = asyncio.Event()
        script = [until(gate, then=refusing(500)), silent]
        async with scripted(*script) as server, engine_on(server, request_timeout=1.5) as engine:
            generation = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/generate", 1)
            assert engine._state is not None
            (one,) = engine._state.generations
            asyncio.get_running_loop().call_later(0.4, gate.set)
            await server.until("/generate", 2)
            assert one.limits.left_s() < 1.2
            with pytest.raises(GenerationTimeoutError, match="after 2 attempts"):
                await generation
            assert one.limits.left_s() <= 0

    play(act)


def test_waiting_for_a_slot_counts(play: Play) -> None:
    async def act() -> None:
        async with (
            scripted(holding(1)) as server,
            engine_on(server, request_timeout=0.3, max_inflight_per_server=1) as engine,
        ):
            assert engine._state is not None
            router = engine._state.router
            taken = await router.take(Pin(), 1.0)  # a generation that ends no sooner than the other
            with pytest.raises(GenerationTimeoutError, match="after 0 attempts, last waiting for a server"):
                await engine.agenerate(asking())
            router.give_back(taken)
            with pytest.raises(GenerationTimeoutError, match="1 of 4 tokens after 1 attempts"):
                await engine.agenerate(asking())

    play(act)


def test_a_pause_is_not_charged_whether_it_began_before_or_in_the_middle(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()

        async def half(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            await gate.wait()
            return await saying(event(body, 2, "abort"))(request, body)

        async with scripted(half) as server, engine_on(server, request_timeout=0.4) as engine:
            middle = asyncio.create_task(engine.agenerate(asking(6)))
            await server.until("/generate", 1)
            await engine.pause_generation()
            gate.set()
            before = asyncio.create_task(engine.agenerate(asking()))
            await turns_until(lambda: waiting_for_the_opening(engine) == 3)  # they and their deadlines
            assert len(server.generations) == 1
            assert not (before.done() or middle.done())
            await engine.continue_generation()
            assert (await before).output_tokens == made()
            assert (await middle).output_tokens == made(6)

    play(act)


def waiting_for_the_opening(engine: RemoteInfEngine) -> int:
    assert engine._state is not None
    return len(engine._state.opening._wakes)


def test_what_was_left_before_a_pause_is_left_after_it(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server, request_timeout=0.5) as engine:
            server.usual = silent
            async with engine.paused():
                generation = asyncio.create_task(engine.agenerate(asking()))
                await turns_until(lambda: waiting_for_the_opening(engine) == 2)  # it and its deadline
            continued = time.monotonic()
            with pytest.raises(GenerationTimeoutError, match=r"request_timeout=0\.5 s"):
                await generation
            assert 0.4 < time.monotonic() - continued < 2

    play(act)


def test_a_long_pause_is_said_once_whoever_waits(
    play: Play, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    assert opening._SAY_SO_AFTER_S == 60
    monkeypatch.setattr(opening, "_SAY_SO_AFTER_S", 0.05)
    said: asyncio.Queue[None] = asyncio.Queue()
    say_so = Opening._say_so

    def noting(self: Opening) -> None:
        say_so(self)
        said.put_nowait(None)

    monkeypatch.setattr(Opening, "_say_so", noting)

    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            for times in (1, 2):
                async with engine.paused():
                    waiting = [asyncio.create_task(engine.agenerate(asking())) for _ in range(3)]
                    for _ in waiting:
                        await said.get()
                    lines = [line for line in log_lines.of("warning") if "generation_is_paused" in line]
                    assert len(lines) == times
                    assert "waiting=3" in lines[-1]
                    assert "continue_generation" in lines[-1]
                for generation in waiting:
                    assert (await generation).output_tokens == made()

    play(act)


def test_a_tasks_own_deadline_ends_a_wait_for_paused_generation(
    make_runner: MakeRunner, embedded_server: EmbeddedServer
) -> None:
    runner = make_runner()
    with an_engine(embedded_server) as engine:
        runner.run(engine.pause_generation)
        task = runner.with_options(task_timeout=0.2).submit(engine.agenerate, asking())
        result = runner.wait_for_task(task, timeout=10)
        assert result.status == "timed_out"
        cancelled = runner.submit(engine.agenerate, asking())
        runner.cancel(cancelled)
        assert runner.wait_for_task(cancelled, timeout=10).status == "cancelled"
        runner.run(engine.continue_generation)
        assert embedded_server.stats().generations == 0


@pytest.mark.parametrize("stage", ["paused", "backing off", "waiting for a slot", "in a stream", "aborting"])
def test_destroy_ends_a_generation_whatever_it_waits_for(
    play: Play, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 10.0)
    monkeypatch.setattr(aborts, "_AFTER_CANCELLATION_S", 0.2)

    async def act() -> None:
        async with scripted() as server, engine_on(server, max_inflight_per_server=1) as engine:
            server.control["/abort_request"] = silent
            if stage == "paused":
                await engine.pause_generation()
            answers = {"backing off": refusing(503), "in a stream": holding(1), "aborting": refusing(500)}
            server.usual = answers.get(stage, silent)
            generations = [asyncio.create_task(engine.agenerate(asking())) for _ in range(2)]
            await until_stage(
                engine, {"in a stream": "generating", "aborting": "generating"}.get(stage, stage)
            )
            if stage == "aborting":
                await server.until("/abort_request", 1)
            await asyncio.to_thread(engine.destroy)
            began = time.monotonic()
            for generation in generations:
                with pytest.raises(EngineStoppedError, match="the engine was destroyed"):
                    await generation
            assert time.monotonic() - began < 5
            with pytest.raises(EngineStoppedError):
                await engine.agenerate(asking())

    play(act)


def test_destroy_while_a_late_generation_is_being_aborted_disturbs_nobody(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aborts, "_AFTER_CANCELLATION_S", 0.5)

    async def act() -> None:
        async with scripted(silent) as server, engine_on(server, request_timeout=0.1) as engine:
            server.control["/abort_request"] = silent
            generation = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/abort_request", 1)
            await asyncio.to_thread(engine.destroy)
            with pytest.raises((GenerationTimeoutError, EngineStoppedError)):
                await generation

    play(act)


def test_an_end_that_comes_before_the_limits_are_entered_is_obeyed(play: Play) -> None:
    async def act() -> None:
        limits = Limits(Deadlines(60.0, Opening(Events())), lambda: "nothing yet")
        limits.stop("it was destroyed")
        with pytest.raises(EngineStoppedError, match=r"^it was destroyed$"), limits:
            await asyncio.get_running_loop().create_future()

    play(act)
