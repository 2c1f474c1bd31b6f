"""A server that says it is well and fails what it is given: others get the work, until it can do it again."""

from __future__ import annotations

import asyncio
import errno

import pytest
from tenacity import wait_random_exponential

from areal_core._engine import retries, standing
from areal_core._engine.backends.sglang import BACKEND
from areal_core._engine.router import Router
from areal_core._engine.server import Pin, Server
from areal_core._engine.standing import Standing, is_servers_fault
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange, StaleConnectionError
from areal_core.errors import MalformedReplyError, ServerStatusError, ServerUnreachableError
from areal_core.remote_inf_engine import RemoteInfEngine
from logged import LogLines
from scripted import (
    Answer,
    Play,
    asking,
    engine_on,
    hanging_up,
    holding,
    made,
    making,
    refusing,
    saying,
    scripted,
    until,
)
from threaded_loops import gathered, turns_until


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for a hundredth of the time."""
    monkeypatch.setattr(retries, "_full_jitter", wait_random_exponential(multiplier=0.01, max=0.3))


class Clock:
    """Stands for the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have servers be avoided by a clock that stands still."""
    clock = Clock()
    monkeypatch.setattr(standing, "_now", clock)
    return clock


def known(engine: RemoteInfEngine) -> tuple[Router, list[Server]]:
    """Return the router of *engine* and its servers."""
    assert engine._state is not None
    return engine._state.router, list(engine._state.router.servers)


async def keep_busy(router: Router, server: Server, count: int) -> None:
    """Have as many more in flight at *server*."""
    for _ in range(count):
        await router.take(Pin(server), 1.0)


# -- one generation


@pytest.mark.parametrize(
    "failing",
    [
        refusing(408),
        refusing(500),
        refusing(502),
        refusing(504),
        hanging_up(),
        hanging_up(0),
        making(0, "abort"),
    ],
    ids=["408", "500", "502", "504", "hangs up", "breaks off", "aborts"],
)
def test_a_generation_of_no_conversation_goes_on_elsewhere_after_whatever_failure(
    play: Play, failing: Answer
) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as well, engine_on(sick, well) as engine:
            sick.usual = failing
            assert (await engine.agenerate(asking())).output_tokens == made()
            (failed,), (other,) = sick.generations, well.generations
            assert sick.aborted == ([] if failing.__qualname__.startswith("making") else [failed.wire_id])
            assert failed.wire_id != other.wire_id

    play(act)


def test_a_generation_that_lost_its_server_after_some_tokens_goes_on_elsewhere(play: Play) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as well, engine_on(sick, well) as engine:
            sick.usual = hanging_up(1)
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert (len(sick.generations), len(well.generations)) == (1, 1)

    play(act)


def test_a_generation_tries_every_server_before_one_that_failed_it_again(play: Play) -> None:
    async def act() -> None:
        async with (
            scripted() as sick,
            scripted() as ill,
            scripted() as well,
            engine_on(sick, ill, well, request_retries=2) as engine,
        ):
            sick.usual = ill.usual = refusing(500)
            router, servers = known(engine)
            await keep_busy(router, servers[2], 3)
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert (len(sick.generations), len(ill.generations), len(well.generations)) == (1, 1, 1)

    play(act)


def test_a_generation_that_failed_is_not_made_again_where_others_fail_all_the_time(
    play: Play, clock: Clock
) -> None:
    async def act() -> None:
        async with (
            scripted() as sick,
            scripted() as flaky,
            scripted() as well,
            engine_on(sick, flaky, well) as engine,
        ):
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            flaky.script.append(refusing(500))
            router, (first, second, third) = known(engine)
            await keep_busy(router, first, 2)
            await keep_busy(router, third, 3)
            clock.now += 1  # one may be made there to find out, but not this one
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert not flaky.script
            assert (second.in_flight, len(sick.generations)) == (0, 5)

    play(act)


@pytest.mark.usefixtures("clock")
def test_a_server_that_asks_to_be_left_alone_is_so_though_the_only_other_is_avoided(play: Play) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as busy, engine_on(sick, busy) as engine:
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            busy.script.append(refusing(429, Retry_After="600"))
            sick.usual = making()
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert (len(sick.generations), len(busy.script)) == (6, 0)

    play(act)


def test_a_generation_whose_server_hung_up_and_is_gone_does_not_back_off(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_full_jitter", lambda _: 100.0)

    async def act() -> None:
        async with (
            scripted(hanging_up()) as server,
            scripted() as other,
            engine_on(server, other, request_timeout=200.0) as engine,
        ):
            server.control["/abort_request"] = hanging_up()
            async with asyncio.timeout(5):
                assert (await engine.agenerate(asking())).output_tokens == made()
            assert (len(server.generations), len(other.generations)) == (1, 1)

    play(act)


# -- all of them


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "failing",
    [refusing(500), hanging_up(), saying(b"data: no JSON\n\n")],
    ids=["500", "hangs up", "no JSON"],
)
def test_a_server_that_fails_all_it_is_given_is_given_no_more_and_that_is_said_once(
    play: Play, failing: Answer, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with (
            scripted() as sick,
            scripted() as well,
            scripted() as fine,
            engine_on(sick, well, fine) as engine,
        ):
            sick.usual = failing
            ended = await gathered(*(engine.agenerate(asking()) for _ in range(24)))
            given = len(sick.generations)
            assert 5 <= given <= 12
            for _ in range(30):
                assert (await engine.agenerate(asking())).output_tokens == made()
            assert len(sick.generations) == given
            assert list(engine.servers.values()) == [None] * 3
            assert all(not isinstance(one, ServerStatusError | ServerUnreachableError) for one in ended)
            name = known(engine)[1][0].name
        (line,) = log_lines.of("warning")
        assert line.startswith(f"server_is_avoided server={name} failed=5 error=")

    play(act)


def test_it_is_tried_with_one_generation_after_a_time_that_doubles_up_to_a_minute(
    play: Play, clock: Clock
) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as well, engine_on(sick, well) as engine:
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            for rest_s in (1, 2, 4, 8, 16, 32, 60, 60):
                given = len(sick.generations)
                clock.now += 0.99 * rest_s
                await asyncio.gather(*(engine.agenerate(asking()) for _ in range(6)))
                assert len(sick.generations) == given
                clock.now += 0.01 * rest_s
                await asyncio.gather(*(engine.agenerate(asking()) for _ in range(6)))
                assert len(sick.generations) == given + 1

    play(act)


def test_one_attempt_that_brings_tokens_ends_that_with_its_first(play: Play, clock: Clock) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as well, engine_on(sick, well) as engine:
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            sick.usual = holding(1)
            clock.now += 1
            router, (_, other) = known(engine)
            await keep_busy(router, other, 3)
            tokens: list[int] = []
            trial = asyncio.create_task(engine.agenerate(asking(on_tokens=tokens.extend)))
            await turns_until(lambda: bool(tokens))
            sick.usual = making()
            assert (await engine.agenerate(asking())).output_tokens == made()
            assert len(sick.generations) == 7
            trial.cancel()
            await gathered(trial)

    play(act)


@pytest.mark.usefixtures("clock")
def test_failures_between_which_tokens_came_are_not_in_a_row(play: Play) -> None:
    async def act() -> None:
        async with scripted() as flaky, scripted() as well, engine_on(flaky, well) as engine:
            for _ in range(3):
                flaky.script.extend([refusing(500)] * 4 + [hanging_up(1)])
                while flaky.script:
                    await engine.agenerate(asking())
            given = len(flaky.generations)
            await asyncio.gather(*(engine.agenerate(asking()) for _ in range(4)))
            assert len(flaky.generations) > given

    play(act)


@pytest.mark.usefixtures("clock")
def test_who_waits_for_a_slot_is_not_given_that_of_a_server_that_fails_all(play: Play) -> None:
    async def act() -> None:
        gate = asyncio.Event()
        async with (
            scripted() as sick,
            scripted() as well,
            engine_on(sick, well, max_inflight_per_server=1) as engine,
        ):
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            well.usual = until(gate, then=making())
            generations = [asyncio.create_task(engine.agenerate(asking())) for _ in range(12)]
            await turns_until(lambda: engine.stats().waiting == 11)
            assert len(sick.generations) == 5
            gate.set()
            assert [reply.output_tokens for reply in await asyncio.gather(*generations)] == [made()] * 12
            assert len(sick.generations) == 5

    play(act)


def a_router(slots: int) -> tuple[Router, Server, Server]:
    """Return a router with two servers, of which the first is avoided."""
    router = Router(slots, 10, lambda _: None)
    sick, well = (Server(Exchange(Address.parse(f"{name}:80"), None, 2**20), BACKEND) for name in "ab")
    for server in (sick, well):
        router.add(server)
        router.put_in(server, lambda: True)
    assert [router.note_failure(sick) for _ in range(5)] == [0] * 4 + [5]
    return router, sick, well


def test_one_alone_of_those_who_wait_is_given_to_an_avoided_server_to_find_out(
    play: Play, clock: Clock
) -> None:
    async def act() -> None:
        router, sick, well = a_router(slots=2)
        await keep_busy(router, sick, 2)  # conversations that stay there
        await keep_busy(router, well, 2)
        waiters = [asyncio.create_task(router.take(Pin(), 1.0)) for _ in range(2)]
        await asyncio.sleep(0)
        router.give_back(sick)
        assert (sick.in_flight, router.waiting) == (1, 2)
        clock.now += 1
        router.give_back(sick)
        assert (sick.in_flight, router.waiting) == (1, 1)
        router.give_back(well)
        assert await asyncio.gather(*waiters) == [sick, well]

    play(act)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("how", ["tokens come there", "the others are avoided too"])
def test_who_waits_for_a_slot_gets_that_of_an_avoided_server_when(play: Play, how: str) -> None:
    async def act() -> None:
        router, sick, well = a_router(slots=1)
        assert await router.take(Pin(), 1.0) is well
        waiter = asyncio.create_task(router.take(Pin(), 1.0))
        await asyncio.sleep(0)
        assert (sick.in_flight, router.waiting) == (0, 1)
        if how == "tokens come there":
            router.note_tokens(sick)
        else:
            for _ in range(5):
                router.note_failure(well)
        assert await waiter is sick

    play(act)


@pytest.mark.usefixtures("clock")
def test_a_server_that_comes_into_rotation_again_begins_anew(play: Play) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as well, engine_on(sick, well) as engine:
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            sick.usual = making()
            router, (server, _) = known(engine)
            router.take_out(server, "it is restarted")
            router.put_in(server, lambda: True)
            await asyncio.gather(*(engine.agenerate(asking()) for _ in range(6)))
            assert len(sick.generations) > 6

    play(act)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("answer", [refusing(400), refusing(429), refusing(503), making(0, "abort")])
def test_what_is_no_fault_of_a_server_makes_nobody_avoid_it(
    play: Play, answer: Answer, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as server, scripted() as other, engine_on(server, other) as engine:
            server.usual = answer
            for _ in range(20):
                await gathered(engine.agenerate(asking()))
            assert len(server.generations) == 10
        assert log_lines.of("warning") == []

    play(act)


@pytest.mark.usefixtures("clock")
def test_a_server_that_dies_is_out_of_rotation_and_nothing_else_is_said_of_it(
    play: Play, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as server, scripted() as other, engine_on(server, other) as engine:
            server.usual = server.control["/abort_request"] = server.control["/health"] = hanging_up()
            ended = await asyncio.gather(*(engine.agenerate(asking()) for _ in range(20)))
            assert [reply.output_tokens for reply in ended] == [made()] * 20
            assert len(server.generations) == 10
        (line,) = log_lines.of("warning")
        assert line.startswith("server_out_of_rotation")

    play(act)


AT, CALL = "server", "POST /generate"


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("error", "is_its_fault"),
    [
        *((ServerStatusError(AT, CALL, status, ""), True) for status in (408, 425, 500, 502, 504)),
        *((ServerStatusError(AT, CALL, status, ""), False) for status in (307, 400, 404, 429, 503)),
        (ServerUnreachableError("hung up", server=AT, sent=True), True),
        (ServerUnreachableError("no connection", server=AT, sent=False), False),  # that takes it out
        (ServerUnreachableError("no descriptor", server=AT, sent=True, errno=errno.EMFILE), False),
        (ServerUnreachableError("no name", server=AT, sent=True, unresolved=True), False),
        (StaleConnectionError("was closing", server=AT, sent=True), False),
        (MalformedReplyError(AT, CALL, "no JSON"), True),
        (retries.EmptyAbortError("ended it"), False),
        (retries.AtOnceError("cut off"), False),
    ],
)
def test_which_errors_are_a_servers_fault(error: Exception, is_its_fault: bool) -> None:
    assert is_servers_fault(error) == is_its_fault


@pytest.mark.any_loop
def test_those_that_were_under_way_when_it_began_do_not_make_it_longer(clock: Clock) -> None:
    one, avoided = Standing(), list[bool]()
    begins = [one.fail() for _ in range(100)]
    for later_s in (0.99, 0.01):
        clock.now += later_s
        avoided.append(one.is_avoided)
    begins.append(one.fail())  # the one that was to find out
    for later_s in (1.99, 0.01):
        clock.now += later_s
        avoided.append(one.is_avoided)
    assert begins == [False] * 4 + [True] + [False] * 96  # said once
    assert avoided == [True, False, True, False]
    assert one.is_doubtful
    one.clear()
    assert [one.fail() for _ in range(5)] == [False] * 4 + [True]
    clock.now += 1
    assert not one.is_avoided


@pytest.mark.any_loop
def test_a_trial_that_shows_nothing_is_repeated_after_the_same_time_and_one_that_fails_after_twice_that(
    clock: Clock,
) -> None:
    one = Standing()
    for _ in range(5):
        one.fail()

    def check_avoided_for(seconds: float) -> None:
        clock.now += seconds - 0.01
        assert one.is_avoided
        clock.now += 0.01
        assert not one.is_avoided

    check_avoided_for(1)
    for _ in range(6):
        one.give()
        check_avoided_for(1)
    one.give()
    one.give()  # a conversation that stays there
    for _ in range(3):  # with two that were under way all the time
        one.fail()
    check_avoided_for(2)
    one.give()
    check_avoided_for(2)
    one.fail()  # the trial, late
    check_avoided_for(4)


@pytest.mark.parametrize(
    "answer",
    [refusing(503), refusing(429), refusing(400), making(0, "abort")],
    ids=["503", "429", "400", "abort"],
)
def test_a_trial_that_ends_without_showing_how_a_server_is_does_not_make_its_time_longer(
    play: Play, clock: Clock, answer: Answer
) -> None:
    async def act() -> None:
        async with scripted() as sick, scripted() as well, engine_on(sick, well) as engine:
            sick.usual = refusing(500)
            while len(sick.generations) < 5:
                await engine.agenerate(asking())
            sick.usual = answer
            for trials in range(1, 5):
                clock.now += 1
                await gathered(*(engine.agenerate(asking()) for _ in range(6)))
                assert len(sick.generations) == 5 + trials

    play(act)


def test_a_trial_that_sends_nothing_does_not_make_the_time_longer(play: Play, clock: Clock) -> None:
    async def act() -> None:
        router, sick, well = a_router(slots=2)
        for _ in range(4):
            clock.now += 1
            taken = [await router.take(Pin(), 1.0) for _ in range(2)]
            assert sorted(server.name for server in taken) == [sick.name, well.name]
            for server in taken:
                router.give_back(server)

    play(act)


@pytest.mark.usefixtures("clock")
def test_one_generation_that_fails_at_a_server_again_and_again_counts_once_there(
    play: Play, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as one, scripted() as other, engine_on(one, other, request_retries=3) as engine:
            one.usual = other.usual = refusing(500, "this prompt")
            _, servers = known(engine)
            for number in range(8):
                with pytest.raises(ServerStatusError, match="this prompt"):
                    await engine.agenerate(asking(rid=f"poison-{number}"))
            assert [len(server.generations) for server in (one, other)] == [16, 16]
            assert [server.standing.failures for server in servers] == [4, 4]
            assert log_lines.of("warning") == []
            with pytest.raises(ServerStatusError):
                await engine.agenerate(asking(rid="poison-9"))
            assert sorted(server.standing.failures for server in servers) == [4, 5]
            assert len(log_lines.of("warning")) == 1

    play(act)


@pytest.mark.usefixtures("clock")
def test_that_a_server_is_avoided_is_not_said_of_the_only_one_which_takes_everything(
    play: Play, log_lines: LogLines
) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server, request_retries=0) as engine:
            server.usual = refusing(500)
            await gathered(*(engine.agenerate(asking()) for _ in range(8)))
            assert known(engine)[1][0].standing.is_avoided
        assert log_lines.of("warning") == []

    play(act)


@pytest.mark.any_loop
def test_that_a_server_is_avoided_is_said_once_others_take_what_it_is_not_given(clock: Clock) -> None:
    router, sick, well = a_router(slots=2)  # it is said of the first
    assert [router.note_failure(well) for _ in range(8)] == [0] * 8  # both take what they are given
    router.note_tokens(sick)
    clock.now += 1
    assert [router.note_failure(well) for _ in range(3)] == [9, 0, 0]
    router.note_tokens(well)
    assert [router.note_failure(well) for _ in range(6)] == [0] * 4 + [5, 0]


def test_who_waits_for_a_slot_gets_that_of_a_server_that_was_avoided_long_enough(
    play: Play, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)

    async def act() -> None:
        async with (
            scripted() as ill,
            scripted() as busy,
            engine_on(ill, busy, max_inflight_per_server=1) as engine,
        ):
            router, servers = known(engine)
            await keep_busy(router, servers[1], 1)  # for as long as it takes
            for _ in range(5):
                router.note_failure(servers[0])
            waiting = asyncio.create_task(engine.agenerate(asking()))
            await turns_until(lambda: router.waiting == 1)
            clock.now += 1.5
            assert (await waiting).output_tokens == made()
            assert len(ill.generations) == 1

    play(act)
