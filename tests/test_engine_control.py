"""What the trainer does to all servers: pause, continue, abort, weights, and calls of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noticed
from areal_core._engine import proof, recovery, updating
from areal_core._engine.backend import HttpCall
from areal_core._engine.backends.sglang import SGLang
from areal_core._engine.policy import Weights
from areal_core._engine.router import Router
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import (
    ControlError,
    EngineStoppedError,
    InferenceError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
    WeightUpdateError,
)
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import ModelRequest
from conftest import MakeRunner
from engine_tools import Sending, a_request, an_engine, check_balanced, check_reply, lives, logs_of
from logged import LogLines
from reused_servers import ReusedServer
from threaded_loops import turns_until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.2)
    monkeypatch.setattr("areal_core._engine.calls._BETWEEN_TRIES_S", (0.01, 0.01))
    noticed.notice(monkeypatch, Router, "put_in", "take_out")


@pytest.fixture
def runner(make_runner: MakeRunner) -> AsyncTaskRunner[Any]:
    return make_runner(1000)


def count(servers: Sequence[ReusedServer], path: str) -> None:
    """Have *servers* count the calls to *path* from now on."""
    for server in servers:
        server.faults([f"latency=0,path={path}"])


def names(*servers: ReusedServer) -> set[str]:
    return {server.addr for server in servers}


def failed(error: ControlError) -> set[str]:
    """Return the servers at which a call failed."""
    return {server for server, failure in error.answers.items() if failure is not None}


def out(engine: RemoteInfEngine) -> set[str]:
    """Return the servers that are out of rotation."""
    return {server for server, why in engine.servers.items() if why is not None}


def awaiting(engine: RemoteInfEngine) -> set[str]:
    """Return the servers that the next update is to include though they are out."""
    assert engine._state is not None
    return {server.name for server in engine._state.router.servers if server.awaits_weights}


def is_open(engine: RemoteInfEngine) -> bool:
    assert engine._state is not None
    return engine._state.opening.is_open


def sent_to_all(
    runner: AsyncTaskRunner[Any], engine: RemoteInfEngine, servers: list[ReusedServer], most: int = 200
) -> list[int]:
    """Begin two generations per server, and return when all are under way."""
    sending = Sending(runner, engine)
    tasks = [sending.send(a_request(most=most)) for _ in range(2 * len(servers))]
    for server in servers:
        server.stats(in_flight=2)
    return tasks


def check_usable(
    runner: AsyncTaskRunner[Any], engine: RemoteInfEngine, *servers: ReusedServer, latest: int = 0
) -> None:
    """See that generations are made, at each of *servers* too."""
    before = {server.addr: server.stats().completed for server in servers}
    request = a_request(most=2)
    for reply in Sending(runner, engine).replies([request] * (4 * len(engine.servers))):
        check_reply(reply, request, latest=latest)
    for server in servers:
        assert server.stats().completed > before[server.addr], server


# -- pause and continue


def test_a_pause_interrupts_everything_until_it_is_continued(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        tasks = sent_to_all(runner, engine, servers)
        runner.run(engine.pause_generation)
        assert not is_open(engine)
        late = Sending(runner, engine).send(a_request(most=3))
        for server in servers:
            server.stats(in_flight=0, aborted=2)
            assert server.is_paused()
        before = [len(lives(logs_of(server))) for server in servers]
        runner.run(engine.continue_generation)
        assert is_open(engine)
        for task in tasks:
            reply = Sending(runner, engine).reply(task)
            check_reply(reply, a_request(most=200), latest=0)
            assert reply.segments >= 1
        Sending(runner, engine).reply(late)
        after = [len(lives(logs_of(server))) for server in servers]
        assert sum(after) - sum(before) >= 7
        check_balanced(engine)


@pytest.mark.any_loop
def test_when_one_server_refuses_to_pause_the_others_go_on(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        servers[1].faults(["status=500,path=/pause_generation"])
        with pytest.raises(
            ControlError, match=r"pause_generation failed at 1 of 3 servers; .*with 500"
        ) as caught:
            runner.run(engine.pause_generation)
        assert caught.value.answers.keys() == names(*servers)
        assert failed(caught.value) == names(servers[1])
        assert isinstance(caught.value.answers[servers[1].addr], ServerStatusError)
        assert is_open(engine)
        assert not out(engine)
        assert not any(map(ReusedServer.is_paused, servers))
        check_usable(runner, engine, *servers)


@pytest.mark.any_loop
def test_a_server_that_paused_and_failed_to_say_so_goes_on_too(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        servers[1].post("/pause_generation", {})
        servers[1].faults(["status=500,path=/pause_generation"])
        with pytest.raises(ControlError):
            runner.run(engine.pause_generation)
        assert not servers[1].is_paused()


@pytest.mark.any_loop
def test_a_server_that_knows_no_pause_stays_in_rotation(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        for path in ("/pause_generation", "/continue_generation"):
            servers[0].faults([f"status=404,path={path}"])
        servers[0].faults(["status=404,path=/*_generation"])
        with pytest.raises(ControlError):
            runner.run(engine.pause_generation)
        assert not out(engine)


@pytest.mark.any_loop
def test_a_pause_does_without_servers_that_are_gone(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        servers[2].kill()
        runner.run(engine.pause_generation)
        assert out(engine) == names(servers[2])
        assert servers[0].is_paused()
        runner.run(engine.continue_generation)
        check_usable(runner, engine, *servers[:2])


@pytest.mark.any_loop
def test_with_fewer_than_min_servers_left_a_pause_fails(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers, min_servers=3) as engine:
        servers[2].kill()
        with pytest.raises(
            ControlError, match=r"1 of 3 servers, and 2 are in rotation where min_servers=3"
        ) as caught:
            runner.run(engine.pause_generation)
        assert isinstance(caught.value.answers[servers[2].addr], ServerUnreachableError)
        assert is_open(engine)
        assert not any(map(ReusedServer.is_paused, servers[:2]))


def test_a_pause_that_is_cancelled_leaves_no_server_paused(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        servers[1].faults(["silent,path=/pause_generation"])
        pausing = runner.submit(engine.pause_generation)
        servers[1].stats(silent=1)
        for other in (servers[0], servers[2]):
            other.stats(paused=1)
        runner.cancel(pausing)
        runner.wait_for_task(pausing, timeout=10)
        assert is_open(engine)
        assert not any(map(ReusedServer.is_paused, servers))
        check_usable(runner, engine, *servers)


def test_after_a_cancelled_pause_who_does_not_continue_soon_leaves(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.control._AFTER_CANCELLATION_S", 0.2)
    with an_engine(*servers) as engine:
        servers[1].faults(["silent,path=/*_generation"])
        pausing = runner.submit(engine.pause_generation)
        servers[1].stats(silent=1)
        runner.cancel(pausing)
        runner.wait_for_task(pausing, timeout=10)
        assert is_open(engine)
        assert servers[1].addr in out(engine)
        check_usable(runner, engine)


@pytest.mark.any_loop
@pytest.mark.parametrize("asks", [False, True], ids=["before it asks", "when all have paused"])
def test_a_pause_whose_loop_ends_in_the_middle_leaves_no_server_paused_in_rotation(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], asks: bool
) -> None:
    def wait() -> None:
        for server in servers:
            server.stats(paused=1)

    async def main(engine: RemoteInfEngine) -> None:
        pausing = engine.pause_generation()
        pausing.send(None)
        if asks:
            await asyncio.to_thread(wait)
        pausing.close()  # as the collector does
        assert is_open(engine)
        assert out(engine) == (names(*servers) if asks else set())
        check = a_request(most=2)
        check_reply(await engine.agenerate(check), check, latest=0)

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        noticed.wait_for(lambda: not out(engine))
        check_usable(runner, engine, *servers)


@pytest.mark.any_loop
def test_to_continue_is_tried_again(runner: AsyncTaskRunner[Any], servers: list[ReusedServer]) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.pause_generation)
        servers[0].faults(["status=503,next=2,path=/continue_generation"])
        runner.run(engine.continue_generation)
        assert servers[0].stats().faults == {"status_503": 2}
        assert not out(engine)
        assert not any(map(ReusedServer.is_paused, servers))


@pytest.mark.any_loop
def test_a_server_that_does_not_continue_leaves_and_the_others_go_on(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        tasks = sent_to_all(runner, engine, servers)
        runner.run(engine.pause_generation)
        servers[0].faults(["status=500,path=/continue_generation"])
        with pytest.raises(ControlError, match="continue_generation failed at 1 of 3") as caught:
            runner.run(engine.continue_generation)
        assert caught.value.answers.keys() == names(*servers)
        assert failed(caught.value) == names(servers[0])
        assert is_open(engine)
        assert out(engine) == names(servers[0])
        for task in tasks:
            check_reply(Sending(runner, engine).reply(task), a_request(most=200), latest=0)
        servers[0].faults([])  # and when it does continue, it is used again
        noticed.wait_for(lambda: not out(engine))
        assert not servers[0].is_paused()
        check_usable(runner, engine, *servers)


def test_when_continuing_is_cancelled_who_has_not_answered_leaves(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.pause_generation)
        servers[0].faults(["silent,path=/continue_generation"])
        continuing = runner.submit(engine.continue_generation)
        servers[0].stats(silent=1)
        for other in servers[1:]:
            other.generate_one()  # it has to go on for that
        runner.cancel(continuing)
        runner.wait_for_task(continuing, timeout=10)
        assert is_open(engine)
        assert out(engine) == names(servers[0])
        check_usable(runner, engine, *servers[1:])


@pytest.mark.any_loop
def test_abort_all_ends_generations_on_the_servers_and_they_go_on(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        tasks = sent_to_all(runner, engine, servers)
        servers[0].faults(["status=503,next=1,path=/abort_request"])
        runner.run(engine.abort_all_requests)
        for task in tasks:
            check_reply(Sending(runner, engine).reply(task), a_request(most=200), latest=0)
        assert sum(server.stats().aborted for server in servers) == 6
        assert not out(engine)


@pytest.mark.any_loop
def test_who_does_not_abort_leaves(runner: AsyncTaskRunner[Any], servers: list[ReusedServer]) -> None:
    with an_engine(*servers) as engine:
        servers[0].faults(["status=500,path=/abort_request", "status=503,path=/health"])  # nor return at once
        with pytest.raises(ControlError, match="abort_all_requests failed at 1 of 3"):
            runner.run(engine.abort_all_requests)
        assert out(engine) == names(servers[0])


# -- weights


def test_an_update_gives_all_servers_the_weights_and_then_raises_the_version(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        told: list[tuple[int, int]] = []
        engine.subscribe(lambda version: told.append((version, threading.get_ident())))
        tasks = sent_to_all(runner, engine, servers)
        count(servers, "/pause_generation")
        runner.run(engine.update_weights_from_disk, weights_of(4), 4)
        assert engine.get_version() == 4
        assert told == [(4, runner.run(_thread))]
        assert [server.stats().faults.get("latency", 0) for server in servers] == [1, 1, 1]
        assert set(map(ReusedServer.label, servers)) == {"4"}
        assert is_open(engine)
        for task in tasks:
            reply = Sending(runner, engine).reply(task)
            check_reply(reply, a_request(most=200), latest=4)
            assert set(reply.output_versions) <= {0, 4}
        check_usable(runner, engine, *servers, latest=4)


async def _thread() -> int:
    return threading.get_ident()


@pytest.mark.any_loop
def test_who_subscribes_is_told_once_per_change_and_no_more_when_it_ends(
    servers: list[ReusedServer],
) -> None:
    with an_engine(servers[0]) as engine:
        told: list[int] = []
        end = engine.subscribe(told.append)
        for version in (1, 1, 2, 1):
            engine.set_version(version)
        end()
        end()
        engine.set_version(3)
        assert told == [1, 2, 1]
        assert engine.get_version() == 3


@pytest.mark.any_loop
def test_an_update_in_a_pause_leaves_it_paused(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.pause_generation)
        count(servers, "/*_generation")
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert [server.stats().faults.get("latency", 0) for server in servers] == [0, 0, 0]
        assert not is_open(engine)
        assert all(map(ReusedServer.is_paused, servers))
        runner.run(engine.continue_generation)
        check_usable(runner, engine, *servers, latest=1)


@pytest.mark.any_loop
def test_an_update_that_one_server_refuses_gives_the_others_their_weights_back(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        told: list[int] = []
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        engine.subscribe(told.append)
        servers[2].faults(["status=500,next=1,path=/update_weights_from_disk"])
        with pytest.raises(WeightUpdateError, match="failed at 1 of 3 servers") as caught:
            runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert caught.value.answers.keys() == names(*servers)
        assert failed(caught.value) == names(servers[2])
        assert engine.get_version() == 1
        assert told == []
        assert set(map(ReusedServer.label, servers)) == {"1"}
        assert servers[0].versions() == [1, 2, 1]
        assert not out(engine)
        assert is_open(engine)
        check_usable(runner, engine, *servers, latest=1)


@pytest.mark.any_loop
def test_who_does_not_take_its_weights_back_leaves(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        servers[2].faults(["status=500,path=/update_weights_from_disk"])
        with pytest.raises(WeightUpdateError):
            runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert out(engine) == names(servers[2])
        assert is_open(engine)
        check_usable(runner, engine, *servers[:2], latest=1)
        servers[2].faults([])
        noticed.wait_for(lambda: not out(engine))
        assert servers[2].label() == "1"
        check_usable(runner, engine, *servers, latest=1)


@pytest.mark.any_loop
def test_with_no_weights_to_give_back_all_leave_until_an_update_succeeds(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        tasks = sent_to_all(runner, engine, servers)
        servers[2].faults(["status=500,next=1,path=/update_weights_from_disk"])
        with pytest.raises(WeightUpdateError) as caught:
            runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert failed(caught.value) == names(servers[2])
        assert engine.get_version() == 0
        assert out(engine) == names(*servers)
        assert not is_open(engine)
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert not out(engine)
        assert is_open(engine)
        assert not any(map(ReusedServer.is_paused, servers))
        for task in tasks:
            reply = Sending(runner, engine).reply(task)
            check_reply(reply, a_request(most=200), latest=2)
            assert set(reply.output_versions) <= {0, 2}
        check_usable(runner, engine, *servers, latest=2)


@pytest.mark.any_loop
def test_a_server_that_is_out_for_its_weights_does_not_keep_others_from_theirs(
    runner: AsyncTaskRunner[Any],
    servers: list[ReusedServer],
    weights_of: Callable[[int], str],
    log_lines: LogLines,
) -> None:
    with an_engine(*servers) as engine:
        servers[2].faults(["status=500,path=/update_weights_from_disk"])
        with pytest.raises(WeightUpdateError):
            runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert engine.get_version() == 2
        assert out(engine) == names(servers[2])
        log_lines.wait_for(f"server_stays_out_of_rotation server={servers[2].addr}")
        servers[2].faults([])
        check_usable(runner, engine, *servers[:2], latest=2)
        noticed.wait_for(lambda: not out(engine))
        assert servers[2].label() == "2"


def lose_all(
    runner: AsyncTaskRunner[Any],
    engine: RemoteInfEngine,
    servers: list[ReusedServer],
    weights_of: Callable[[int], str],
    *faults: str,
) -> None:
    """Give all version 2 by hand, then fail to give them 3: only the first one surely has version 2 still.

    That one has *faults*, too, from the beginning.
    """
    for server in servers:
        server.load(weights_of(2), 2)
    engine.set_version(2)
    servers[0].faults(["status=500,next=1,path=/update_weights_from_disk", *faults])
    with pytest.raises(WeightUpdateError):
        runner.run(engine.update_weights_from_disk, weights_of(3), 3)


@pytest.mark.any_loop
def test_weights_that_came_another_way_are_not_replaced_by_older_ones(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        lose_all(runner, engine, servers, weights_of)
        assert engine.get_version() == 2
        assert out(engine) == names(*servers)
        assert "1" not in set(map(ReusedServer.label, servers))
        runner.run(engine.update_weights_from_disk, weights_of(3), 3)
        check_usable(runner, engine, *servers, latest=3)


@pytest.mark.any_loop
def test_an_update_includes_a_server_that_is_about_to_come_back(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        slow = ("latency=500,path=/pause_generation", "latency=500,path=/continue_generation")
        lose_all(runner, engine, servers, weights_of, *slow)
        servers[0].stats(latency=2)  # paused for the update; and, with version 2 still, to do as the others
        runner.run(engine.update_weights_from_disk, weights_of(3), 3)
        assert not out(engine)
        assert servers[0].versions()[-1] == 3
        servers[0].faults([])
        check_usable(runner, engine, *servers, latest=3)


@pytest.mark.any_loop
def test_an_update_includes_servers_that_are_about_to_come_back_with_the_last_weights(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        for server in servers:
            path = "path=/update_weights_from_disk"
            server.faults([f"status=500,next=2,{path}", f"latency=500,{path}"])
        with pytest.raises(WeightUpdateError):
            runner.run(engine.update_weights_from_disk, weights_of(3), 3)
        for server in servers:
            server.stats(latency=1)  # after version 3, and 2 instead of that, it is given 2 again
        runner.run(engine.update_weights_from_disk, weights_of(3), 3)
        assert not out(engine)
        for server in servers:
            server.faults([])
        check_usable(runner, engine, *servers, latest=3)


@pytest.mark.any_loop
@pytest.mark.parametrize("is_seen", [True, False])
def test_no_update_waits_long_for_a_server_that_is_not_there_any_more(
    runner: AsyncTaskRunner[Any],
    servers: list[ReusedServer],
    weights_of: Callable[[int], str],
    monkeypatch: pytest.MonkeyPatch,
    is_seen: bool,
) -> None:
    for module in (recovery, updating):
        monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(proof, "_TIMEOUT_S", 0.5)
    with an_engine(*servers, control_timeout=3.0 if is_seen else 600.0) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        lose_all(runner, engine, servers, weights_of)
        # It has version 2 still, and falls silent as it is about to be taken in, or to be told so.
        silent = "*" if is_seen else "/*_generation"
        servers[0].faults([f"silent,path={silent}"])
        servers[0].stats(silent=1)
        updating_all = runner.submit(engine.update_weights_from_disk, weights_of(3), 3)
        assert runner.wait_for_task(updating_all, timeout=60.0).error is None
        assert out(engine) == names(servers[0])
        check_usable(runner, engine, *servers[1:], latest=3)
        if is_seen:
            noticed.wait_for(lambda: not awaiting(engine))  # the next update does not wait at all


@pytest.mark.any_loop
def test_a_server_that_came_back_by_itself_waits_for_no_update(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        lose_all(runner, engine, servers, weights_of)
        assert awaiting(engine) == names(*servers)
        noticed.wait_for(lambda: out(engine) == names(*servers[1:]))
        assert awaiting(engine) == names(*servers[1:])


@pytest.mark.any_loop
@pytest.mark.parametrize("extra", [{}, {"stream": False}], ids=["per chunk", "of the reply"])
def test_labels_older_than_a_version_set_by_hand_are_told_and_not_called_exact(
    runner: AsyncTaskRunner[Any],
    servers: list[ReusedServer],
    weights_of: Callable[[int], str],
    extra: dict[str, Any],
) -> None:
    request = dataclasses.replace(a_request(most=3), extra=extra)
    with an_engine(servers[0]) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert versions_of(runner, engine, request) == ([1, 1, 1], True)
        engine.set_version(2)  # and nobody told the server
        assert versions_of(runner, engine, request) == ([1, 1, 1], False)
        servers[0].load(weights_of(2), 2)
        assert versions_of(runner, engine, request) == ([2, 2, 2], True)


@pytest.mark.any_loop
def test_versions_per_token_older_than_one_set_by_hand_are_told_and_not_called_exact(
    runner: AsyncTaskRunner[Any], make_embedded_server: Any, weights_of: Callable[[int], str]
) -> None:
    server = make_embedded_server(mode="test", weight_version_spans=True)
    with an_engine(server) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert versions_of(runner, engine, a_request(most=3)) == ([1, 1, 1], True)
        engine.set_version(2)
        assert versions_of(runner, engine, a_request(most=3)) == ([1, 1, 1], False)


def versions_of(
    runner: AsyncTaskRunner[Any], engine: RemoteInfEngine, request: ModelRequest
) -> tuple[list[int], bool]:
    reply = Sending(runner, engine).reply(Sending(runner, engine).send(request))
    return reply.output_versions, reply.versions_exact


@pytest.mark.any_loop
def test_an_update_does_without_a_server_that_is_gone(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        servers[0].kill()
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert engine.get_version() == 1
        assert out(engine) == names(servers[0])
        check_usable(runner, engine, *servers[1:], latest=1)


@pytest.mark.any_loop
def test_an_update_with_too_few_servers_left_is_undone(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers, min_servers=3) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        servers[0].faults(["disconnect,path=/update_weights_from_disk"])
        with pytest.raises(WeightUpdateError, match="2 are in rotation where min_servers=3"):
            runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert engine.get_version() == 1
        assert [server.label() for server in servers[1:]] == ["1", "1"]
        assert is_open(engine)


def test_a_cancelled_update_leaves_no_server_in_use_that_may_have_either(
    runner: AsyncTaskRunner[Any],
    servers: list[ReusedServer],
    weights_of: Callable[[int], str],
    log_lines: LogLines,
) -> None:
    with an_engine(*servers) as engine:
        tasks = sent_to_all(runner, engine, servers, most=300)
        servers[1].faults(["silent,path=/update_weights_from_disk"])
        updating = runner.submit(engine.update_weights_from_disk, weights_of(1), 1)
        servers[1].stats(silent=1)
        runner.cancel(updating)
        runner.wait_for_task(updating, timeout=10)
        assert engine.get_version() == 0
        assert out(engine) == names(*servers)
        assert log_lines.of("error") == ["weights_not_updated version=1 error=CancelledError()"]
        for why in engine.servers.values():
            assert why == "it may have loaded weights that others did not: CancelledError()"
        servers[1].faults([])
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert engine.get_version() == 2
        assert is_open(engine)
        for task in tasks:
            check_reply(Sending(runner, engine).reply(task), a_request(most=300), latest=2)
        check_usable(runner, engine, *servers, latest=2)


class _Mislabelling(SGLang):
    """A dialect whose servers say they have other weights than they were given."""

    def __init__(self) -> None:
        self.wrong_by = 0

    def update_weights(self, path: str, version: int) -> Sequence[HttpCall]:
        return super().update_weights(path, version + self.wrong_by)


@pytest.mark.any_loop
def test_a_server_that_says_it_has_other_weights_fails_the_update(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    backend = _Mislabelling()
    with an_engine(*servers, backend=backend) as engine:
        backend.wrong_by = 5
        with pytest.raises(WeightUpdateError, match="it says that it has version 6, not 1") as caught:
            runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert isinstance(caught.value.answers[servers[0].addr], MalformedReplyError)
        assert engine.get_version() == 0
        assert out(engine) == names(*servers)


@pytest.mark.any_loop
def test_a_backend_without_weight_updates_says_so_and_loses_no_server(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers, backend="openai") as engine:
        with pytest.raises(WeightUpdateError, match="cannot update weights; load them in a way of your own"):
            runner.run(engine.update_weights_from_disk, "weights", 1)
        assert not out(engine)
        assert is_open(engine)
        check_usable(runner, engine)


@pytest.mark.any_loop
def test_a_version_of_numpys_is_known_as_an_int(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(servers[0]) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(3), np.int64(3))
        assert engine._state is not None
        known = engine._state._policy.weights
        assert (known, known and type(known.version)) == (Weights(weights_of(3), 3), int)


@pytest.mark.any_loop
def test_what_is_no_path_or_version_is_refused(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(servers[0]) as engine:
        for path, version in (("", 1), (Path("x"), -1), ("x", True), ("x", "1")):
            with pytest.raises((ValueError, TypeError)):
                runner.run(engine.update_weights_from_disk, path, version)
        assert is_open(engine)
        for bad in (-1, True, "1"):
            with pytest.raises((ValueError, TypeError)):
                engine.set_version(bad)  # type: ignore[arg-type]


# -- the context


def test_the_context_pauses_and_continues(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    async def main(engine: RemoteInfEngine) -> None:
        async with engine.paused():
            assert not is_open(engine)
            await engine.update_weights_from_disk(weights_of(1), 1)
            assert not is_open(engine)
        assert is_open(engine)
        with pytest.raises(ZeroDivisionError):
            async with engine.paused():
                raise ZeroDivisionError
        assert is_open(engine)

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        check_usable(runner, engine, *servers, latest=1)


@pytest.mark.any_loop
def test_the_context_leaves_it_paused_after_a_failed_update_until_one_succeeds(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    async def main(engine: RemoteInfEngine) -> None:
        await engine.update_weights_from_disk(weights_of(1), 1)
        with pytest.raises(WeightUpdateError):
            async with engine.paused():
                await engine.update_weights_from_disk("nowhere", 2)
        assert not is_open(engine)
        async with engine.paused():
            await engine.update_weights_from_disk(weights_of(3), 3)
        assert is_open(engine)
        with pytest.raises(WeightUpdateError):
            async with engine.paused():
                await engine.update_weights_from_disk("nowhere", 4)
        assert not is_open(engine)
        await engine.update_weights_from_disk(weights_of(4), 4)
        assert is_open(engine)

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        check_usable(runner, engine, *servers, latest=4)


@pytest.mark.any_loop
def test_only_the_outermost_context_continues(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    async def main(engine: RemoteInfEngine) -> None:
        async with engine.paused():
            async with engine.paused():
                pass
            assert not is_open(engine)
        assert is_open(engine)
        await engine.pause_generation()
        async with engine.paused():
            pass
        assert not is_open(engine)
        await engine.continue_generation()
        assert is_open(engine)

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        check_usable(runner, engine, *servers)


def test_of_two_contexts_at_once_the_last_continues(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    async def hold(engine: RemoteInfEngine, inside: asyncio.Event, go_on: asyncio.Event) -> None:
        async with engine.paused():
            inside.set()
            await go_on.wait()
            assert not is_open(engine)

    async def main(engine: RemoteInfEngine) -> None:
        inside = [asyncio.Event(), asyncio.Event()]
        go_on = [asyncio.Event(), asyncio.Event()]
        holding = [asyncio.create_task(hold(engine, *events)) for events in zip(inside, go_on, strict=True)]
        for event in inside:
            await event.wait()
        go_on[0].set()
        await holding[0]
        assert not is_open(engine)
        holding[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding[1]
        assert is_open(engine)

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        check_usable(runner, engine, *servers)


async def leaving(engine: RemoteInfEngine, inside: asyncio.Event, leave: asyncio.Event) -> None:
    """Stand in the context until told to leave."""
    async with engine.paused():
        inside.set()
        await leave.wait()


async def cut_off_as_it_leaves(
    engine: RemoteInfEngine, server: ReusedServer, fault: str, other_call: Coroutine[Any, Any, Any]
) -> None:
    """Leave the context while *other_call* is under way at *server*, and be cancelled before it is over."""
    inside, leave = asyncio.Event(), asyncio.Event()
    context = asyncio.create_task(leaving(engine, inside, leave))
    await inside.wait()
    server.faults([fault])
    other = asyncio.create_task(other_call)
    await asyncio.to_thread(server.stats, latency=1)
    leave.set()
    assert engine._state is not None
    turn = engine._state.control._turn
    await turns_until(lambda: len(turn._waiting) == 1)
    context.cancel()
    with pytest.raises(asyncio.CancelledError):
        await context
    await asyncio.wait((other,))
    if other.exception() is not None:
        raise WeightUpdateError("the other call failed", {}) from other.exception()


@pytest.mark.parametrize("patience_s", [5.0, 0.05], ids=["it waits for its turn", "it cannot wait so long"])
def test_a_context_that_is_cancelled_while_another_call_is_under_way_continues(
    runner: AsyncTaskRunner[Any],
    servers: list[ReusedServer],
    monkeypatch: pytest.MonkeyPatch,
    patience_s: float,
) -> None:
    monkeypatch.setattr("areal_core._engine.control._AFTER_CANCELLATION_S", patience_s)
    with an_engine(*servers) as engine:
        call = engine.call_all("/flush_cache")
        runner.run(cut_off_as_it_leaves, engine, servers[0], "latency=400,path=/flush_cache", call)
        assert engine._state is not None
        runner.run(engine._state.opening.wait)
        assert not any(map(ReusedServer.is_paused, servers))
        assert not out(engine)
        check_usable(runner, engine, *servers)


@pytest.mark.any_loop
def test_a_context_that_is_cancelled_during_an_update_that_fails_leaves_it_paused_until_one_succeeds(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        update = engine.update_weights_from_disk("nowhere", 1)
        fault = "latency=400,next=1,path=/update_weights_from_disk"
        with pytest.raises(WeightUpdateError, match="the other call failed"):
            runner.run(cut_off_as_it_leaves, engine, servers[0], fault, update)
        assert not is_open(engine)
        assert out(engine) == names(*servers)
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        assert is_open(engine)
        check_usable(runner, engine, *servers, latest=2)


def test_a_context_that_is_cancelled_continues_without_who_does_not_do_so_soon(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.control._AFTER_CANCELLATION_S", 0.2)

    async def main(engine: RemoteInfEngine) -> None:
        inside = asyncio.Event()
        context = asyncio.create_task(leaving(engine, inside, asyncio.Event()))
        await inside.wait()
        servers[1].faults(["silent,path=/continue_generation"])
        context.cancel()
        done, _ = await asyncio.wait((context,), timeout=10)  # half of the timeout of one control call
        assert done
        assert context.cancelled()
        assert is_open(engine)
        assert out(engine) == names(servers[1])

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        check_usable(runner, engine, servers[0], servers[2])


@pytest.mark.any_loop
def test_a_context_whose_loop_ends_in_the_middle_leaves_no_server_paused_in_rotation(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    async def main(engine: RemoteInfEngine) -> None:
        inside = asyncio.Event()
        holding = leaving(engine, inside, asyncio.Event())
        task = asyncio.create_task(until_given_up(holding, inside))
        await task
        assert is_open(engine)
        assert out(engine) == names(*servers)

    with an_engine(*servers) as engine:
        runner.run(main, engine)
        check_usable(runner, engine)
        noticed.wait_for(lambda: not out(engine))
        check_usable(runner, engine, *servers)


async def until_given_up(holding: Coroutine[Any, Any, None], inside: asyncio.Event) -> None:
    """Run *holding* until it is inside, then close it as the collector does."""

    class Once:
        def __await__(self) -> Any:
            while True:
                future = holding.send(None)
                if inside.is_set():
                    holding.close()
                    return
                yield future

    await Once()


# -- calls of one's own, and several at once


@pytest.mark.any_loop
def test_call_all_gives_the_answers_by_address(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        answers = runner.run(engine.call_all, "/pause_generation", {"mode": "retract"})
        assert answers.keys() == names(*servers)
        assert [answer["status"] for answer in answers.values()] == ["ok"] * 3
        assert all(map(ReusedServer.is_paused, servers))
        runner.run(engine.call_all, "/continue_generation")
        texts = runner.run(engine.call_all, "/flush_cache", None, 5.0)
        assert set(texts.values()) == {"Cache flushed.\n"}


@pytest.mark.any_loop
def test_call_all_says_which_server_refused(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        servers[1].faults(["status=418,path=/flush_cache"])
        with pytest.raises(ControlError, match="POST /flush_cache failed at 1 of 3") as caught:
            runner.run(engine.call_all, "/flush_cache")
        assert failed(caught.value) == names(servers[1])
        assert not out(engine)
        servers[1].faults(["silent,path=/flush_cache", "status=503,path=/health"])
        runner.run(engine.call_all, "/flush_cache", {}, 0.5)  # it is not there, and no failure
        assert out(engine) == names(servers[1])
        for timeout in (0, -1.0, "1"):
            with pytest.raises((ValueError, TypeError)):
                runner.run(engine.call_all, "/flush_cache", {}, timeout)


@pytest.mark.any_loop
@pytest.mark.parametrize("path", ["flush_cache", "@127.0.0.1:1/x", "http://127.0.0.1:1/x", "", None, b"/x"])
def test_what_is_no_path_is_called_nowhere(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], path: Any
) -> None:
    with an_engine(servers[0]) as engine:
        with pytest.raises((ValueError, TypeError), match=r"^path"):
            runner.run(engine.call_all, path)
        assert not out(engine)


def test_control_calls_from_two_loops_take_turns(
    make_runner: MakeRunner, servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    runners = [make_runner(), make_runner()]
    for server in servers:
        server.faults(["latency=5,distribution=exponential,path=*_weights_from_disk"])
    with an_engine(*servers) as engine:
        calls = [
            (runner, runner.submit(engine.update_weights_from_disk, weights_of(version), version))
            for version in range(1, 9)
            for runner in runners
        ]
        for runner, call in calls:
            assert runner.wait_for_task(call, timeout=20).error is None
        assert set(map(ReusedServer.label, servers)) == {str(engine.get_version())}
        logs = [server.versions() for server in servers]
        assert len(logs[0]) == 16
        assert logs[0] == logs[1] == logs[2]
        assert is_open(engine)
        check_usable(runners[0], engine, *servers, latest=8)


def test_a_pause_that_is_asked_for_during_an_update_holds_after_it(
    make_runner: MakeRunner, servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    here, there = make_runner(), make_runner()
    with an_engine(*servers) as engine:
        servers[0].faults(["latency=200,path=/update_weights_from_disk"])
        updating = here.submit(engine.update_weights_from_disk, weights_of(1), 1)
        servers[0].stats(latency=1)
        there.run(engine.pause_generation)
        assert engine.get_version() == 1
        assert here.wait_for_task(updating, timeout=10).error is None
        assert not is_open(engine)
        assert all(map(ReusedServer.is_paused, servers))


def test_a_server_that_falls_silent_in_a_pause_is_not_waited_for_longer_than_others_are(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(*servers, silence_timeout=0.2, control_timeout=60.0) as engine:
        check_usable(runner, engine)  # its prober runs
        servers[1].faults(["silent,path=/*"])
        runner.run(engine.pause_generation)
        assert out(engine) == names(servers[1])
        runner.run(engine.continue_generation)
        check_usable(runner, engine, servers[0], servers[2])


@pytest.mark.any_loop
def test_an_update_does_not_wait_for_a_server_that_is_removed(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers) as engine:
        servers[0].faults(["silent,path=/update_weights_from_disk"])
        updating = runner.submit(engine.update_weights_from_disk, weights_of(1), 1)
        servers[0].stats(silent=1)
        engine.remove_server(servers[0].addr)
        assert runner.wait_for_task(updating, timeout=10).error is None
        check_usable(runner, engine, *servers[1:], latest=1)


def test_a_server_that_is_silent_while_it_loads_is_waited_for(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    with an_engine(*servers, silence_timeout=0.1) as engine:
        check_usable(runner, engine)  # its prober runs
        servers[0].faults(["latency=700,next=1,path=/update_weights_from_disk", "silent,path=/health"])
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert servers[0].versions() == [1]
        servers[0].faults([])
        noticed.wait_for(lambda: not out(engine))
        check_usable(runner, engine, *servers, latest=1)
        assert servers[0].versions() == [1]


def test_an_update_that_outlasts_its_engine_changes_nothing_here(
    make_runner: MakeRunner, servers: list[ReusedServer], weights_of: Callable[[int], str]
) -> None:
    here, there = make_runner(), make_runner()
    with an_engine(*servers) as engine:
        told: list[int] = []
        engine.subscribe(told.append)
        servers[0].faults(["latency=200,next=1,path=/update_weights_from_disk"])
        updating = here.submit(engine.update_weights_from_disk, weights_of(1), 1)
        servers[0].stats(latency=1)
        waiting = there.submit(engine.pause_generation)
        turn = engine._state.control._turn if engine._state is not None else None
        there.run(turns_until, lambda: turn is not None and len(turn._waiting) == 1)
        engine.destroy()
        for runner, call in ((here, updating), (there, waiting)):
            assert isinstance(runner.wait_for_task(call, timeout=10).error, EngineStoppedError)
        assert (engine.get_version(), told) == (0, [])
        assert not any(map(ReusedServer.is_paused, servers))


@pytest.mark.any_loop
def test_without_servers_control_calls_say_that_there_are_too_few(
    runner: AsyncTaskRunner[Any], servers: list[ReusedServer]
) -> None:
    with an_engine(servers[0]) as engine:
        servers[0].kill()
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            engine.pause_generation,
            engine.pause_generation,
            engine.abort_all_requests,
            engine.continue_generation,
            lambda: engine.call_all("/x"),
            lambda: engine.update_weights_from_disk("x", 1),
        ]
        for call in calls:
            with pytest.raises(ControlError, match="0 are in rotation where min_servers=1"):
                runner.run(call)


@pytest.mark.any_loop
def test_an_engine_that_does_not_run_takes_no_control_calls(runner: AsyncTaskRunner[Any]) -> None:
    from areal_core.config import InferenceEngineConfig

    engine = RemoteInfEngine(InferenceEngineConfig())

    async def enter() -> None:
        async with engine.paused():
            pass

    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        engine.pause_generation,
        engine.continue_generation,
        engine.abort_all_requests,
        enter,
        lambda: engine.call_all("/x"),
        lambda: engine.update_weights_from_disk("x", 1),
    ]
    for call in calls:
        with pytest.raises(EngineStoppedError):
            runner.run(call)
    assert issubclass(EngineStoppedError, InferenceError)
