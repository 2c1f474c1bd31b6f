"""What servers say of themselves when they are asked, their weights and the variant of their dialect, and
what follows where one cannot say it just now.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from areal_core._engine.server import Server
from areal_core.config import InferenceEngineConfig
from areal_core.errors import InferenceError, WeightUpdateError
from areal_core.remote_inf_engine import RemoteInfEngine
from replies import completion
from scripted import (
    Answer,
    Play,
    ScriptedServer,
    asking,
    engine_on,
    in_turn,
    made,
    refusing,
    saying,
    scripted,
    silent,
)
from threaded_loops import turns_until

ASK, LOAD, TOKENS = "/get_model_info", "/update_weights_from_disk", "/inference/v1/generate"
TRIES = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.proof._BETWEEN_TRIES_S", (0.01,) * (TRIES - 1))
    monkeypatch.setattr("areal_core._engine.proof._TIMEOUT_S", 0.2)
    monkeypatch.setattr("areal_core._engine.retries._full_jitter", lambda _: 0.0)


def plain(body: bytes) -> Answer:
    return saying(body, content_type="application/json")


def of_version(label: Any) -> Answer:
    """Answer that the weights are of *label*."""
    return plain(json.dumps({"weight_version": label}).encode())


def known(engine: RemoteInfEngine) -> Server:
    """Return what *engine* knows of its one server."""
    assert engine._state is not None
    (server,) = engine._state.router.servers
    return server


async def breaking_off(request: web.BaseRequest, _: dict[str, Any]) -> web.StreamResponse:
    """Hang up in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.close()
    return response


PASSING = {
    "429": refusing(429),
    "500": refusing(500),
    "503": refusing(503),
    "hangs-up": breaking_off,
    "silent": silent,
    "garbled": plain(b"<html>"),
}
passing = pytest.mark.parametrize("fails", PASSING.values(), ids=PASSING)


@contextlib.asynccontextmanager
async def updated(asked: Answer, **config: Any) -> AsyncIterator[tuple[ScriptedServer, RemoteInfEngine]]:
    """Give a server and its engine, which has given it the weights of version 1."""
    async with scripted() as server, engine_on(server, **config) as engine:
        server.control |= {LOAD: plain(b'{"success": true}'), ASK: asked}
        await engine.update_weights_from_disk("weights", 1)
        yield server, engine


# -- when weights are loaded


@passing
def test_weights_are_read_back_where_the_server_cannot_tell_them_at_once(play: Play, fails: Answer) -> None:
    async def act() -> None:
        asked = in_turn(*[fails] * (TRIES - 1), of_version("0"))
        with pytest.raises(WeightUpdateError, match="says that it has version 0, not 1"):
            async with updated(asked):
                pass

    play(act)


@passing
def test_weights_that_cannot_be_read_back_are_not_believed(play: Play, fails: Answer) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            server.control |= {LOAD: plain(b'{"success": true}'), ASK: fails}
            with pytest.raises(WeightUpdateError) as failed:
                await engine.update_weights_from_disk("weights", 1)
            (error,) = failed.value.answers.values()
            assert isinstance(error, InferenceError)
            assert f"GET {ASK}" in str(error)
            assert len(server.of(ASK)) == TRIES
            assert engine.get_version() == 0

    play(act)


@pytest.mark.parametrize(
    "asked",
    [
        *(pytest.param(refusing(status), id=f"{status}") for status in (403, 404, 405, 501)),
        *(
            pytest.param(of_version(label), id=f"{label}")
            for label in ("default", None, 1.5, [1], {"step": 1})
        ),
    ],
)
def test_a_server_that_has_no_version_is_believed_and_asked_once(play: Play, asked: Answer) -> None:
    async def act() -> None:
        async with updated(asked) as (server, engine):
            assert engine.get_version() == 1
            assert len(server.of(ASK)) == 1
            assert (await engine.agenerate(asking())).output_tokens == made()

    play(act)


# -- when tokens have come


@passing
def test_an_attempt_is_kept_where_its_server_cannot_tell_its_weights_at_once(
    play: Play, fails: Answer
) -> None:
    async def act() -> None:
        fine = of_version("1")
        async with updated(in_turn(fine, *[fails] * (TRIES - 1), fine)) as (server, engine):
            assert (await engine.agenerate(asking())).output_versions == [1] * 4
            assert (len(server.generations), server.aborted) == (1, [])

    play(act)


@passing
def test_an_attempt_whose_weights_are_not_told_is_aborted_and_made_again_and_the_server_stays(
    play: Play, fails: Answer
) -> None:
    async def act() -> None:
        fine = of_version("1")
        async with updated(in_turn(fine, *[fails] * TRIES, fine)) as (server, engine):
            departures = known(engine).departures
            assert (await engine.agenerate(asking())).output_tokens == made()
            first, second = (call.wire_id for call in server.generations)
            assert server.order == [("generate", first), ("abort", first), ("generate", second)]
            assert known(engine).departures == departures

    play(act)


def test_a_generation_whose_server_never_tells_its_weights_says_so(play: Play) -> None:
    async def act() -> None:
        asked = in_turn(of_version("1"), *[refusing(503, "not now")] * (2 * TRIES))
        async with updated(asked, request_retries=1) as (server, engine):
            with pytest.raises(InferenceError, match=f"not tell its weights: .* GET {ASK} with 503: not now"):
                await engine.agenerate(asking())
            assert len(server.aborted) == 2

    play(act)


# -- where another engine has control


@contextlib.asynccontextmanager
async def followed(asked: Answer) -> AsyncIterator[tuple[ScriptedServer, RemoteInfEngine]]:
    """Give a server, and an engine that follows, to which it has told version 1."""
    async with scripted() as server:
        server.control[ASK] = asked
        engine = RemoteInfEngine(InferenceEngineConfig(request_timeout=10.0), follows=True)
        engine.set_version(1)
        await asyncio.to_thread(engine.initialize, server.url)
        try:
            yield server, engine
        finally:
            await asyncio.to_thread(engine.destroy)


@passing
def test_a_follower_makes_an_attempt_again_whose_weights_are_not_told_and_the_server_stays(
    play: Play, fails: Answer
) -> None:
    async def act() -> None:
        fine = of_version("1")
        async with followed(in_turn(fine, *[fails] * TRIES, fine)) as (server, engine):
            assert (await engine.agenerate(asking())).output_versions == [1] * 4
            first, second = (call.wire_id for call in server.generations)
            assert server.order == [("generate", first), ("abort", first), ("generate", second)]
            assert known(engine).departures == 0

    play(act)


@passing
def test_a_followers_server_in_rotation_that_cannot_tell_its_weights_stays(
    play: Play, fails: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.02)

    async def act() -> None:
        async with followed(of_version("1")) as (server, engine):
            await engine.agenerate(asking())  # the prober runs from then on
            server.control[ASK] = fails
            await server.until(ASK, len(server.of(ASK)) + 2 * TRIES)
            assert known(engine).departures == 0

    play(act)


@passing
def test_a_followers_server_that_cannot_tell_its_weights_comes_in_when_it_can(
    play: Play, fails: Answer
) -> None:
    async def act() -> None:
        async with followed(of_version("1")) as (server, engine):
            await engine.agenerate(asking())
            server.control[ASK] = fails
            assert engine._state is not None
            engine._state.router.take_out(known(engine), "the test says so")
            await turns_until(lambda: f"GET {ASK}" in (known(engine).why_out or ""))
            assert "tells no version" not in (known(engine).why_out or "")
            assert not known(engine).awaits_weights
            server.control[ASK] = of_version("1")
            await turns_until(lambda: known(engine).why_out is None)

    play(act)


# -- the variant of a dialect


def tokens_only(*when_probed: Answer) -> Answer:
    """Answer the probes in turn, and each generation by its tokens."""
    probed = in_turn(*when_probed)

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        if request.method == "GET":
            return await probed(request, body)
        return web.json_response(json.loads(completion([7, 8], finish="stop")))

    return answer


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_cannot_tell_its_variant_just_now_is_asked_again(play: Play, status: int) -> None:
    async def act() -> None:
        async with scripted() as server:
            server.control |= {
                TOKENS: tokens_only(refusing(status), refusing(405)),
                "/v1/completions": refusing(404),
            }
            engine = RemoteInfEngine(InferenceEngineConfig(request_timeout=5.0), "vllm")
            await asyncio.to_thread(engine.initialize, server.url)
            try:
                assert (await engine.agenerate(asking())).output_tokens == [7, 8]
            finally:
                await asyncio.to_thread(engine.destroy)

    play(act)


@pytest.mark.parametrize("status", [403, 404, 501])
def test_a_server_without_the_tokens_path_is_asked_for_completions(play: Play, status: int) -> None:
    async def act() -> None:
        async with scripted() as server:
            server.control |= {
                TOKENS: refusing(status),
                "/v1/completions": plain(completion([7, 8], finish="stop")),
            }
            engine = RemoteInfEngine(InferenceEngineConfig(request_timeout=5.0), "vllm")
            await asyncio.to_thread(engine.initialize, server.url)
            try:
                assert (await engine.agenerate(asking())).output_tokens == [7, 8]
                assert len(server.of(TOKENS)) == 1
            finally:
                await asyncio.to_thread(engine.destroy)

    play(act)
