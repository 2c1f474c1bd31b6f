"""An engine that follows another one, which has control of the same servers: what it says of versions, which
servers it uses, and that it tells them nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

import noticed
from areal_core._engine import retries
from areal_core._engine.backend import Ask, Piece
from areal_core._engine.backends.sglang import SGLang
from areal_core._engine.events import Events
from areal_core._engine.following import Following
from areal_core._engine.policy import Policy
from areal_core._engine.prober import Prober
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.distributed import DistributedWorkflowExecutor, worker_engine
from areal_core.embedded import EmbeddedServer
from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from areal_core.errors import ControlError
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters, ModelRequest, ModelResponse
from areal_core.workflows import SingleTurnWorkflow
from conftest import MakeRunner
from engine_tools import (
    Sending,
    a_request,
    an_engine,
    by_conversation,
    check_balanced,
    check_none_live,
    check_one_at_a_time,
    check_replies,
    check_reply,
    lives,
    logs_of,
    true_versions,
)
from logged import LogLines
from reused_servers import ReusedServer
from scripted import Play, asking, making, scripted
from threaded_loops import turns_until

Run = AsyncTaskRunner[Any]
WeightsOf = Callable[[int], str]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.1)
    monkeypatch.setattr("areal_core._engine.recovery.PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("areal_core._engine.aborts._TIMEOUT_S", 0.3)
    noticed.notice(monkeypatch, Router, "put_in", "take_out", "explain")


@pytest.fixture
def runner(make_runner: MakeRunner) -> Run:
    return make_runner(1000)


@contextmanager
def a_follower(
    *servers: EmbeddedServer | str, version: int = 0, backend: Any = "sglang", **config: Any
) -> Iterator[RemoteInfEngine]:
    """Give an initialized engine that follows, and was told *version* before."""
    options = {"request_timeout": 30.0, "setup_timeout": 20.0, "control_timeout": 20.0, **config}
    engine = RemoteInfEngine(InferenceEngineConfig(**options), backend, follows=True)
    engine.set_version(version)
    try:
        engine.initialize([one if isinstance(one, str) else one.addr for one in servers])
        yield engine
    finally:
        engine.destroy()


@contextmanager
def following(follower: RemoteInfEngine, leader: RemoteInfEngine) -> Iterator[None]:
    """Have *follower* told what *leader* does, as workers are."""
    with contextlib.ExitStack() as ends:
        ends.callback(leader.subscribe(follower.set_version))
        ends.callback(leader.subscribe_generation(lambda is_open: follower.hold_generation(not is_open)))
        yield


def use(runner: Run, engine: RemoteInfEngine, latest: int, times: int = 12) -> None:
    """Generate a few times, and see that the weights of *latest* do it; the prober runs from then on."""
    request = a_request(most=3)
    for reply in Sending(runner, engine).replies([request] * times):
        check_reply(reply, request, latest=latest)
        assert set(true_versions(reply)) == {latest}


def one_reply(runner: Run, engine: RemoteInfEngine, request: ModelRequest) -> tuple[list[int], bool]:
    """Return which versions a reply says its tokens are of, and whether exactly."""
    sending = Sending(runner, engine)
    reply = sending.reply(sending.send(request))
    check_reply(reply, request, latest=26)
    return reply.output_versions, reply.versions_exact


def wait_for_all(engine: RemoteInfEngine) -> None:
    noticed.wait_for(lambda: set(engine.servers.values()) == {None})


def wait_until_out(engine: RemoteInfEngine, server: EmbeddedServer) -> None:
    noticed.wait_for(lambda: engine.servers[server.addr] is not None)


def check_log(replies: Iterable[ModelResponse], *servers: EmbeddedServer) -> None:
    """See that the servers made as many tokens of each version as *replies* have, for one at a time."""
    attempts = [one for one in lives(logs_of(*servers)) if one.tokens]
    check_one_at_a_time(attempts)
    logged: Counter[int | None] = Counter()
    for one in attempts:
        for version, count in one.versions:
            logged[version] += count
    got = Counter(version for reply in replies for version in true_versions(reply))
    assert got == logged
    assert len(by_conversation(attempts)) == len(list(replies))


# -- weights that change


@pytest.mark.parametrize("backend", ["sglang", "vllm"])
def test_updates_under_a_followers_generations_lose_none_and_each_token_is_told_by_no_newer_version(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, backend: str
) -> None:
    with (
        an_engine(*servers, backend=backend) as leader,
        a_follower(*servers, backend=backend) as follower,
        following(follower, leader),
    ):
        sending = Sending(runner, follower)
        runner.run(leader.update_weights_from_disk, weights_of(1), 1)
        requests = [a_request([1, number], most=400, rid=f"{number}") for number in range(90)]
        tasks: list[int] = []
        for version in (2, 3, 4):
            tasks += [sending.send(request) for request in requests[len(tasks) : len(tasks) + 30]]
            for server in servers:
                server.stats(generations=10 * (version - 1))
            runner.run(leader.update_weights_from_disk, weights_of(version), version)
            assert follower.get_version() == version
        replies = [sending.reply(task) for task in tasks]
        check_replies(zip(requests, replies, strict=True), latest=4)
        check_log(replies, *servers)
        assert {version for reply in replies for version in reply.output_versions} >= {1, 2, 3}
        assert any(reply.versions_exact for reply in replies)
        assert set(follower.servers.values()) == {None}
        check_balanced(follower)


@pytest.mark.any_loop
def test_before_the_version_is_told_the_label_is(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with a_follower(servers[0]) as follower:
        assert one_reply(runner, follower, a_request(most=3))[0] == [0, 0, 0]
        servers[0].load(weights_of(1), 1)
        # That it had them when this was sent, only its reply tells.
        versions, exact = one_reply(runner, follower, a_request(most=3))
        assert (versions[0], exact) == (0, False)
        assert one_reply(runner, follower, a_request(most=3)) == ([1, 1, 1], True)
        assert follower.get_version() == 0
        follower.set_version(1)
        assert one_reply(runner, follower, a_request(most=3)) == ([1, 1, 1], True)


@pytest.mark.any_loop
def test_what_was_sent_before_the_weights_changed_is_not_of_the_label_that_comes_after(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    request = dataclasses.replace(a_request(most=100), extra={"stream": False})
    with a_follower(servers[0]) as follower:
        task = Sending(runner, follower).send(request)
        servers[0].stats(in_flight=1)
        for _ in range(3):
            servers[0].generate_one()  # which takes as long as a token of the other
        servers[0].post("/pause_generation", {"mode": "in_place"})  # by who does not interrupt anything
        body = {"model_path": weights_of(1), "weight_version": "1", "flush_cache": False}
        servers[0].post("/update_weights_from_disk", body)
        servers[0].post("/continue_generation", {})
        reply = Sending(runner, follower).reply(task)
        assert set(true_versions(reply)) == {0, 1}
        check_reply(reply, request, latest=1)
        assert not reply.versions_exact


@pytest.mark.any_loop
def test_without_labels_tokens_are_of_the_version_that_was_told_at_least(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with a_follower(servers[0], backend="openai") as follower:
        assert one_reply(runner, follower, a_request(most=3)) == ([0, 0, 0], False)
        servers[0].load(weights_of(2), 2)
        assert one_reply(runner, follower, a_request(most=3)) == ([0, 0, 0], False)
        follower.set_version(2)
        assert one_reply(runner, follower, a_request(most=3)) == ([2, 2, 2], False)


class _OnlyAsked(SGLang):
    """A dialect whose replies bear no label, as those of completions: a server tells it when it is asked."""

    def reader(self, ask: Ask) -> Any:
        reader = super().reader(ask)
        event = reader.event

        def without_label(data: bytes) -> Piece | None:
            piece = event(data)
            return None if piece is None else dataclasses.replace(piece, label=None)

        reader.event = without_label  # type: ignore[method-assign]
        return reader


@pytest.mark.any_loop
def test_a_server_that_tells_its_version_only_when_it_is_asked_is_asked_after_each_that_is_told(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 100.0)
    monkeypatch.setattr(Prober, "_see_whether_lost", _nothing)
    with a_follower(servers[0], backend=_OnlyAsked()) as follower:
        servers[0].load(weights_of(1), 1)
        follower.set_version(2)  # which this one has missed, and no other shows
        assert one_reply(runner, follower, a_request(most=3)) == ([1, 1, 1], False)
        servers[0].load(weights_of(3), 3)
        follower.set_version(4)
        assert one_reply(runner, follower, a_request(most=3)) == ([3, 3, 3], False)
        servers[0].faults(["latency=0,path=/get_model_info"])
        for _ in range(3):
            assert one_reply(runner, follower, a_request(most=3)) == ([3, 3, 3], False)
        assert servers[0].stats().faults == {}


async def _nothing(*_: Any) -> None:
    pass


@pytest.mark.any_loop
def test_versions_per_token_are_told_as_they_are(
    runner: Run, make_embedded_server: MakeEmbeddedServer, weights_of: WeightsOf
) -> None:
    server = make_embedded_server(mode="test", tokens_in_tokens_out=True)
    with an_engine(server, backend="vllm") as leader, a_follower(server, backend="vllm") as follower:
        runner.run(leader.update_weights_from_disk, weights_of(1), 1)
        assert one_reply(runner, follower, a_request(most=3)) == ([1, 1, 1], True)
        follower.set_version(2)  # and nobody told the server
        assert one_reply(runner, follower, a_request(most=3)) == ([1, 1, 1], False)


@pytest.mark.any_loop
@pytest.mark.parametrize("label", [2, 7], ids=["older", "newer"])
def test_at_first_servers_are_believed_whatever_they_have(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, label: int
) -> None:
    for server in servers:
        server.load(weights_of(label), label)
    with a_follower(*servers, version=5) as follower:
        assert set(follower.servers.values()) == {None}
        assert one_reply(runner, follower, a_request(most=3)) == ([label] * 3, label > 5)
        use(runner, follower, latest=label)
        assert set(follower.servers.values()) == {None}


@pytest.mark.any_loop
def test_of_a_version_that_is_told_tokens_are_exactly_also_when_it_is_lower(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prober, "_see_whether_lost", _nothing)  # only replies show anything
    with a_follower(servers[0]) as follower:
        for version in (5, 3, 4):
            servers[0].load(weights_of(version), version)
            follower.set_version(version)
            assert one_reply(runner, follower, a_request(most=3)) == ([version] * 3, True)
            assert set(follower.servers.values()) == {None}


@pytest.mark.any_loop
def test_what_was_shown_before_a_version_was_told_counts_no_more() -> None:
    policy, server = Policy(Events()), Server(Exchange(Address.parse("a:1"), None, 1), SGLang())
    following = Following(policy)
    sent = policy.moment()
    policy.set(3)
    following.note(server, 5, sent)  # a reply that was under way
    assert following.shown_by(server).before.version == 3
    following.note(server, 5, policy.moment())
    following.note(server, 2, sent)
    assert following.shown_by(server).before.version == 5
    policy.set(4)
    assert following.shown_by(server).before.version == 4


def test_what_who_has_control_interrupts_goes_on_at_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 100.0)
    nothing_yet = making(0, "abort")

    async def act() -> None:
        async with scripted(nothing_yet, nothing_yet, making()) as server:
            config = InferenceEngineConfig(request_timeout=10.0)
            follower = RemoteInfEngine(config, follows=True)
            await asyncio.to_thread(follower.initialize, server.url)
            reply = await follower.agenerate(asking())
            assert reply.stop_reason == "length"
            assert len(server.generations) == 3
            await asyncio.to_thread(follower.destroy)

    play(act)


# -- servers that are lost, and return


def test_a_server_that_is_killed_under_a_follower_returns_with_the_weights_that_the_leader_gives_it(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with an_engine(*servers) as leader, a_follower(*servers) as follower, following(follower, leader):
        runner.run(leader.update_weights_from_disk, weights_of(1), 1)
        sending = Sending(runner, follower)
        requests = [a_request([1, number], most=400, rid=f"{number}") for number in range(150)]
        tasks = [sending.send(request) for request in requests]
        servers[0].stats(in_flight=30)
        servers[0].kill()
        check_replies(zip(requests, map(sending.reply, tasks), strict=True), latest=1)
        wait_until_out(follower, servers[0])
        servers[0].start()
        wait_for_all(follower)
        use(runner, follower, latest=1)
        assert servers[0].versions() == [0, 1]
        made = {version for one in lives(logs_of(servers[0])) for version, _ in one.versions}
        assert made == {1}
        check_balanced(follower)


@pytest.mark.any_loop
def test_a_server_that_returns_stays_out_until_it_shows_the_version_that_was_told(
    runner: Run,
    servers: list[ReusedServer],
    weights_of: WeightsOf,
    log_lines: LogLines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with a_follower(*servers) as follower:
        for server in servers:
            server.load(weights_of(2), 2)
        follower.set_version(2)
        use(runner, follower, latest=2)
        servers[0].kill()
        wait_until_out(follower, servers[0])
        monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 100.0)  # it is asked more often
        servers[0].start()
        line = log_lines.wait_for("server_stays_out_of_rotation")
        assert f"{servers[0].addr} tells no version, where it or others did" in line.message
        servers[0].load(weights_of(1), 1)
        log_lines.wait_for(f"{servers[0].addr} has version 1, where 2 was told")
        use(runner, follower, latest=2)
        assert servers[0].stats().generations == 0
        servers[0].load(weights_of(2), 2)
        wait_for_all(follower)
        use(runner, follower, latest=2)
        assert servers[0].stats().generations > 0


@pytest.mark.any_loop
def test_a_server_that_is_out_is_tried_at_once_when_its_version_is_told(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_follower(*servers) as follower:
        for server in servers:
            server.load(weights_of(1), 1)
        follower.set_version(1)
        use(runner, follower, latest=1)
        servers[0].kill()
        wait_until_out(follower, servers[0])
        servers[0].start()
        servers[0].load(weights_of(2), 2)
        noticed.wait_for(
            lambda: "has version 2, where 1 was told" in (follower.servers[servers[0].addr] or "")
        )
        monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 100.0)
        calls = list[str]()
        _note_calls(monkeypatch, calls, Prober, "_find_slow")
        _note_calls(monkeypatch, calls, Router, "explain")
        # The last try of a look from now on: it sleeps longer after it than this test may take.
        noticed.wait_for(
            lambda: "explain" in calls[calls.index("_find_slow") :] if "_find_slow" in calls else False
        )
        follower.set_version(2)
        noticed.wait_for(lambda: follower.servers[servers[0].addr] is None)


def _note_calls(monkeypatch: pytest.MonkeyPatch, calls: list[str], owner: type, name: str) -> None:
    """Have *name* added to *calls* before each call of that method, which is noticed."""
    method = getattr(owner, name)

    def call(*args: Any) -> Any:
        calls.append(name)
        return method(*args)

    monkeypatch.setattr(owner, name, call)
    noticed.notice(monkeypatch, owner, name)


@pytest.mark.any_loop
def test_a_server_that_missed_an_update_that_another_shows_is_not_used(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    with a_follower(*servers[:2]) as follower:
        for server in servers[:2]:
            server.load(weights_of(1), 1)
        follower.set_version(1)
        use(runner, follower, latest=1)
        sending = Sending(runner, follower)
        request = a_request(most=400)
        servers[0].post("/pause_generation", {})  # as it is left by who gave it up
        tasks = [sending.send(request) for _ in range(8)]
        for server in servers[:2]:
            server.stats(in_flight=4)
        servers[1].load(weights_of(2), 2)
        follower.set_version(2)
        log_lines.wait_for(f"why={servers[0].addr} has version 1, where others have 2")
        wait_until_out(follower, servers[0])
        for task in tasks:  # those that waited there too
            check_reply(sending.reply(task), request, latest=2)
        use(runner, follower, latest=2)
        servers[0].post("/continue_generation", {})
        servers[0].load(weights_of(2), 2)
        wait_for_all(follower)


@pytest.mark.any_loop
@pytest.mark.parametrize("backend", ["sglang", _OnlyAsked()], ids=["labels", "asked"])
def test_a_server_that_was_restarted_between_two_probes_is_not_used_with_its_first_weights(
    runner: Run,
    servers: list[ReusedServer],
    weights_of: WeightsOf,
    monkeypatch: pytest.MonkeyPatch,
    backend: Any,
) -> None:
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 100.0)
    with a_follower(*servers, backend=backend) as follower:
        for server in servers:
            server.load(weights_of(1), 1)
        follower.set_version(1)
        use(runner, follower, latest=1)
        servers[0].kill()
        servers[0].start()
        use(runner, follower, latest=1, times=30)
        wait_until_out(follower, servers[0])


@pytest.mark.any_loop
def test_a_server_without_labels_is_believed_when_it_returns(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with a_follower(*servers[:2]) as follower:
        use(runner, follower, latest=0)
        follower.set_version(3)
        servers[0].kill()
        wait_until_out(follower, servers[0])
        servers[0].start()
        wait_for_all(follower)


@pytest.mark.any_loop
def test_a_server_that_is_added_is_used_when_it_shows_what_the_others_do(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf, log_lines: LogLines
) -> None:
    with a_follower(*servers[:2]) as follower:
        for server in servers[:2]:
            server.load(weights_of(1), 1)
        follower.set_version(1)
        use(runner, follower, latest=1)
        follower.add_server(servers[2].addr)
        log_lines.wait_for(f"{servers[2].addr} tells no version")
        use(runner, follower, latest=1)
        assert servers[2].stats().generations == 0
        servers[2].load(weights_of(1), 1)
        wait_for_all(follower)


@pytest.mark.any_loop
def test_a_server_that_is_ahead_as_others_are_returns_before_the_version_is_told(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with a_follower(*servers[:2]) as follower:
        for server in servers[:2]:
            server.load(weights_of(4), 4)
        use(runner, follower, latest=4)
        servers[0].faults(["status=503,path=/health"])
        follower.remove_server(servers[0].addr)
        follower.add_server(servers[0].addr)
        servers[0].faults([])
        wait_for_all(follower)


# -- control


@pytest.mark.any_loop
def test_no_control_call_of_a_follower_reaches_a_server(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    def watch(server: ReusedServer) -> None:
        server.faults([f"latency=0,path={path}" for path in ("/*_generation", "/update_weights_from_disk")])

    for server in servers:
        watch(server)
    with a_follower(*servers[:2]) as follower:
        use(runner, follower, latest=0)
        follower.hold_generation(True)
        follower.add_server(servers[2].addr)
        servers[0].kill()
        wait_until_out(follower, servers[0])
        servers[0].start()
        watch(servers[0])
        wait_for_all(follower)
        follower.hold_generation(False)
        sending = Sending(runner, follower)
        cancelled = sending.send(a_request(most=5000))
        runner.run(turns_until, lambda: any(server.stats().in_flight for server in servers))
        sending.cancel(cancelled)
        sending.ending(cancelled)
        use(runner, follower, latest=0)
        check_none_live(*servers)  # what ends its own requests does reach them
        follower.set_version(1)
    assert [server.stats().faults.get("latency", 0) for server in servers] == [0, 0, 0]
    assert [server.versions() for server in servers] == [[0], [], []]


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("pause_generation", ()),
        ("continue_generation", ()),
        ("abort_all_requests", ()),
        ("update_weights_from_disk", ("path", 1)),
        ("call_all", ("/path",)),
        ("paused", ()),
    ],
)
def test_what_is_for_who_has_control_a_follower_refuses(
    runner: Run, servers: list[ReusedServer], method: str, arguments: tuple[Any, ...]
) -> None:
    async def call() -> None:
        called = getattr(follower, method)(*arguments)
        if method == "paused":
            async with called:
                pass
        else:
            await called

    with a_follower(servers[0]) as follower:
        before = servers[0].stats().requests
        with pytest.raises(
            RuntimeError, match=rf"{method}\(\) is for the engine that has control.*call it there"
        ):
            runner.run(call)
        assert servers[0].stats().requests == before + 1
        assert follower.get_version() == 0


def test_what_is_no_flag_is_refused() -> None:
    with pytest.raises(TypeError, match="follows='yes' is not a bool"):
        RemoteInfEngine(InferenceEngineConfig(), follows="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="held=1 is not a bool"):
        RemoteInfEngine(InferenceEngineConfig()).hold_generation(1)  # type: ignore[arg-type]


# -- generations that are held


def test_what_is_held_waits_and_is_not_charged_for_it(runner: Run, servers: list[ReusedServer]) -> None:
    with a_follower(*servers, request_timeout=1.5) as follower:
        use(runner, follower, latest=0)
        before = [server.stats().generations for server in servers]
        follower.hold_generation(True)
        follower.hold_generation(True)
        assert follower.stats().is_paused
        sending = Sending(runner, follower)
        tasks = [sending.send(a_request(most=3)) for _ in range(6)]
        assert follower._state is not None
        opening = follower._state.opening
        runner.run(turns_until, lambda: opening.closed_s > 1.7)
        assert [server.stats().generations for server in servers] == before
        assert not any(server.is_paused() for server in servers)
        follower.hold_generation(False)
        for task in tasks:
            check_reply(sending.reply(task), a_request(most=3), latest=0)
        assert not follower.stats().is_paused


@pytest.mark.any_loop
def test_what_was_sent_before_a_hold_goes_on(runner: Run, servers: list[ReusedServer]) -> None:
    with a_follower(servers[0]) as follower:
        sending = Sending(runner, follower)
        task = sending.send(a_request(most=100))
        servers[0].stats(in_flight=1)
        follower.hold_generation(True)
        reply = sending.reply(task)
        assert reply.segments == 1
        late = sending.send(a_request(most=3))
        follower.hold_generation(False)
        sending.reply(late)


@pytest.mark.any_loop
def test_a_hold_outlasts_the_life_of_an_engine_and_comes_before_it(
    runner: Run, servers: list[ReusedServer]
) -> None:
    engine = RemoteInfEngine(InferenceEngineConfig(request_timeout=10.0), follows=True)
    engine.hold_generation(True)
    for _ in range(2):
        engine.initialize(servers[0].addr)
        task = Sending(runner, engine).send(a_request(most=3))
        runner.run(turns_until, lambda: engine.stats().running == 1)
        assert servers[0].stats().generations == 0
        engine.destroy()
        Sending(runner, engine).ending(task)
    engine.initialize(servers[0].addr)
    task = Sending(runner, engine).send(a_request(most=3))
    engine.hold_generation(False)
    Sending(runner, engine).reply(task)
    engine.destroy()


@pytest.mark.any_loop
def test_a_hold_and_a_pause_both_have_to_end(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    with an_engine(*servers) as engine:
        use(runner, engine, latest=0)
        engine.hold_generation(True)
        runner.run(engine.pause_generation)
        assert all(server.is_paused() for server in servers)
        runner.run(engine.continue_generation)
        assert not any(server.is_paused() for server in servers)
        assert engine.stats().is_paused
        for server in servers:
            server.faults(["latency=0,path=/*_generation"])
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert [server.stats().faults["latency"] for server in servers] == [2, 2, 2]
        assert not any(server.is_paused() for server in servers)
        assert engine.stats().is_paused
        runner.run(engine.pause_generation)
        engine.hold_generation(False)
        assert engine.stats().is_paused
        runner.run(engine.continue_generation)
        assert not engine.stats().is_paused
        use(runner, engine, latest=1)


@pytest.mark.any_loop
def test_a_pause_that_fails_in_a_hold_leaves_no_server_paused(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        engine.hold_generation(True)
        servers[1].faults(["status=500,path=/pause_generation"])
        with pytest.raises(ControlError):
            runner.run(engine.pause_generation)
        assert not any(server.is_paused() for server in servers)
        engine.hold_generation(False)
        use(runner, engine, latest=0)


@pytest.mark.any_loop
def test_a_server_that_returns_in_a_hold_is_not_paused(runner: Run, servers: list[ReusedServer]) -> None:
    with an_engine(*servers[:2]) as engine:
        use(runner, engine, latest=0)
        engine.hold_generation(True)
        servers[0].kill()
        wait_until_out(engine, servers[0])
        servers[0].start()
        wait_for_all(engine)
        assert not servers[0].is_paused()
        engine.hold_generation(False)
        use(runner, engine, latest=0)


@pytest.mark.any_loop
def test_after_a_while_the_log_says_what_lets_go(
    runner: Run, servers: list[ReusedServer], log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.opening._SAY_SO_AFTER_S", 0.02)
    with a_follower(servers[0]) as follower:
        follower.hold_generation(True)
        task = Sending(runner, follower).send(a_request(most=3))
        line = log_lines.wait_for("generation_is_paused")
        assert "remedy=hold_generation(False) opens it" in line.message
        follower.hold_generation(False)
        Sending(runner, follower).reply(task)


# -- who is told


@pytest.mark.any_loop
def test_who_subscribes_is_told_when_generation_closes_and_opens_in_the_thread_that_does_it(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    told: list[tuple[bool, bool]] = []

    async def thread() -> int:
        return threading.get_ident()

    with an_engine(*servers) as engine:
        loop_thread = runner.run(thread)
        end = engine.subscribe_generation(
            lambda is_open: told.append((is_open, threading.get_ident() == loop_thread))
        )
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
        assert told == [(False, True), (True, True)]
        engine.hold_generation(True)
        runner.run(engine.pause_generation)
        engine.hold_generation(False)
        assert told[2:] == [(False, False)]
        runner.run(engine.continue_generation)
        runner.run(engine.continue_generation)
        assert told[3:] == [(True, True)]
        end()
        end()
        engine.hold_generation(True)
        assert len(told) == 4


@pytest.mark.any_loop
def test_when_servers_are_paused_who_subscribed_has_been_told_and_when_they_go_on_they_do_before_it_is(
    runner: Run, servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    seen: list[tuple[bool, list[bool], int]] = []
    with an_engine(*servers) as engine:
        engine.subscribe_generation(
            lambda is_open: seen.append(
                (is_open, [server.is_paused() for server in servers], engine.get_version())
            )
        )
        runner.run(engine.update_weights_from_disk, weights_of(1), 1)
    assert seen == [(False, [False] * 3, 0), (True, [False] * 3, 1)]


@pytest.mark.any_loop
def test_who_subscribes_when_generation_is_closed_is_told_at_once(
    runner: Run, servers: list[ReusedServer]
) -> None:
    told: list[bool] = []
    with an_engine(servers[0]) as engine:
        engine.subscribe_generation(told.append)
        assert told == []
        runner.run(engine.pause_generation)
        engine.subscribe_generation(told.append)
        assert told == [False, False]


@pytest.mark.any_loop
def test_a_subscription_to_generation_outlasts_the_life_of_an_engine_and_a_pause_does_not(
    runner: Run, servers: list[ReusedServer]
) -> None:
    told: list[bool] = []
    engine = RemoteInfEngine(InferenceEngineConfig())
    engine.subscribe_generation(told.append)
    engine.initialize(servers[0].addr)
    runner.run(engine.pause_generation)
    engine.destroy()
    assert told == [False]
    engine.initialize(servers[0].addr)
    assert told == [False, True]
    assert not servers[0].is_paused()
    engine.hold_generation(True)
    engine.destroy()
    engine.initialize(servers[0].addr)
    assert told == [False, True, False]
    engine.hold_generation(False)
    assert told == [False, True, False, True]
    engine.destroy()


@pytest.mark.any_loop
def test_a_subscriber_to_generation_that_raises_keeps_it_from_nobody(
    servers: list[ReusedServer], log_lines: LogLines
) -> None:
    def bad(_: bool) -> None:
        raise ZeroDivisionError("in the subscriber")

    told: list[bool] = []
    with an_engine(servers[0]) as engine:
        engine.subscribe_generation(bad)
        engine.subscribe_generation(told.append)
        engine.hold_generation(True)
        assert told == [False]
        line = log_lines.wait_for("generation_subscriber_raised")
        assert isinstance(line.error, ZeroDivisionError)
        with pytest.raises(TypeError, match="pass a function that takes whether generation is open"):
            engine.subscribe_generation(None)  # type: ignore[arg-type]


@pytest.mark.any_loop
def test_what_subscribers_hear_last_is_how_it_is(servers: list[ReusedServer]) -> None:
    told: list[bool] = []
    with an_engine(servers[0]) as engine:
        engine.subscribe_generation(told.append)
        start = threading.Barrier(4)

        def shake(last: bool) -> None:
            start.wait()
            for _ in range(300):
                engine.hold_generation(True)
                engine.hold_generation(False)
            if last:
                engine.hold_generation(True)

        for last in (True, False):
            threads = [threading.Thread(target=shake, args=(last,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert told[-1] is not engine.stats().is_paused
        assert all(one is not other for one, other in pairwise(told))


# -- workers


@pytest.fixture
def _ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@pytest.mark.any_loop
@pytest.mark.usefixtures("_ray")
@pytest.mark.timeout(120)
def test_the_engines_of_workers_follow_the_trainers_also_of_one_that_joins_later(
    loop_factory: Callable[[], Any], servers: list[ReusedServer], weights_of: WeightsOf
) -> None:
    addresses = [server.addr for server in servers]

    def make_engine() -> Any:
        made = RemoteInfEngine(InferenceEngineConfig(setup_timeout=20.0), follows=True)
        made.initialize(addresses)
        return made

    async def state() -> tuple[int, bool]:
        return worker_engine().get_version(), worker_engine().stats().is_paused

    def wait_for(*expected: tuple[int, bool]) -> None:
        deadline = time.monotonic() + 30.0
        while (states := executor.run_everywhere(state)) != list(expected):
            assert time.monotonic() < deadline, states

    def length(_: Any, reply: list[int], __: Any) -> float:
        return float(len(reply))

    gconfig = GenerationHyperparameters(max_new_tokens=300, ignore_eos=True)
    workflow = SingleTurnWorkflow(length, gconfig)
    config = InferenceEngineConfig(consumer_batch_size=40, on_stale="keep")
    with an_engine(*servers) as leader:
        executor = DistributedWorkflowExecutor(
            config, leader, make_engine, workers=2, loop_factory=loop_factory, ray_options={"num_cpus": 0}
        )
        try:
            executor.initialize()
            for number in range(40):
                executor.submit({"input_ids": [1, 2, number]}, workflow)
            for server in servers:
                server.stats(generations=10)
            executor.runner.run(leader.update_weights_from_disk, weights_of(1), 1)
            outcomes = executor.wait_outcomes(40, timeout=60.0)
            assert Counter(outcome.status for outcome in outcomes) == {"accepted": 40}
            trajectories = [outcome.trajectory for outcome in outcomes if outcome.trajectory is not None]
            assert {float(one["rewards"][0]) for one in trajectories} == {300.0}
            assert {version for one in trajectories for version in one["versions"][0, 3:].tolist()} == {0, 1}
            wait_for(*[(1, False)] * 2)
            executor.runner.run(leader.pause_generation)
            wait_for(*[(1, True)] * 2)
            executor.add_workers(1)
            wait_for(*[(1, True)] * 3)
            executor.runner.run(leader.continue_generation)
            wait_for(*[(1, False)] * 3)
            assert leader._news._subscribers.now()
        finally:
            executor.destroy(20.0)
        assert not leader._news._subscribers.now()
