"""Servers that die, fall silent, return, are added and removed: what they generate goes on, and none is used
before it has the current weights.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import noticed
from areal_core._engine.backend import HttpCall
from areal_core._engine.backends.sglang import SGLang
from areal_core._engine.router import Router
from areal_core._engine.running import Running
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from areal_core.errors import ServerUnreachableError
from areal_core.remote_inf_engine import RemoteInfEngine
from conftest import MakeRunner
from engine_tools import (
    Sending,
    a_request,
    an_engine,
    by_conversation,
    check_balanced,
    check_replies,
    check_reply,
    lives,
    logs_of,
)
from logged import LogLines
from reused_servers import ReusedServer
from threaded_loops import MakeLoop


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.1)
    monkeypatch.setattr("areal_core._engine.recovery.PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("areal_core._engine.aborts._TIMEOUT_S", 0.3)
    noticed.notice(monkeypatch, Router, "put_in", "take_out")


@pytest.fixture
def runner(make_runner: MakeRunner) -> AsyncTaskRunner[Any]:
    return make_runner(1000)


Run = AsyncTaskRunner[Any]
WeightsOf = Callable[[int], str]


def use(runner: Run, engine: RemoteInfEngine, latest: int = 0, times: int = 12) -> None:
    """Generate a few times: the prober runs from then on."""
    request = a_request(most=2)
    for reply in Sending(runner, engine).replies([request] * times):
        check_reply(reply, request, latest=latest)
        assert set(reply.output_versions) <= {latest}


def wait_for_all(engine: RemoteInfEngine) -> None:
    """Wait until all servers are in rotation."""
    noticed.wait_for(lambda: set(engine.servers.values()) == {None})


def wait_until_out(engine: RemoteInfEngine, server: ReusedServer) -> str:
    """Wait until *server* is out of rotation; return why."""
    noticed.wait_for(lambda: engine.servers[server.addr] is not None)
    return engine.servers[server.addr] or ""


def check_used_with(server: ReusedServer, version: int) -> None:
    """See that *server* has generated since it has the weights of *version*, and with nothing else."""
    made = {made_by for one in lives({server.addr: server.log()}) for made_by, _ in one.versions}
    assert made == {version}


def take_out(engine: RemoteInfEngine, server: ReusedServer) -> None:
    """Take *server* out of rotation until its faults are others."""
    server.faults(["status=503,path=/health"])
    assert engine._state is not None
    router = engine._state.router
    router.take_out(next(one for one in router.servers if one.name == server.addr), "the test says so")


@contextmanager
def stopped(server: ReusedServer) -> Iterator[Callable[[], None]]:
    """Keep *server* from doing anything for the block, or until what is given is called."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


# -- servers that die, and return


def test_of_500_generations_a_killed_server_loses_none_and_is_used_again_with_the_current_weights(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        sending = Sending(runner, engine)
        requests = [a_request([1, number], most=300, rid=f"{number}") for number in range(500)]
        tasks = [sending.send(request) for request in requests]
        servers[0].stats(in_flight=100)
        servers[0].kill()
        check_replies(zip(requests, map(sending.reply, tasks), strict=True), latest=1)
        assert engine.servers[servers[0].addr] is not None
        servers[0].start()
        wait_for_all(engine)
        use(runner, engine, latest=1)
        assert servers[0].versions() == [0, 1]
        check_used_with(servers[0], 1)
        check_balanced(engine)


def test_a_server_that_returns_gets_the_update_it_missed_before_it_is_used(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    with an_engine(*servers) as engine:
        use(runner, engine)
        servers[0].kill()
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        use(runner, engine, latest=2)
        servers[0].start()
        wait_for_all(engine)
        use(runner, engine, latest=2)
        assert servers[0].versions() == [0, 2]
        check_used_with(servers[0], 2)
        log_lines.wait_for(f"server_in_rotation server={servers[0].addr} version=2")


@pytest.mark.any_loop
def test_a_server_that_was_restarted_between_two_probes_is_not_used_with_its_first_weights(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 100.0)
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        use(runner, engine, latest=1)
        servers[0].kill()
        servers[0].start()
        use(runner, engine, latest=1)
        wait_for_all(engine)
        use(runner, engine, latest=1)
        assert servers[0].label() == "1"


@pytest.mark.any_loop
def test_a_server_that_returns_and_says_it_has_other_weights_stays_out(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    class Mislabelling(SGLang):
        wrong_by = 0

        def update_weights(self, path: str, version: int) -> Sequence[HttpCall]:
            return super().update_weights(path, version + self.wrong_by)

    backend = Mislabelling()
    with an_engine(*servers, backend=backend) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        use(runner, engine, latest=1)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        backend.wrong_by = 1
        servers[0].start()
        line = log_lines.wait_for("server_stays_out_of_rotation")
        assert "it says that it has version 2, not 1" in line.message
        use(runner, engine, latest=1)
        assert "does not take the weights" in (engine.servers[servers[0].addr] or "")
        servers[0].faults(["latency=0,path=/update_weights_from_disk"])
        servers[0].stats(latency=3)  # it is tried again and again
        assert servers[0].stats().generations == 0
        backend.wrong_by = 0
        wait_for_all(engine)
        use(runner, engine, latest=1)
        check_used_with(servers[0], 1)
        assert len([line for line in log_lines if "server_stays_out" in line.message]) == 1


@pytest.mark.any_loop
def test_weights_that_do_not_load_are_not_loaded_all_the_time(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.005)
    with an_engine(*servers, silence_timeout=0.4) as engine:
        path = weights_of(1)
        runner.run(engine.update_weights_from_disk, path, 1)
        use(runner, engine, latest=1)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 100.0)
        Path(path).unlink()
        servers[0].start("latency=0,path=/update_weights_from_disk")
        servers[0].stats(latency=1)
        servers[1].faults(["latency=0,path=/health"])
        servers[1].stats(latency=3)  # a quarter of the silence_timeout from one to the next
        assert servers[0].stats().faults == {"latency": 1}


@pytest.mark.any_loop
def test_a_server_that_returns_after_weights_came_another_way_waits_for_the_next_update(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        for server in servers:
            server.load(weights_of(2), 2)
        engine.set_version(2)
        use(runner, engine, latest=2)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        servers[0].start()
        log_lines.wait_for("nobody here has the weights of version 2")
        log_lines.clear()
        use(runner, engine, latest=2)
        assert servers[0].stats().generations == 0
        assert servers[0].versions() == [0]
        runner.run(engine.update_weights_from_disk, weights_of(3), 3)
        assert set(engine.servers.values()) == {None}
        comes_in = f"server_in_rotation server={servers[0].addr} version=3"
        assert [line.message for line in log_lines if "in_rotation" in line.message] == [comes_in]
        use(runner, engine, latest=3)
        check_used_with(servers[0], 3)


@pytest.mark.any_loop
def test_a_server_that_has_the_version_set_by_hand_is_used(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    with an_engine(*servers[:2]) as engine:
        for server in servers[:2]:
            server.load(weights_of(5), 5)
        engine.set_version(5)
        use(runner, engine, latest=5)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        servers[0].start()
        log_lines.wait_for("nobody here has the weights of version 5")
        servers[0].load(weights_of(5), 5)
        wait_for_all(engine)
        use(runner, engine, latest=5)


@pytest.mark.any_loop
def test_a_server_that_returns_during_an_update_gets_the_new_weights(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        use(runner, engine, latest=1)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        runner.run(engine.pause_generation)
        with stopped(servers[1]):  # the update waits for it
            servers[2].faults(["latency=0,path=/update_weights_from_disk"])
            updating = runner.submit(engine.update_weights_from_disk, weights_of(2), 2)
            servers[2].stats(latency=1)
            servers[0].start()
            servers[0].faults(["latency=0,path=/health"])
            servers[0].stats(latency=2)
        assert runner.wait_for_task(updating, timeout=20).error is None
        runner.run(engine.continue_generation)
        wait_for_all(engine)
        use(runner, engine, latest=2)
        check_used_with(servers[0], 2)
        assert servers[0].versions() == [0, 2]


@pytest.mark.any_loop
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "is cut off"])
def test_a_server_that_returns_while_others_are_continued_is_not_left_paused(
    runner: Run, servers: list[ReusedServer], ends: bool
) -> None:
    with an_engine(*servers) as engine:
        use(runner, engine)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        runner.run(engine.pause_generation)
        with stopped(servers[1]):  # which is not continued before the other is there
            servers[2].faults(["latency=0,path=/continue_generation"])
            continuing = runner.submit(engine.continue_generation)
            servers[2].stats(latency=1)
            servers[0].start()
            noticed.wait_for(lambda: engine.servers[servers[0].addr] is None)
            if not ends:
                runner.cancel(continuing)
                runner.wait_for_task(continuing, timeout=20)
        if ends:
            assert runner.wait_for_task(continuing, timeout=20).error is None
        wait_for_all(engine)
        use(runner, engine)


@pytest.mark.any_loop
def test_an_update_during_a_return_waits_for_the_old_weights_to_be_loaded(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with an_engine(*servers) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        use(runner, engine, latest=1)
        take_out(engine, servers[0])
        servers[0].load(weights_of(0), 0)
        servers[0].faults(["latency=300,next=1,path=/update_weights_from_disk"])  # and it is well
        servers[0].stats(latency=1)
        runner.run(engine.update_weights_from_disk, weights_of(2), 2)
        wait_for_all(engine)
        use(runner, engine, latest=2)
        assert servers[0].label() == "2"


@pytest.mark.any_loop
def test_a_server_that_returns_in_a_pause_is_paused(runner: Run, servers: list[ReusedServer]) -> None:
    with an_engine(*servers) as engine:
        use(runner, engine)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        runner.run(engine.pause_generation)
        servers[0].start()
        wait_for_all(engine)
        assert servers[0].is_paused()
        runner.run(engine.continue_generation)
        use(runner, engine)
        check_used_with(servers[0], 0)


@pytest.mark.any_loop
def test_a_server_that_is_paused_by_somebody_else_when_it_returns_is_continued(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        use(runner, engine)
        take_out(engine, servers[0])
        servers[0].post("/pause_generation", {})
        servers[0].faults([])
        wait_for_all(engine)
        assert not servers[0].is_paused()


def test_before_a_server_is_used_again_what_could_not_be_aborted_is(
    runner: Run, servers: list[ReusedServer], make_embedded_server: MakeEmbeddedServer
) -> None:
    server = make_embedded_server(mode="test", ms_per_token=2.0, fault=["latency=0,path=/abort_request"])
    with an_engine(server, servers[0]) as engine:
        sending = Sending(runner, engine)
        request = a_request(most=100)
        tasks = [sending.send(request) for _ in range(8)]
        server.stats(in_flight=4)
        server.kill()
        for task in tasks:
            check_reply(sending.reply(task), request, latest=0)
        server.start()
        wait_for_all(engine)
        assert server.stats().faults["latency"] == 4
        assert engine._state is not None
        assert not any(one.unaborted for one in engine._state.router.servers)


@pytest.mark.any_loop
def test_what_could_not_be_aborted_is_not_forgotten_when_a_server_is_removed_and_added_again(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=0.3) as engine:
        sending = Sending(runner, engine)
        tasks = [sending.send(a_request(most=100)) for _ in range(8)]
        for server in servers[:2]:
            server.stats(in_flight=4)
        with stopped(servers[0]):
            for task in tasks:
                sending.reply(task)
            engine.remove_server(servers[0].addr)
            engine.add_server(servers[0].addr)
            assert engine._state is not None
            added = engine._state.router.servers[-1]
            assert (added.name, len(added.unaborted)) == (servers[0].addr, 4)
        wait_for_all(engine)
        assert not added.unaborted


def test_a_prober_that_is_just_closed_waits_for_nothing(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    async def main(state: Running) -> None:
        prober = state._new_prober().run()
        prober.send(None)
        prober.close()  # as when a loop is collected that nobody closed
        begun = asyncio.all_tasks() - {asyncio.current_task()}
        assert begun
        for task in begun:
            task.cancel()

    with an_engine(servers[0]) as engine, asyncio.Runner(loop_factory=loop_factory) as loop:
        assert engine._state is not None
        loop.run(main(engine._state))


@pytest.mark.any_loop
def test_a_backend_that_cannot_ask_whether_a_server_is_well_is_told_of(
    runner: Run, servers: list[ReusedServer], log_lines: LogLines
) -> None:
    class Broken(SGLang):
        is_broken = False

        def health(self) -> HttpCall:
            if self.is_broken:
                raise ZeroDivisionError("in a backend")
            return super().health()

    backend = Broken()
    with an_engine(servers[0], backend=backend) as engine:
        use(runner, engine)
        backend.is_broken = True
        line = log_lines.wait_for("probe_failed")
        assert isinstance(line.error, ZeroDivisionError)
        assert servers[0].addr in line.message
        backend.is_broken = False


# -- servers that come and go because somebody says so


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.any_loop
def test_a_server_that_is_added_gets_the_weights_and_the_pause(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, paused: bool
) -> None:
    with an_engine(*servers[:2]) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        use(runner, engine, latest=1)
        if paused:
            runner.run(engine.pause_generation)
        engine.add_server(f"http://{servers[2].addr}/")
        wait_for_all(engine)
        assert len(engine.servers) == 3
        assert servers[2].label() == "1"
        if paused:
            assert servers[2].is_paused()
            runner.run(engine.continue_generation)
        use(runner, engine, latest=1)
        check_used_with(servers[2], 1)
        with pytest.raises(ValueError, match="is one of the servers already"):
            engine.add_server(servers[2].addr)


def test_what_a_removed_server_generates_goes_on_elsewhere(runner: Run, servers: list[ReusedServer]) -> None:
    with an_engine(*servers[:2]) as engine:
        sending = Sending(runner, engine)
        requests = [a_request([1, number], most=300, rid=f"{number}") for number in range(8)]
        tasks = [sending.send(request) for request in requests]
        for server in servers[:2]:
            server.stats(in_flight=4)
        engine.remove_server(servers[0].addr)
        assert engine.servers == {servers[1].addr: None}
        check_replies(zip(requests, map(sending.reply, tasks), strict=True), latest=0)
        assert (servers[0].stats().completed, servers[0].stats().in_flight) == (0, 0)
        assert {len(of_one) for of_one in by_conversation(lives(logs_of(*servers))).values()} == {1, 2}
        use(runner, engine)
        assert servers[0].stats().generations == 4
        with pytest.raises(ValueError, match="is none of the servers"):
            engine.remove_server(servers[0].addr)
        engine.add_server(servers[0].addr)
        wait_for_all(engine)
        use(runner, engine)
        assert servers[0].stats().generations > 4
        check_balanced(engine)


# -- servers that are silent


@pytest.mark.any_loop
def test_a_silent_server_leaves_and_what_it_generates_goes_on_elsewhere_and_is_aborted_when_it_wakes(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=0.4) as engine:
        sending = Sending(runner, engine)
        requests = [a_request([1, number], most=1000, rid=f"{number}") for number in range(8)]
        tasks = [sending.send(request) for request in requests]
        for server in servers[:2]:
            server.stats(in_flight=4)
        with stopped(servers[0]) as go_on:
            wait_until_out(engine, servers[0])
            servers[1].stats(generations=8)
            go_on()  # and it makes all the tokens that it had no time to make before
            wait_for_all(engine)
            use(runner, engine)
        check_replies(zip(requests, map(sending.reply, tasks), strict=True), latest=0)
        first = servers[0].log()
        left = [event["at"] for event in first if event["event"] == "end" and event["how"] != "length"]
        assert len(left) == 4
        again = [event["at"] for event in first if event["event"] == "start" and event["prompt_tokens"] == 3]
        assert again
        assert max(left) < min(again)
        check_balanced(engine)


@pytest.mark.any_loop
def test_what_a_silent_server_generates_goes_on_elsewhere_too_when_a_control_call_found_it_out(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=60.0, control_timeout=0.3) as engine:
        sending = Sending(runner, engine)
        requests = [a_request([1, number], most=400, rid=f"{number}") for number in range(8)]
        tasks = [sending.send(request) for request in requests]
        for server in servers[:2]:
            server.stats(in_flight=4)
        with stopped(servers[0]):
            runner.run(engine.abort_all_requests)
            check_replies(zip(requests, map(sending.reply, tasks), strict=True), latest=0)


@pytest.mark.any_loop
def test_what_a_silent_server_generates_goes_on_elsewhere_too_when_an_abort_found_it_out(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=60.0) as engine:
        sending = Sending(runner, engine)
        request = a_request([1, 2], most=400)
        tasks = [sending.send(request) for _ in range(8)]
        for server in servers[:2]:
            server.stats(in_flight=4)
        with stopped(servers[0]):
            for task in tasks[:2]:  # one of them is there
                sending.cancel(task)
            for task in tasks[2:]:
                check_reply(sending.reply(task), request, latest=0)


def test_what_began_on_a_server_just_before_it_left_goes_on_elsewhere(
    runner: Run, servers: list[ReusedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.recovery.PROBE_TIMEOUT_S", 60.0)
    with an_engine(*servers[:2], max_inflight_per_server=1, silence_timeout=60.0) as engine:
        use(runner, engine)
        assert engine._state is not None
        router = engine._state.router
        server = next(one for one in router.servers if one.name == servers[0].addr)
        take = type(router).take

        async def take_late(*arguments: Any) -> Any:
            taken = await take(*arguments)
            if taken is server:  # it leaves between the choice and the request
                router.take_out(server, "the test says so")
                router.cut(server, "the test says so")
            return taken

        monkeypatch.setattr(type(router), "take", take_late)
        with stopped(servers[0]):
            use(runner, engine, times=2)


@pytest.mark.any_loop
def test_a_server_that_is_not_well_for_too_long_leaves_and_returns_when_it_is(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=0.3) as engine:
        use(runner, engine)
        servers[0].faults(["status=503,path=/health"])
        assert "answered GET /health with 503" in wait_until_out(engine, servers[0])
        use(runner, engine)
        servers[0].faults([])
        wait_for_all(engine)
        use(runner, engine)


@pytest.mark.any_loop
def test_a_server_that_is_not_well_for_a_moment_stays(runner: Run, servers: list[ReusedServer]) -> None:
    with an_engine(*servers[:2], silence_timeout=20.0) as engine:
        use(runner, engine)
        servers[0].faults(["status=503,next=3,path=/health"])
        servers[0].stats(status_503=3)
        servers[0].faults(["latency=0,path=/health"])
        servers[0].stats(latency=1)
        assert set(engine.servers.values()) == {None}


@pytest.mark.any_loop
def test_a_dead_server_leaves_at_the_next_probe_though_nothing_runs_there(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=3600.0) as engine:
        use(runner, engine)
        servers[0].kill()
        assert "cannot be reached" in wait_until_out(engine, servers[0])


# -- at first


@pytest.mark.any_loop
def test_servers_are_believed_at_first_to_have_a_version_set_by_hand(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    engine = RemoteInfEngine(InferenceEngineConfig(setup_timeout=10.0))
    engine.set_version(3)
    try:
        engine.initialize([server.addr for server in servers[:2]])
        sending = Sending(runner, engine)
        assert sending.reply(sending.send(a_request(most=2))).output_versions == [3, 3]
        servers[0].kill()
        wait_until_out(engine, servers[0])
        servers[0].start()  # but not when they return
        log_lines.wait_for("nobody here has the weights of version 3")
    finally:
        engine.destroy()


@pytest.mark.any_loop
def test_a_server_that_says_at_first_that_it_has_another_version_is_not_believed(
    loop_name: str, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    servers[0].load(weights_of(2), 2)
    engine = RemoteInfEngine(InferenceEngineConfig(setup_timeout=0.3))
    engine.set_version(3)
    with pytest.raises(ServerUnreachableError, match="nobody here has the weights of version 3"):
        engine.initialize(servers[0].addr)


@pytest.mark.any_loop
def test_an_engine_that_begins_again_gives_the_servers_the_weights_it_knows(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with an_engine(*servers[:2]) as engine:
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        engine.destroy()
        servers[0].kill()
        servers[0].start()
        engine.initialize([server.addr for server in servers])
        assert engine.get_version() == 1
        assert [server.label() for server in servers] == ["1", "1", "1"]
        use(runner, engine, latest=1)


@pytest.mark.any_loop
def test_a_server_that_is_late_is_taken_in_when_it_comes(runner: Run, servers: list[ReusedServer]) -> None:
    servers[1].kill()
    with an_engine(*servers[:2], setup_timeout=0.3) as engine:
        assert engine.servers[servers[0].addr] is None
        assert "Connect" in (engine.servers[servers[1].addr] or "") or "reached" in (
            engine.servers[servers[1].addr] or ""
        )
        servers[1].start()
        use(runner, engine)
        wait_for_all(engine)
        use(runner, engine)
        check_used_with(servers[1], 0)


@pytest.mark.any_loop
def test_what_listens_where_a_server_was_and_is_none_stays_out(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], silence_timeout=0.4) as engine:
        use(runner, engine)
        servers[0].kill()
        host, _, port = servers[0].addr.partition(":")
        with socket.create_server((host, int(port))):  # takes connections, and says nothing
            wait_until_out(engine, servers[0])
            use(runner, engine)
        servers[0].start()
        wait_for_all(engine)
