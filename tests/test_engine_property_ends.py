"""However a generation ends, nothing of it runs on; and each has but its own ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from areal_core.errors import EngineStoppedError, GenerationTimeoutError
from areal_core.loop_cleanup import run_loop_cleanup
from conftest import MakeRunner
from engine_tools import (
    Sending,
    a_request,
    an_engine,
    check_balanced,
    check_none_live,
    check_one_at_a_time,
    check_replies,
    lives,
    logs_of,
)

each_backend = pytest.mark.parametrize("backend", ["sglang", "vllm", "openai"])


@each_backend
def test_cancelled_generations_end_on_their_servers(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, backend: str
) -> None:
    servers = [make_embedded_server(mode="test", ms_per_token=10, sigma=0) for _ in range(2)]
    with an_engine(*servers, backend=backend) as engine:
        sending = Sending(make_runner(), engine)
        tasks = [sending.send(a_request([1, number], 5000)) for number in range(20)]
        for server in servers:
            server.stats(in_flight=10)
        for task in tasks:
            sending.cancel(task)
        assert [type(sending.ending(task)) for task in tasks] == [asyncio.CancelledError] * 20
        check_none_live(*servers)
        check_balanced(engine)
        assert sending.reply(sending.send(a_request())).stop_reason == "length"


@each_backend
def test_generations_that_are_out_of_time_end_on_their_servers(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, backend: str
) -> None:
    server = make_embedded_server(mode="test", ms_per_token=10, sigma=0)
    with an_engine(server, backend=backend, request_timeout=0.3) as engine:
        sending = Sending(make_runner(), engine)
        tasks = [sending.send(a_request([1, number], 5000)) for number in range(20)]
        endings = [sending.ending(task) for task in tasks]
        assert [type(ending) for ending in endings] == [GenerationTimeoutError] * 20
        assert "of 5000 tokens after 1 attempts" in str(endings[0])
        check_none_live(server)
        check_balanced(engine)


@each_backend
def test_generations_of_an_engine_that_is_destroyed_end_on_their_servers(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, backend: str
) -> None:
    server = make_embedded_server(mode="test", ms_per_token=10, sigma=0)
    with an_engine(server, backend=backend) as engine:
        sending = Sending(make_runner(), engine)
        tasks = [sending.send(a_request([1, number], 5000)) for number in range(20)]
        server.stats(in_flight=20)
        engine.destroy()
        assert [type(sending.ending(task)) for task in tasks] == [EngineStoppedError] * 20
    check_none_live(server)


@pytest.mark.any_loop
def test_a_conversation_may_have_several_generations_at_once(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer
) -> None:
    servers = [make_embedded_server(mode="test", ms_per_token=1, fault=["abort=4,every=3"]) for _ in range(2)]
    with an_engine(*servers) as engine:
        requests = [a_request([1, number], 20, rid="talk") for number in range(12)]
        replies = Sending(make_runner(), engine).replies(requests)
        check_replies(zip(requests, replies, strict=True), latest=0)
        check_balanced(engine)
    assert sorted(bool(server.stats().generations) for server in servers) == [False, True]


@pytest.mark.any_loop
def test_ending_one_conversation_leaves_alone_those_whose_ids_begin_like_its(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer
) -> None:
    server = make_embedded_server(mode="test", ms_per_token=10, sigma=0)  # aborts all ids that begin so
    with an_engine(server) as engine:
        sending = Sending(make_runner(), engine)
        ending = sending.send(a_request(most=5000, rid="a"))
        others = [a_request([7, number], 100, rid=rid) for number, rid in enumerate(["a-", "a-b", "aa", "a"])]
        tasks = [sending.send(request) for request in others]
        server.stats(in_flight=5)
        sending.cancel(ending)
        replies = [sending.reply(task) for task in tasks]
        check_replies(zip(others, replies, strict=True), latest=0)
        assert [reply.segments for reply in replies] == [1] * 4
        assert isinstance(sending.ending(ending), asyncio.CancelledError)
        check_none_live(server)


@pytest.mark.any_loop
@pytest.mark.parametrize("interrupt", ["pause", "abort", "remove"])
def test_cancelled_while_it_is_interrupted_it_is_not_sent_again(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, interrupt: str
) -> None:
    servers = [make_embedded_server(mode="test", ms_per_token=5, sigma=0) for _ in range(2)]
    runner = make_runner()
    with an_engine(*servers) as engine:
        sending = Sending(runner, engine)
        tasks = [sending.send(a_request([1, number], 5000, rid=f"{number}")) for number in range(20)]
        for server in servers:
            server.stats(in_flight=10)

        async def remove() -> None:
            engine.remove_server(servers[0].addr)

        acts = {"pause": engine.pause_generation, "abort": engine.abort_all_requests, "remove": remove}

        async def both() -> None:
            acting = asyncio.create_task(acts[interrupt]())
            for task in tasks:
                await asyncio.sleep(0)  # one later than the other
                runner.cancel(task)
            await acting

        runner.run(both)
        assert [type(sending.ending(task)) for task in tasks] == [asyncio.CancelledError] * 20
        if interrupt == "pause":
            runner.run(engine.continue_generation)
        check_none_live(*servers)
        check_balanced(engine)
        check_one_at_a_time(lives(logs_of(*servers)))


def test_one_whose_loop_is_given_up_is_closed_without_a_word(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], make_embedded_server: MakeEmbeddedServer
) -> None:
    server = make_embedded_server(mode="test", ms_per_token=10, sigma=0)

    loop = loop_factory()
    with an_engine(server) as engine:
        try:
            task = loop.create_task(engine.agenerate(a_request(most=5000)))
            loop.run_until_complete(loop.run_in_executor(None, lambda: server.stats(in_flight=1)))
            coroutine = task.get_coro()
            assert coroutine is not None
            coroutine.close()  # as the collector does when nobody runs the loop any more
            task.cancel()
            with pytest.raises((asyncio.CancelledError, RuntimeError)):  # asyncio's own: it is closed
                loop.run_until_complete(task)
        finally:
            run_loop_cleanup(loop)
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    check_none_live(server)
