"""A server that was restarted with old weights never serves under the new version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from areal_core.embedded import EmbeddedServer, write_weights
from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from calls import call
from conftest import MakeRunner
from engine_tools import (
    Sending,
    a_request,
    an_engine,
    check_balanced,
    check_reply,
    true_versions,
)

DIALECTS: dict[str, tuple[str, dict[str, bool]]] = {
    "sglang": ("sglang", {}),
    "sglang with spans": ("sglang", {"weight_version_spans": True}),
    "vllm completions": ("vllm", {"tokens_in_tokens_out": False}),
    "vllm tokens": ("vllm", {"tokens_in_tokens_out": True}),
}
any_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Write the weights of version 1."""
    write_weights(tmp_path / "1", 1)
    return tmp_path / "1"


def a_server(make: MakeEmbeddedServer, dialect: str, ms_per_token: float) -> tuple[EmbeddedServer, str]:
    backend, options = DIALECTS[dialect]
    return make(mode="test", ms_per_token=ms_per_token, sigma=0, **options), backend


@any_dialect
@pytest.mark.any_loop
def test_restarted_between_two_generations_it_gets_the_new_weights_first(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, weights: Path, dialect: str
) -> None:
    server, backend = a_server(make_embedded_server, dialect, 1)
    runner = make_runner()
    with an_engine(server, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, weights, 1)
        check_reply(sending.reply(sending.send(a_request(rid="talk"))), a_request(), latest=1)
        server.kill()
        server.start()  # nobody saw it
        reply = sending.reply(sending.send(a_request(rid="talk")))
    assert true_versions(reply) == reply.output_versions == [1] * 20


@any_dialect
@pytest.mark.any_loop
def test_restarted_during_a_generation_it_goes_on_with_the_new_weights(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, weights: Path, dialect: str
) -> None:
    server, backend = a_server(make_embedded_server, dialect, 5)
    runner = make_runner()
    with an_engine(server, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, weights, 1)
        task = sending.send(a_request(most=60))
        server.stats(in_flight=1)
        server.kill()
        server.start()
        reply = sending.reply(task)
        check_balanced(engine)
    check_reply(reply, a_request(most=60), latest=1)
    assert true_versions(reply) == reply.output_versions == [1] * 60


@pytest.mark.parametrize("dialect", ["sglang", "sglang with spans", "vllm tokens"])
@pytest.mark.any_loop
def test_given_older_weights_by_others_it_gets_the_new_ones_again(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, weights: Path, dialect: str
) -> None:
    server, backend = a_server(make_embedded_server, dialect, 1)
    runner = make_runner()
    old = str(weights.with_name("0"))
    write_weights(old, 0)
    with an_engine(server, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, weights, 1)
        if backend == "sglang":
            call(server, "POST", "/update_weights_from_disk", {"model_path": old, "weight_version": "0"})
        else:
            load = {"method": "reload_weights", "kwargs": {"weights_path": old}}
            call(server, "POST", "/collective_rpc", load)
            call(server, "POST", "/update_weight_version", {"new_version": "0"})
        reply = sending.reply(sending.send(a_request()))
    assert true_versions(reply) == reply.output_versions == [1] * 20


@pytest.mark.any_loop
def test_a_server_that_gets_its_weights_while_it_is_asked_for_them_has_proven_nothing(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, weights: Path
) -> None:
    server, backend = a_server(make_embedded_server, "vllm completions", 5)
    runner = make_runner()
    with an_engine(server, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, weights, 1)
        server.kill()
        server.start()
        server.faults(["latency=1200,path=/weight_info,next=1"])
        first = sending.send(a_request(most=40))  # has tokens of version 0, and asks
        server.stats(latency=1)
        second = sending.send(a_request([4], most=40))  # asks too, and has the server taken out and loaded
        for task, prompt in ((first, [1, 2, 3]), (second, [4])):
            check_reply(sending.reply(task), a_request(prompt, most=40), latest=1)


@pytest.mark.any_loop
def test_what_runs_on_a_server_that_missed_an_update_has_no_token_under_a_wrong_version(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, weights: Path
) -> None:
    server, backend = a_server(make_embedded_server, "vllm tokens", 5)
    other, _ = a_server(make_embedded_server, "vllm tokens", 5)
    runner = make_runner()
    write_weights(weights.with_name("2"), 2)
    with an_engine(server, other, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, weights, 1)
        sending.reply(sending.send(a_request(most=1, rid="talk")))
        home = server if server.stats().generations else other
        request = a_request(most=400, rid="talk")
        task = sending.send(request)
        # It leaves when one generation cannot be aborted, and the other goes on.
        cancelled = sending.send(a_request([4], 400, rid="talk"))
        home.stats(in_flight=2)
        sending.reply(sending.send(a_request([5], 4, rid="talk")))  # so have the other two
        home.faults(["disconnect=0,path=*/abort_requests", "status=500,path=/health"])
        sending.cancel(cancelled)
        assert isinstance(sending.ending(cancelled), asyncio.CancelledError)
        runner.run(engine.update_weights_from_disk, weights.with_name("2"), 2)
        assert engine.servers[home.addr] is not None
        home.faults(["latency=300,path=/update_weight_version"])  # and the new label is late
        reply = sending.reply(task)
        check_reply(reply, request, latest=2)
        assert set(true_versions(reply)) == {1, 2}


@pytest.mark.any_loop
def test_a_server_that_comes_back_with_another_variant_of_its_dialect_is_used_as_that(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, weights: Path
) -> None:
    server, backend = a_server(make_embedded_server, "vllm tokens", 5)
    runner = make_runner()
    with an_engine(server, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, weights, 1)
        sending.reply(sending.send(a_request()))  # it tells who made which token
        task = sending.send(a_request(most=60))
        server.stats(in_flight=1)
        server.kill()
        older = {"tokens_in_tokens_out": False, "port": int(server.addr.rpartition(":")[2])}
        make_embedded_server(mode="test", **older)
        reply = sending.reply(task)
    check_reply(reply, a_request(most=60), latest=1)
    assert reply.output_versions == [1] * 60
