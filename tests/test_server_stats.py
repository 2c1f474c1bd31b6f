"""What the engine counts of each server, how fast that makes it, and which one is slow."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from areal_core._engine.speeds import Speed, Speeds
from areal_core._engine.stats import EngineStats, ServerStats
from areal_core._engine.tally import Tally, Visit
from areal_core._observe.rates import Rates
from areal_core._observe.runs import read_run
from areal_core._observe.status_file import StatusFile
from areal_core.errors import GenerationTimeoutError, ServerStatusError
from areal_core.remote_inf_engine import RemoteInfEngine
from scripted import (
    Play,
    asking,
    engine_on,
    hanging_up,
    holding,
    making,
    racing,
    refusing,
    scripted,
)
from snapshots import SNAPSHOT, changed, status_of, write_status
from threaded_loops import turns_until


def endings_of(engine: RemoteInfEngine) -> list[tuple[int, int, int]]:
    """Return how many requests of each server were completed, failed and were cancelled."""
    return [(one.completed, one.failed, one.cancelled) for one in engine.stats().servers]


async def cancelled(engine: RemoteInfEngine, tokens: int) -> None:
    """Begin a generation, and cancel it when so many *tokens* have come."""
    before = engine.stats().tokens
    generation = asyncio.create_task(engine.agenerate(asking(9)))
    await turns_until(lambda: engine.stats().tokens >= before + tokens)
    generation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await generation


# -- the counts ------------------------------------------------------------------------------------


def test_a_request_that_was_interrupted_is_complete_and_one_that_was_broken_off_has_failed(
    play: Play,
) -> None:
    async def act() -> None:
        async with (
            scripted(hanging_up(2), making(3, "abort")) as server,
            engine_on(server) as engine,
        ):
            reply = await engine.agenerate(asking(9))
            assert (len(reply.output_tokens), reply.segments) == (9, 3)
            assert endings_of(engine) == [(2, 1, 0)]
            assert (engine.stats().failed, engine.stats().cancelled) == (0, 0)

    play(act)


def test_each_server_has_the_tokens_that_it_made(play: Play) -> None:
    async def act() -> None:
        async with scripted(making(2)) as one, scripted(making(3)) as other, engine_on(one, other) as engine:
            for _ in range(2):
                await engine.agenerate(asking())
            assert sorted(server.tokens for server in engine.stats().servers) == [2, 3]
            assert endings_of(engine) == [(1, 0, 0), (1, 0, 0)]

    play(act)


def test_a_generation_that_we_cancel_has_not_failed(play: Play) -> None:
    async def act() -> None:
        async with scripted(holding(2), refusing(400)) as server, engine_on(server) as engine:
            await cancelled(engine, 2)
            with pytest.raises(ServerStatusError):
                await engine.agenerate(asking())
            await engine.agenerate(asking())
            stats = engine.stats()
            assert (stats.ended, stats.failed, stats.cancelled, stats.tokens) == (3, 1, 1, 6)
            assert endings_of(engine) == [(1, 1, 1)]

    play(act)


def test_a_reply_that_takes_too_long_has_failed_and_one_that_nobody_wants_was_cancelled(play: Play) -> None:
    def complain(_: list[int]) -> None:
        raise KeyError("mine")

    async def act() -> None:
        async with scripted(holding(1)) as server, engine_on(server, request_timeout=0.2) as engine:
            with pytest.raises(GenerationTimeoutError):
                await engine.agenerate(asking())
            assert endings_of(engine) == [(0, 1, 0)]
            with pytest.raises(KeyError):
                await engine.agenerate(asking(on_tokens=complain))
            assert endings_of(engine) == [(0, 1, 1)]
            assert engine.stats().failed == 2  # of generations: both have raised

    play(act)


def test_a_connection_that_was_ending_costs_no_request(play: Play) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server) as engine:
            server.usual = racing(making())
            for _ in range(3):
                await engine.agenerate(asking())
            assert engine.stats().attempts > 3
            assert endings_of(engine) == [(3, 0, 0)]

    play(act)


def test_tokens_under_way_are_counted_and_the_count_never_falls(play: Play) -> None:
    async def act() -> None:
        async with scripted(holding(2), hanging_up(3), making()) as server, engine_on(server) as engine:
            seen = []
            on_tokens = lambda _: seen.append(engine.stats().servers[0].tokens)  # noqa: E731
            running = asyncio.create_task(engine.agenerate(asking(9, on_tokens=on_tokens)))
            await turns_until(lambda: len(seen) == 2)
            await engine.agenerate(asking(5, on_tokens=on_tokens))
            running.cancel()
            await asyncio.wait((running,))
            assert seen == sorted(seen) == [1, 2, 3, 4, 5, 6, 7]
            assert engine.stats().servers[0].tokens == 7

    play(act)


@pytest.mark.parametrize("streams", [True, False])
def test_whether_tokens_come_as_they_are_made_is_said(play: Play, streams: bool) -> None:
    async def act() -> None:
        from areal_core.embedded import EmbeddedServer

        with EmbeddedServer(mode="test") as server:
            async with engine_on(server.addr, stream_replies=streams) as engine:
                await engine.agenerate(asking())
                (stats,) = engine.stats().servers
                assert (stats.streams, stats.tokens, stats.completed) == (streams, 4, 1)

    play(act)


def test_time_is_that_of_all_requests_together_those_under_way_too(play: Play) -> None:
    async def act() -> None:
        async with scripted(holding(1), holding(1)) as server, engine_on(server) as engine:
            running = [asyncio.create_task(engine.agenerate(asking())) for _ in range(2)]
            await server.until("/generate", 2)
            before, first, after = time.monotonic(), engine.stats().servers[0], time.monotonic()
            await turns_until(lambda: time.monotonic() >= after + 0.02)
            second, ended = engine.stats().servers[0], time.monotonic()
            assert 2 * 0.02 <= second.seconds - first.seconds <= 2 * (ended - before)
            for one in running:
                one.cancel()
            await asyncio.wait(running)
            rest = engine.stats().servers[0]
            assert engine.stats().servers[0].seconds == rest.seconds >= second.seconds
            assert rest.tokens_per_s == rest.tokens / rest.seconds

    play(act)


@pytest.mark.any_loop
def test_without_requests_there_is_no_speed_and_a_visit_that_never_got_there_is_none() -> None:
    assert stats(tokens=0, seconds=0).tokens_per_s is None
    tally, visit = Tally(), Visit()
    tally.begin(visit)
    visit.ending = None
    tally.end(visit)
    assert tally.endings == {"completed": 0, "failed": 0, "cancelled": 0}


# -- the speeds ------------------------------------------------------------------------------------


def stats(name: str = "a", *, tokens: float, seconds: float, why_out: str | None = None) -> ServerStats:
    return ServerStats(
        name=name, why_out=why_out, in_flight=1, waiting=0, version=None, departures=0, tokens=int(tokens),
        seconds=seconds,
    )  # fmt: skip


def speeds_of(seconds: int, each: dict[str, float], streams: bool = True) -> Speeds:
    """Return speeds of servers that gave each of four requests so many tokens per second, for *seconds*."""
    speeds = Speeds()
    for at in range(seconds + 1):
        now = [stats(name, tokens=4 * rate * at, seconds=4 * at) for name, rate in each.items()]
        speeds.add(at, [replace(one, streams=streams) for one in now])
    return speeds


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("each", "slow"),
    [
        ({"a": 40, "b": 19}, {"b"}),
        ({"a": 40, "b": 21}, set()),
        ({"a": 40, "b": 41, "c": 19}, {"c"}),
        ({"a": 40, "b": 40, "c": 5, "d": 0}, {"c", "d"}),
        ({"a": 90, "b": 30, "c": 30, "d": 30}, set()),
        ({"a": 1}, set()),
        ({"a": 0, "b": 0}, set()),
    ],
    ids=["half of the other", "more", "three", "two of four", "a fast one", "alone", "nothing comes"],
)
def test_slow_is_less_than_half_of_the_median(each: dict[str, float], slow: set[str]) -> None:
    found = speeds_of(30, each).now()
    assert {name: speed.each for name, speed in found.items()} == each
    assert {name: speed.tokens_per_s for name, speed in found.items()} == {n: 4 * r for n, r in each.items()}
    assert {name for name, speed in found.items() if speed.is_slow} == slow


@pytest.mark.any_loop
def test_nothing_is_said_of_what_little_can_be_told_by() -> None:
    assert Speeds().now() == {}
    assert speeds_of(0, {"a": 40}).now() == {}
    assert not speeds_of(2, {"a": 40, "b": 1}).now()["b"].is_slow  # four requests for two seconds
    assert speeds_of(3, {"a": 40, "b": 1}).now()["b"].is_slow


@pytest.mark.any_loop
def test_a_server_out_of_rotation_is_not_slow_and_no_measure_for_others() -> None:
    speeds = Speeds()
    for at in (0, 30):
        speeds.add(
            at, [stats("a", tokens=40 * at, seconds=at), stats("b", tokens=at, seconds=at, why_out="?")]
        )
    assert not any(one.is_slow for one in speeds.now().values())


@pytest.mark.any_loop
def test_what_counts_is_the_last_minute_but_for_replies_that_come_whole() -> None:
    speeds = Speeds()
    for quarter in range(4 * 300):
        at = quarter / 4
        speeds.add(
            at, [stats("a", tokens=10 * at, seconds=at), stats("b", tokens=min(10 * at, 2000), seconds=at)]
        )
    assert len(speeds._samples) <= 82  # though it looked four times a second
    assert speeds.now()["b"].each == 0
    assert speeds.now()["b"].is_slow
    whole = Speeds()
    for at in range(300):  # the last reply of "b" came a minute and a half ago, and was a long one
        tokens = 10 * min(at, 210)
        whole.add(at, [replace(stats("a", tokens=10 * at, seconds=at), streams=False),
                       replace(stats("b", tokens=tokens, seconds=at), streams=False)])  # fmt: skip
    assert whole.now()["b"].each == pytest.approx(2100 / 299, abs=0.001)
    assert not whole.now()["b"].is_slow


@pytest.mark.any_loop
def test_the_status_file_has_the_speeds(tmp_path: Path) -> None:
    rates = Rates()
    for at in (0, 30):
        servers = (stats("a", tokens=40 * at, seconds=at), stats("b", tokens=10 * at, seconds=at))
        rates.add(changed(uptime_s=float(at), engine=EngineStats(servers=servers)))
    StatusFile(tmp_path / "status", 1).write(SNAPSHOT, rates)
    assert read_run(tmp_path / "status").status.servers == {
        "a": Speed(tokens_per_s=40.0, each=40.0, is_slow=False),
        "b": Speed(tokens_per_s=10.0, each=10.0, is_slow=True),
    }


@pytest.mark.any_loop
def test_a_status_file_of_a_version_that_did_not_count_so_much_can_be_read(tmp_path: Path) -> None:
    path = write_status(tmp_path / "status", status_of(SNAPSHOT))
    status = json.loads(path.read_bytes())
    for name in ("servers", "trainer_busy_s", "trainer_waits"):
        del status[name]
    del status["snapshot"]["engine"]["cancelled"]
    for server in status["snapshot"]["engine"]["servers"]:
        for name in ("tokens", "seconds", "completed", "failed", "cancelled", "streams"):
            del server[name]
    path.write_text(json.dumps(status))
    read = read_run(path).status
    assert (read.servers, read.trainer_busy_s, read.trainer_waits) == ({}, None, None)
    assert [(one.name, one.tokens) for one in read.snapshot.servers] == [
        ("10.0.0.1:30000", 0), ("10.0.0.2:30000", 0),
    ]  # fmt: skip


@pytest.mark.any_loop
@pytest.mark.parametrize("streams", [True, False])
def test_an_engine_that_begins_again_begins_anew_and_servers_come_and_go(streams: bool) -> None:
    speeds = speeds_of(30, {"a": 40, "c": 40}, streams)
    for at, servers in (
        (31, [stats("a", tokens=10, seconds=1), stats("c", tokens=5, seconds=1)]),
        (32, [stats("c", tokens=25, seconds=3), stats("d", tokens=25, seconds=3)]),
    ):
        speeds.add(at, [replace(one, streams=streams) for one in servers])
        if at == 31:
            assert speeds.now() == {}
    assert {name: (one.each, one.tokens_per_s) for name, one in speeds.now().items()} == {"c": (10, 20)}
