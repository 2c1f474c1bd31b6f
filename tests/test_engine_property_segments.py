"""Replies of several segments, and of several versions."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from areal_core.embedded import token_of, write_weights
from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from areal_core.types import ModelResponse
from conftest import MakeRunner
from engine_tools import END_TOKEN, Sending, a_request, an_engine, check_reply, lives, logs_of, true_versions

pytestmark = pytest.mark.any_loop


def ends_at(first: int, last: int, least: int) -> list[int]:
    """Return a prompt whose reply, of *least* tokens or more, ends with one of those numbers, from 1."""

    def length(prompt: list[int]) -> int:
        tokens = list(prompt)
        while tokens[-1] != END_TOKEN or len(tokens) == len(prompt):
            tokens.append(token_of(0, tokens, may_end=len(tokens) + 1 - len(prompt) >= least))
            if len(tokens) > len(prompt) + last:
                break
        return len(tokens) - len(prompt)

    return next([9, salt] for salt in itertools.count() if first <= length([9, salt]) <= last)


@pytest.mark.parametrize("backend", ["sglang", "vllm", "openai"])
def test_a_reply_that_was_aborted_with_its_last_token_is_complete(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, backend: str
) -> None:
    server = make_embedded_server(mode="test", fault=["abort=5"])
    with an_engine(server, backend=backend) as engine:
        sending = Sending(make_runner(), engine)
        for most, segments in ((5, 1), (10, 2), (11, 3)):
            reply = sending.reply(sending.send(a_request(most=most)))
            check_reply(reply, a_request(most=most), latest=0)
            assert (reply.stop_reason, reply.segments) == ("length", segments)
    assert [life.prompt_tokens for life in lives(logs_of(server))] == [3, 3, 8, 3, 8, 13]


@pytest.mark.parametrize("backend", ["sglang", "vllm", "openai"])
def test_the_least_tokens_are_counted_over_all_segments(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, backend: str
) -> None:
    # Without a minimum the first would end sooner; with all of it in the second segment, the second later.
    late = ends_at(7, 9, 0)
    soon = ends_at(10, 14, 10)
    server = make_embedded_server(mode="test")
    with an_engine(server, backend=backend) as engine:
        sending = Sending(make_runner(), engine)
        for prompt in (late, soon):
            server.faults(["abort=6,next=1"])
            request = a_request(prompt, 60, ignore_eos=False, min_new_tokens=10)
            reply = sending.reply(sending.send(request))
            check_reply(reply, request, latest=0)
            assert reply.segments == 2
            assert len(reply.output_tokens) >= 10


# The trainer updates in place, by calls of its own, and generations go on as they are.


def calls_in_place(backend: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls that load the weights of version 1 from *path*, between two tokens of what runs."""
    if backend == "sglang":
        load = {"model_path": str(path), "weight_version": "1", "flush_cache": False}
        return [
            ("/pause_generation", {"mode": "in_place"}),
            ("/update_weights_from_disk", load),
            ("/continue_generation", {}),
        ]
    return [
        ("/pause?mode=keep", {}),
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}),
        ("/update_weight_version", {"new_version": "1"}),
        ("/resume", {}),
    ]


def across_an_update(
    make_runner: MakeRunner,
    make: MakeEmbeddedServer,
    folder: Path,
    backend: str,
    *,
    stream: bool = True,
    **options: bool,
) -> ModelResponse:
    """Return a reply that has tokens of version 0, and of version 1 behind them, checked as all are."""
    write_weights(folder / "0", 0)
    write_weights(folder / "1", 1)
    server, runner = make(mode="test", ms_per_token=5, sigma=0, **options), make_runner()
    request = dataclasses.replace(a_request(most=200), extra={} if stream else {"stream": False})
    with an_engine(server, backend=backend) as engine:
        sending = Sending(runner, engine)
        runner.run(engine.update_weights_from_disk, folder / "0", 0)  # before, they have no number
        task = sending.send(request)
        server.stats(in_flight=1)
        runner.run(engine.agenerate, a_request([4], 5))  # meanwhile that has tokens
        for path, body in calls_in_place(backend, folder / "1"):
            runner.run(engine.call_all, path, body)
        engine.set_version(1)
        reply = sending.reply(task)
    check_reply(reply, request, latest=1)
    assert reply.segments == 1
    assert true_versions(reply) == sorted(true_versions(reply), key=str)
    assert set(true_versions(reply)) == {0, 1}
    return reply


def test_a_version_per_token_is_exact_across_an_update_in_place(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, tmp_path: Path
) -> None:
    reply = across_an_update(make_runner, make_embedded_server, tmp_path, "sglang", weight_version_spans=True)
    assert reply.versions_exact
    assert set(reply.output_versions) == {0, 1}


def test_a_version_per_chunk_is_a_bound_across_an_update_in_place(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, tmp_path: Path
) -> None:
    reply = across_an_update(make_runner, make_embedded_server, tmp_path, "sglang")
    assert not reply.versions_exact
    assert set(reply.output_versions) == {0, 1}


@pytest.mark.parametrize("backend", ["sglang", "vllm"])
def test_a_version_for_the_whole_reply_is_that_when_it_was_sent(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, tmp_path: Path, backend: str
) -> None:
    reply = across_an_update(
        make_runner, make_embedded_server, tmp_path, backend, stream=False, tokens_in_tokens_out=False
    )
    assert not reply.versions_exact
    assert set(reply.output_versions) == {0}
    assert reply.ttft is None


def test_without_a_label_the_version_is_that_when_it_was_sent(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, tmp_path: Path
) -> None:
    reply = across_an_update(make_runner, make_embedded_server, tmp_path, "vllm", tokens_in_tokens_out=False)
    assert not reply.versions_exact
    assert set(reply.output_versions) == {0}
