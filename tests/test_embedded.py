"""The pace of the embedded inference server, its counters and its options."""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import re
import statistics
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core.embedded import EmbeddedServer, ServerOptions, ServerStats
from areal_core.embedded._generating.generation import Ask, Generation
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._generating.pace import ms_per_token
from areal_core.embedded._models.choice import model_of
from areal_core.embedded._models.tokens import Sampling
from areal_core.embedded._options import MODES, parse
from areal_core.embedded._stats import Counters
from calls import call, generate

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def make_generations(options: ServerOptions, counters: Counters | None = None) -> Generations:
    return Generations(options, counters or Counters(), *model_of(options))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once."""
    with EmbeddedServer(ms_per_token=0) as server:
        yield server


# How fast


def test_paces_are_lognormal_and_capped() -> None:
    options = ServerOptions(ms_per_token=10, sigma=0.8, cap=8)
    paces = [ms_per_token(f"request-{number}", options) / 10 for number in range(20_000)]
    logs = [math.log(pace) for pace in paces]
    assert abs(statistics.mean(logs)) < 0.02
    assert abs(statistics.stdev(logs) - 0.8) < 0.02
    assert max(paces) == 8
    assert 40 < paces.count(8) < 150  # 94: the 0.47 % beyond 2.6 sigma
    for deviations in (-2, -1, 1, 2):
        below = sum(log < 0.8 * deviations for log in logs) / 20_000
        assert abs(below - statistics.NormalDist().cdf(deviations)) < 0.01


@given(st.text(), st.text(), st.integers(), st.integers(0, 65535))
def test_a_pace_depends_on_the_request_id_and_the_seed_alone(
    rid: str, other: str, seed: int, port: int
) -> None:
    # With no cap in reach no two paces are equal by chance.
    pace = ms_per_token(rid, ServerOptions(seed=seed, cap=1e9))
    assert pace == ms_per_token(rid, ServerOptions(seed=seed, cap=1e9, host="::1", port=port))
    assert pace != ms_per_token(rid, ServerOptions(seed=seed + 1, cap=1e9))
    assert (pace == ms_per_token(other, ServerOptions(seed=seed, cap=1e9))) == (rid == other)


def test_a_pace_is_the_same_in_every_process_and_version() -> None:
    assert ms_per_token("r-1", ServerOptions()) == pytest.approx(4.458849680869044, rel=1e-9)
    assert ms_per_token("r-1", ServerOptions(sigma=0)) == 16
    assert {ms_per_token(f"r-{number}", ServerOptions(sigma=1e9)) for number in range(20)} == {0, 128}
    assert ms_per_token("r-1", ServerOptions(ms_per_token=0)) == 0


def test_made_up_ids_repeat_with_the_seed_and_none_is_a_prefix_of_another() -> None:
    def ids(seed: int) -> list[str]:
        generations = make_generations(ServerOptions(seed=seed))
        return [generations.new_id() for _ in range(100)]

    assert ids(0) == ids(0)
    assert len({*ids(0), *ids(1)}) == 200
    assert {len(one) for one in ids(0) + ids(1)} == {32}


def test_a_reply_takes_as_long_as_its_tokens() -> None:
    with EmbeddedServer(ms_per_token=20, sigma=1) as server:
        expected = [11 * ms_per_token(rid, server.options) / 1000 for rid in ("r-1", "r-2")]
        for rid, seconds in zip(("r-1", "r-2"), expected, strict=True):
            meta = generate(server, input_ids=[21], rid=rid)["meta_info"]
            # How much more it may be is a matter of the machine; virtual time knows how much it is.
            assert seconds <= meta["e2e_latency"] + 0.002
        batch = generate(server, input_ids=[[21], [21]], rid=["r-1", "r-2"])
    # The reply to a batch waits for the slowest of it.
    assert min(one["meta_info"]["e2e_latency"] for one in batch) + 0.002 >= max(expected)


# What it counts


@pytest.mark.any_loop
def test_connections_are_counted_by_accepts_and_generations_one_by_one(loop_factory: LoopFactory) -> None:
    async def talk(server: EmbeddedServer) -> None:
        async with aiohttp.ClientSession() as kept:
            for _ in range(5):
                async with kept.post(f"{server.url}/generate", json={"input_ids": [[21], [22]]}) as reply:
                    await reply.read()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as new:
            for _ in range(3):
                async with new.get(f"{server.url}/health") as reply:
                    await reply.read()

    with EmbeddedServer(ms_per_token=0) as server, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(talk(server))
        expected = ServerStats(connections=5, requests=9, generations=10, completed=10, in_flight=0, peak=2)
        assert server.stats() == expected


def test_a_client_that_disconnects_cancels_its_generations(loop_factory: LoopFactory) -> None:
    async def talk(server: EmbeddedServer) -> None:
        body = {"input_ids": [[21], [22]], "rid": "r"}
        async with aiohttp.ClientSession() as session:
            request = asyncio.create_task(session.post(f"{server.url}/generate", json=body))
            assert (await asyncio.to_thread(server.stats, in_flight=2)).cancelled == 0
            status, reply = await asyncio.to_thread(call, server, "POST", "/generate", body)
            assert (status, reply["error"]["message"].split(";")[0]) == (400, "rid='r_0' is running already")
            request.cancel()
        stats = await asyncio.to_thread(server.stats, cancelled=2)
        assert (stats.generations, stats.completed, stats.in_flight, stats.peak) == (2, 0, 0, 2)
        # The ids are free again.
        status, _ = await asyncio.to_thread(
            call, server, "POST", "/generate", body | {"sampling_params": {"max_new_tokens": 0}}
        )
        assert status == 200

    with EmbeddedServer(ms_per_token=1e6) as server, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(talk(server))


async def generate_whole(generations: Generations) -> None:
    with generations.start([Ask("r", [21], Sampling())]) as started:
        await started.ended()


def test_a_cancelled_generation_leaves_nothing_behind(loop_factory: LoopFactory) -> None:
    async def cancel_one() -> None:
        generations = make_generations(ServerOptions(ms_per_token=1e6))
        running = asyncio.create_task(generate_whole(generations))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        del running  # it has the frames that the cancellation came through
        gc.collect()
        assert not [one for one in gc.get_objects() if isinstance(one, Generation)]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(cancel_one())


def test_a_generation_may_be_cancelled_in_the_moment_it_ends() -> None:
    complaints: list[dict[str, Any]] = []

    async def cancel_one() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
        counters = Counters()
        running = asyncio.create_task(
            generate_whole(make_generations(ServerOptions(ms_per_token=0), counters))
        )
        await asyncio.sleep(0)
        # It is started, and its timer is due: it will be called next after this step.
        running.cancel()
        await asyncio.wait([running])
        assert counters.stats == ServerStats(generations=1, completed=1, peak=1)

    asyncio.run(cancel_one())
    assert complaints == []


def test_who_waits_for_a_counter_is_woken_once_and_forgotten() -> None:
    class Wanted(dict[str, int]):
        """A dict that can be referred to weakly."""

    async def wait_for_counters() -> None:
        counters = Counters()
        waiting = asyncio.create_task(counters.reach(Wanted(in_flight=2)))
        wanted = Wanted(in_flight=9)
        forgotten = weakref.ref(wanted)
        giving_up = asyncio.create_task(counters.reach(wanted))
        del wanted
        await asyncio.sleep(0)
        giving_up.cancel()
        await asyncio.wait([giving_up])
        for _ in range(3):
            counters.add(in_flight=1)
        assert (await waiting).in_flight == 3
        del giving_up
        gc.collect()
        assert forgotten() is None

    asyncio.run(wait_for_counters())


@pytest.mark.any_loop
def test_a_thousand_generations_run_at_once_and_all_end_with_the_server(loop_factory: LoopFactory) -> None:
    async def talk(server: EmbeddedServer) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            posts = [session.post(f"{server.url}/generate", json={"text": "x"}) for _ in range(1000)]
            requests = [asyncio.ensure_future(post) for post in posts]
            stats = await asyncio.to_thread(server.stats, in_flight=1000)
            assert (stats.connections, stats.peak) == (1001, 1000)
            await asyncio.to_thread(server.stop)
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {
                aiohttp.ServerDisconnectedError,
                aiohttp.ClientOSError,
            }

    with EmbeddedServer(ms_per_token=1e6) as server, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(talk(server))


def test_waiting_for_a_counter_is_bounded_and_knows_the_counters(server: EmbeddedServer) -> None:
    with pytest.raises(TimeoutError, match=r"^no in_flight=1 from 127.0.0.1:\d+ within 0.01 s$"):
        server.stats(0.01, in_flight=1)
    with pytest.raises(TypeError, match=r"^bogus is not a counter; there are connections, requests, "):
        server.stats(bogus=1)


# The options


@given(
    st.builds(
        ServerOptions,
        host=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1),
        port=st.integers(0, 65535),
        ms_per_token=st.floats(0, 1e9),
        sigma=st.floats(0, 1e9),
        cap=st.floats(1e-300, 1e9),
        seed=st.integers(),
        slots=st.integers(0),
        mode=st.sampled_from(MODES),
        weights=st.none() | st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1),
        incremental_streaming_output=st.booleans(),
        weight_version_spans=st.booleans(),
        tokens_in_tokens_out=st.booleans(),
    ),
    st.none() | st.integers(1),
)
def test_the_command_line_gives_the_options_back(options: ServerOptions, parent: int | None) -> None:
    arguments = options.arguments() + ([] if parent is None else [f"--parent={parent}"])
    assert parse(arguments) == (options, parent)
    assert EmbeddedServer(**vars(options)).options == options


def test_class_and_command_have_the_same_options_and_defaults() -> None:
    parameters = inspect.signature(EmbeddedServer).parameters
    same = [(name, one.default) for name, one in parameters.items() if name != "start_timeout"]
    assert same == [(spec.name, spec.default) for spec in fields(ServerOptions)]
    assert EmbeddedServer("::1", 7, 1, 2, 3, 4).options == ServerOptions("::1", 7, 1.0, 2.0, 3.0, 4)
    assert parse([]) == (ServerOptions("127.0.0.1", 0, 16.0, 0.8, 8.0, 0), None)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"host": ""}, "host='' names no address; the default is 127.0.0.1"),
        ({"port": -1}, "port=-1 is not in 0..65535; 0 takes a free one"),
        ({"port": 65536}, "port=65536 is not in 0..65535; 0 takes a free one"),
        ({"ms_per_token": -0.5}, "ms_per_token=-0.5 is not in 0..1e+09"),
        ({"ms_per_token": math.inf}, "ms_per_token=inf is not in 0..1e+09"),
        ({"sigma": math.nan}, "sigma=nan is not in 0..1e+09"),
        ({"cap": -1}, "cap=-1.0 is not in 0..1e+09"),
        ({"cap": 0}, "cap=0.0 leaves no pace; ms_per_token=0 answers at once"),
        ({"port": 7.0}, "port=7.0 is not an int"),
        ({"seed": True}, "seed=True is not an int"),
        ({"slots": -1}, "slots=-1 is less than none; 0 sets no limit"),
        ({"mode": "magic"}, "mode='magic' is not one of text, test, policy"),
        ({"weights": ""}, "weights='' names no file; None starts with those of version 0"),
        ({"weights": b"w"}, "weights=b'w' is not a str"),
        ({"weight_version_spans": 1}, "weight_version_spans=1 is not a bool"),
        ({"sigma": "1"}, "sigma='1' is not a float"),
        ({"host": None}, "host=None is not a str"),
        ({"start_timeout": 0}, "start_timeout=0 is not a number of seconds above 0"),
    ],
)
def test_an_option_no_server_could_work_with_is_refused_at_once(option: dict[str, Any], problem: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(problem)}$"):
        EmbeddedServer(**option)
