"""What becomes of a generation whose attempts fail: which are made again, when, and under which id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tenacity import RetryCallState, wait_random_exponential

from areal_core._engine import retries
from areal_core._engine.backend import HttpCall
from areal_core._engine.wire.exchange import Exchange, Reply, StaleConnectionError
from areal_core.errors import GenerationTimeoutError, ServerStatusError, ServerUnreachableError
from areal_core.types import GenerationHyperparameters, ModelRequest
from exchanging import KEY, all_shown
from logged import LogLines
from scripted import (
    Answer,
    Play,
    ScriptedServer,
    asking,
    engine_on,
    event,
    hanging_up,
    in_turn,
    made,
    making,
    nothing,
    racing,
    refusing,
    saying,
    scripted,
    until_stage,
)
from threaded_loops import turns_until


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for a hundredth of the time."""
    monkeypatch.setattr(retries, "_full_jitter", wait_random_exponential(multiplier=0.01, max=0.3))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for so long that a test that does so fails."""
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 100.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 307])
def test_a_request_that_a_server_refuses_is_not_sent_again(play: Play, status: int) -> None:
    async def act() -> None:
        async with scripted(refusing(status, "you may not")) as server, engine_on(server) as engine:
            with pytest.raises(ServerStatusError) as refused:
                await engine.agenerate(asking())
            assert (refused.value.status, len(server.generations), server.aborted) == (status, 1, [])
            assert server.url.removeprefix("http://") in str(refused.value)

    play(act)


def test_a_request_for_several_replies_is_refused_before_it_is_sent(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            wanted = GenerationHyperparameters(n_samples=2)
            with pytest.raises(ValueError, match="n_samples=2: agenerate makes one reply"):
                await engine.agenerate(ModelRequest([1], wanted))
            assert server.generations == []

    play(act)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_under_the_same_id_with_nothing_aborted(play: Play, status: int) -> None:
    async def act() -> None:
        script = [refusing(status), refusing(status)]
        async with scripted(*script) as server, scripted() as other, engine_on(server, other) as engine:
            first = asking(rid="talk")
            assert (await engine.agenerate(first)).output_tokens == made()
            assert (len(server.generations), other.generations) == (3, [])  # it keeps its server
            assert len({call.wire_id for call in server.generations}) == 1
            assert server.aborted == []

    play(act)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "failing", [refusing(408), refusing(425), refusing(500), refusing(502), refusing(504)]
)
def test_a_server_that_may_have_begun_is_asked_again_under_a_new_id_when_the_old_one_was_aborted(
    play: Play, failing: Answer
) -> None:
    async def act() -> None:
        async with scripted(failing, failing) as server, engine_on(server) as engine:
            assert (await engine.agenerate(asking(rid="talk"))).output_tokens == made()
            ids = [call.wire_id for call in server.generations]
            assert len(set(ids)) == 3
            assert [name for name, _ in server.order] == ["generate", "abort"] * 2 + ["generate"]
            assert server.aborted == ids[:2]
            assert all(wire_id.startswith("talk-") for wire_id in ids)

    play(act)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_hangs_up_before_it_answers_is_asked_again_when_that_was_aborted(
    play: Play,
) -> None:
    async def act() -> None:
        async with scripted(hanging_up()) as server, engine_on(server) as engine:
            assert (await engine.agenerate(asking())).output_tokens == made()
            first, second = (call.wire_id for call in server.generations)
            assert server.order == [("generate", first), ("abort", first), ("generate", second)]
            assert list(engine.servers.values()) == [None]

    play(act)


@pytest.mark.usefixtures("hasty")
def test_failures_are_counted_in_a_row_and_a_new_token_ends_the_row(play: Play) -> None:
    async def act() -> None:
        bad = refusing(500)
        script = [bad, bad, hanging_up(1), bad, refusing(503), hanging_up(2), bad, bad]
        async with scripted(*script) as server, engine_on(server, request_retries=2) as engine:
            reply = await engine.agenerate(asking(6))
            assert (reply.output_tokens, reply.segments) == (made(6), 3)
            assert [len(call.body["input_ids"]) for call in server.generations] == [3, 3, 3, 4, 4, 4, 6, 6, 6]

    play(act)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("allowed", [0, 2])
def test_with_one_failure_too_many_the_last_error_is_raised_as_it_is(play: Play, allowed: int) -> None:
    async def act() -> None:
        script = [refusing(500, f"reason {number}") for number in range(5)]
        async with scripted(*script) as server, engine_on(server, request_retries=allowed) as engine:
            with pytest.raises(ServerStatusError, match=f"500: reason {allowed}$"):
                await engine.agenerate(asking())
            assert len(server.generations) == allowed + 1

    play(act)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_always_hangs_up_fails_the_generation_and_stays_in_rotation(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server, request_retries=2) as engine:
            server.usual = hanging_up(0)
            with pytest.raises(
                ServerUnreachableError, match="hung up in the middle of its answer"
            ) as hung_up:
                await engine.agenerate(asking())
            assert (hung_up.value.sent, len(server.generations), len(server.aborted)) == (True, 3, 3)
            assert list(engine.servers.values()) == [None]

    play(act)


@pytest.mark.usefixtures("hasty")
def test_an_error_inside_a_stream_is_judged_by_its_status_and_by_whether_tokens_came(play: Play) -> None:
    async def act() -> None:
        full = saying(b'data: {"error": {"message": "queue full", "code": 503}}\n\n')
        lost = saying(b'data: {"error": {"message": "lost it", "code": 500}}\n\n')
        async with scripted(full, lost, giving(2, 503)) as server, engine_on(server) as engine:
            assert (await engine.agenerate(asking())).output_tokens == made()
            ids = [call.wire_id for call in server.generations]
            assert ids[0] == ids[1]  # it did not begin
            assert server.aborted == [ids[1], ids[2]]
            assert len(set(ids)) == 3

    play(act)


def giving(tokens: int, status: int) -> Answer:
    """Answer by a stream of so many tokens that ends with an error."""

    async def answer(request: Any, body: dict[str, Any]) -> Any:
        error = b'data: {"error": {"message": "it broke", "code": %d}}\n\n' % status
        return await saying(event(body, tokens), error)(request, body)

    return answer


@pytest.mark.usefixtures("hasty")
def test_neither_the_prompt_nor_the_key_is_in_an_error_but_the_servers_own_words_are(play: Play) -> None:
    async def repeating(request: Any, body: dict[str, Any]) -> Any:
        words = f"no room for {body['input_ids']}, dear {request.headers['Authorization']}"
        detail = [
            {"loc": ["body", "input_ids"], "msg": words, "input": body, "headers": dict(request.headers)}
        ]
        return web.json_response({"detail": detail}, status=500)

    async def repeating_in_a_stream(request: Any, body: dict[str, Any]) -> Any:
        words = f"no room for {request.headers['Authorization']} with {body['input_ids']}"
        error = json.dumps({"error": {"message": words, "code": 500}}).encode()
        return await saying(b"data: " + error + b"\n\n")(request, body)

    async def act() -> None:
        for answer in (repeating, repeating_in_a_stream):
            async with (
                scripted(answer) as server,
                engine_on(server, request_retries=0, api_key=KEY) as engine,
            ):
                with pytest.raises(ServerStatusError, match="no room for") as failed:
                    await engine.agenerate(asking(prompt=32_000))
                assert server.generations[0].headers["Authorization"] == f"Bearer {KEY}"
                shown = all_shown(failed.value)
                assert KEY not in shown
                assert "20000, 20001" not in shown
                text = str(failed.value)
                assert len(text.encode()) < 2000
                assert "500" in text
                assert server.url.removeprefix("http://") in text

    play(act)


@pytest.mark.any_loop
def test_retry_after_is_waited_out_and_jitter_comes_on_top(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_full_jitter", wait_random_exponential(multiplier=0.4, max=0.4))

    async def act() -> None:
        script = [refusing(429, Retry_After="0.5")] * 20
        async with scripted(*script) as server, engine_on(server) as engine:
            await asyncio.gather(*(engine.agenerate(asking(rid=f"talk {n}")) for n in range(20)))
            waits = waits_of(server)
            assert len(waits) == 20
            assert min(waits) >= 0.49  # clocks of loops are coarse
            assert max(waits) - min(waits) > 0.1

    play(act)


def waits_of(server: ScriptedServer) -> list[float]:
    """Return how long after its refusal each generation came again, in the order of coming."""
    refused: dict[str, float] = {}
    waits = []
    for call in server.generations:
        if call.wire_id in refused:
            waits.append(call.at - refused[call.wire_id])
        refused[call.wire_id] = call.at
    return waits


LONG = "3600"  # seconds; more than a generation may take here


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("headers", [{}, {"Retry_After": LONG}], ids=["for now", "for long"])
def test_a_conversation_without_a_name_goes_on_elsewhere_when_its_server_is_busy(
    play: Play, headers: dict[str, str]
) -> None:
    async def act() -> None:
        async with (
            scripted(refusing(503, **headers)) as server,
            scripted() as other,
            engine_on(server, other) as engine,
        ):
            assert (await engine.agenerate(asking())).output_tokens == made()
            (refused,), (made_there,) = server.generations, other.generations
            assert refused.wire_id == made_there.wire_id  # it did not begin
            assert made_there.at - refused.at < 5
            assert server.aborted == []

    play(act)


@pytest.mark.usefixtures("hasty")
def test_a_conversation_with_a_name_waits_for_its_server_or_says_that_it_cannot(play: Play) -> None:
    async def act() -> None:
        async with (
            scripted(refusing(503, Retry_After="0.3"), refusing(503, Retry_After=LONG)) as server,
            scripted() as other,
            engine_on(server, other) as engine,
        ):
            with pytest.raises(GenerationTimeoutError, match="no time is left of request_timeout=20 s"):
                await engine.agenerate(asking(rid="talk"))
            assert (len(server.generations), other.generations) == (2, [])
            assert min(waits_of(server)) >= 0.29

    play(act)


@pytest.mark.usefixtures("hasty")
def test_when_all_servers_ask_for_time_the_first_to_be_free_is_waited_for(play: Play) -> None:
    async def act() -> None:
        async with (
            scripted(refusing(429, Retry_After=LONG)) as server,
            scripted(refusing(429, Retry_After="0.4")) as other,
            engine_on(server, other) as engine,
        ):
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert (len(server.generations), len(other.generations)) == (1, 2)
            assert min(waits_of(other)) >= 0.39

    play(act)


@pytest.mark.usefixtures("hasty")
def test_those_whom_a_busy_server_sends_away_are_spread_over_the_others(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, scripted() as second, scripted() as third:
            server.usual = refusing(503, Retry_After=LONG)
            async with engine_on(server, second, third) as engine:
                for _ in range(3):
                    await asyncio.gather(*(engine.agenerate(asking()) for _ in range(12)))
            refused = len(server.generations)
            assert refused >= 4
            assert len(second.generations) + len(third.generations) == 36  # none is refused twice
            assert min(len(second.generations), len(third.generations)) > 6

    play(act)


@pytest.mark.parametrize("how", ["is removed", "is taken out"])
def test_a_back_off_ends_when_its_server_leaves(play: Play, how: str) -> None:
    async def act() -> None:
        async with (
            scripted(refusing(503, Retry_After="15")) as server,
            scripted() as other,
            engine_on(server, other) as engine,
        ):
            generation = asyncio.create_task(engine.agenerate(asking(rid="talk")))
            await until_stage(engine, "backing off")
            assert engine._state is not None
            (known, _) = engine._state.router.servers
            await turns_until(lambda: bool(known.sleepers))
            if how == "is removed":
                await asyncio.to_thread(engine.remove_server, server.url)
            else:
                await asyncio.to_thread(engine._state.router.take_out, known, "a test wants it")
            async with asyncio.timeout(5):
                assert (await generation).output_tokens == made()
            assert (len(server.generations), len(other.generations)) == (1, 1)
            assert not known.sleepers

    play(act)


@pytest.mark.usefixtures("patient")
def test_who_finds_that_its_server_has_left_does_not_back_off(play: Play) -> None:
    async def act() -> None:
        async with (
            scripted(refusing(500)) as server,
            scripted() as other,
            engine_on(server, other, request_timeout=200.0) as engine,
        ):
            server.control["/abort_request"] = hanging_up()
            async with asyncio.timeout(5):
                assert (await engine.agenerate(asking(rid="talk"))).output_tokens == made()
            assert (len(server.generations), len(other.generations)) == (1, 1)

    play(act)


def test_each_failed_attempt_that_is_made_again_is_one_line(
    play: Play, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 0.012)

    async def act() -> None:
        script = [refusing(503, "x" * 1000), hanging_up(1), hanging_up(), refusing(400)]
        async with scripted(*script) as server, engine_on(server) as engine:
            with pytest.raises(ServerStatusError):
                await engine.agenerate(asking(rid="talk"))
            name = server.url.removeprefix("http://")
        lines = [line for line in log_lines.of("info") if line.startswith("attempt_failed")]
        begin = f"attempt_failed conversation=talk server={name} error="
        assert [line.startswith(begin) for line in lines] == [True] * 3
        full, torn, hung_up = (line.removeprefix(begin) for line in lines)
        assert full.startswith(f"{name} answered POST /generate with 503: xxx")
        assert len(full) < 300
        assert "hung up" in torn
        assert "hung up" in hung_up
        waits = [line.rpartition("again_after_s=")[2] for line in (full, torn, hung_up)]
        assert waits == ["0.012", "0.0", "0.012"]

    play(act)


@pytest.mark.any_loop
def test_300_clients_that_meet_503_at_once_come_back_spread_out(play: Play) -> None:
    async def worst_window() -> int:
        all_here = asyncio.Event()

        async def refusing_all_at_once(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            await all_here.wait()
            return await refusing(503)(request, body)

        async with scripted(*[refusing_all_at_once] * 300) as server, engine_on(server) as engine:
            replies = asyncio.gather(*(engine.agenerate(asking(1)) for _ in range(300)))
            await server.until("/generate", 300)
            all_here.set()
            await replies
            came_back = [call.at for call in server.generations[300:]]
            assert len(came_back) == 300
            return max(sum(at <= other < at + 0.1 for other in came_back) for at in came_back)

    async def act() -> None:
        # A machine that stands still for long makes a crowd of those that were to come meanwhile: once more.
        assert await worst_window() <= 75 or await worst_window() <= 75 or await worst_window() <= 75

    play(act)


@pytest.mark.any_loop
def test_empty_aborts_back_off_and_the_generations_complete_when_the_server_recovers(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of the real delays: it is still to be far less than 100 calls per second.
    monkeypatch.setattr(retries, "_full_jitter", wait_random_exponential(multiplier=0.25, max=1.0))

    async def act() -> None:
        async with scripted() as server, engine_on(server, request_retries=0) as engine:
            server.usual = making(0, "abort")
            generations = asyncio.gather(*(engine.agenerate(asking()) for _ in range(8)))
            await server.until("/generate", 20)
            server.usual = making()
            assert [reply.output_tokens for reply in await generations] == [made()] * 8
            ids = [call.wire_id for call in server.generations]
            assert len(set(ids)) == len(ids)  # each had begun there
            times = [call.at for call in server.calls]
            assert max(sum(at <= other < at + 1 for other in times) for at in times) < 100
            assert server.generations[19].at - server.generations[0].at > 0.1

    play(act)


@pytest.mark.usefixtures("patient")
def test_a_request_that_leaves_as_the_server_ends_the_connection_is_sent_again_at_once(
    play: Play, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            server.usual = racing(making())
            server.control = {"/abort_request": racing(nothing)}
            ids: list[str] = []
            for number in range(1, 4):
                assert (await engine.agenerate(asking())).output_tokens == made()
                ids = [call.wire_id for call in server.generations]
                assert len(ids) == 2 * number - 1
                assert set(server.aborted) == set(ids[1::2])
            for lost in ids[1::2]:
                assert server.order.index(("abort", lost)) == server.order.index(("generate", lost)) + 1
        assert not log_lines.of("warning")

    play(act)


@pytest.mark.usefixtures("patient")
def test_a_control_call_that_leaves_as_the_server_ends_the_connection_is_sent_again_at_once(
    play: Play, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            both = racing(nothing)
            server.control = {"/pause_generation": both, "/continue_generation": both}
            for _ in range(3):
                async with engine.paused():
                    pass
            assert len(server.of("/pause_generation")) + len(server.of("/continue_generation")) > 6
        assert not log_lines.of("warning")

    play(act)


@pytest.mark.usefixtures("hasty")
def test_an_abort_that_a_server_cannot_take_now_is_made_again_before_the_next_attempt(
    play: Play,
) -> None:
    async def act() -> None:
        async with scripted(refusing(500)) as server, engine_on(server) as engine:
            server.control["/abort_request"] = in_turn(refusing(503), refusing(429), nothing)
            assert (await engine.agenerate(asking())).output_tokens == made()
            first, second = (call.wire_id for call in server.generations)
            assert server.order == [("generate", first), *[("abort", first)] * 3, ("generate", second)]

    play(act)


@pytest.mark.parametrize(("failure", "span_s"), [(1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (99, 30.0)])
def test_a_delay_is_drawn_from_a_whole_span_which_doubles_up_to_half_a_minute(
    failure: int, span_s: float
) -> None:
    delays = sorted(delay_after(failure, ServerStatusError("server", "POST /", 500, "")) for _ in range(400))
    assert 0 <= delays[0] < 0.1 * span_s
    assert 0.9 * span_s < delays[-1] <= span_s
    assert 0.35 * span_s < delays[200] < 0.65 * span_s


def delay_after(failure: int, error: Exception) -> float:
    """Return how long to wait after the so manieth failure in a row."""
    patience = retries.Patience(1000, lambda: 1e6, lambda _: 0.0)
    state = RetryCallState(patience.retrying(lambda _: None), None, (), {})
    state.attempt_number = failure
    state.set_exception((type(error), error, None))
    return patience._wait(state)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_ends_every_used_connection_does_not_make_a_hot_loop(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    real = retries.Patience._wait

    def noting(self: retries.Patience, state: RetryCallState) -> float:
        delays.append(real(self, state))
        return delays[-1]

    monkeypatch.setattr(retries.Patience, "_wait", noting)

    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            gathered = await asyncio.gather(*(engine.agenerate(asking()) for _ in range(12)))
            assert [reply.output_tokens for reply in gathered] == [made()] * 12
            known = {call.connection for call in server.generations}
            assert len(known) > 8  # connections that wait for a request
            server.usual = racing(making(), known)
            assert (await engine.agenerate(asking())).output_tokens == made()
        assert delays[:5] == [0.0] * 5
        assert all(delay > 0 for delay in delays[5:])
        assert len(delays) > 6

    play(act)


class OddExchange(Exchange):
    """Fails at a place that no server can be made to fail at just then: once, or as often as it is asked."""

    def __init__(self, real: Exchange, *, sending: Exception | None = None, asking: Exception | None = None):
        super().__init__(real.address, None, 2**20)
        self._sending = sending
        self._asking = asking

    @asynccontextmanager
    async def open(self, session: aiohttp.ClientSession, call: HttpCall) -> AsyncIterator[Reply]:
        error, self._sending = self._sending, None
        if error is not None:
            raise error
        async with super().open(session, call) as reply:
            yield reply

    async def call(self, session: aiohttp.ClientSession, call: HttpCall, timeout_s: float) -> bytes:
        if call.path == "/get_model_info" and self._asking is not None:
            raise self._asking
        return await super().call(session, call, timeout_s)


@pytest.mark.usefixtures("patient")
def test_a_connection_that_ends_before_the_request_leaves_on_it_costs_nothing(
    play: Play, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            assert engine._state is not None
            (known,) = engine._state.router.servers
            stale = StaleConnectionError("it was closing", server=known.name, sent=False)
            known.exchange = OddExchange(known.exchange, sending=stale)
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert (len(server.generations), server.aborted) == (1, [])
        assert not log_lines.of("warning")

    play(act)


@pytest.mark.usefixtures("hasty")
def test_an_attempt_whose_weights_nobody_could_be_asked_about_is_aborted_before_the_next(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            server.control["/update_weights_from_disk"] = saying(b'{"success": true}')
            server.control["/get_model_info"] = saying(b'{"weight_version": "1"}')
            await engine.update_weights_from_disk("weights", 1)
            assert engine._state is not None
            (known,) = engine._state.router.servers
            gone = ServerUnreachableError("no connection", server=known.name, sent=False)
            real, known.exchange = known.exchange, OddExchange(known.exchange, asking=gone)
            generating = asyncio.create_task(engine.agenerate(asking()))
            await server.until("/abort_request", 1)
            known.exchange = real
            assert (await generating).output_tokens == made()
            first, second = (call.wire_id for call in server.generations)
            assert server.order == [("generate", first), ("abort", first), ("generate", second)]

    play(act)
