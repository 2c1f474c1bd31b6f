"""The generations of the embedded server: which tokens exist when, and who runs, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core.embedded import ServerOptions, logprob_of, token_of
from areal_core.embedded._generating.clock import RunningClock
from areal_core.embedded._generating.generation import Ask, Generation
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._generating.pace import ms_per_token, request_of
from areal_core.embedded._models.letters import Letters
from areal_core.embedded._models.model import Model
from areal_core.embedded._models.tokens import Finish, Sampling
from areal_core.embedded._models.transformer import PolicyModel
from areal_core.embedded._models.weights import Weights
from areal_core.embedded._stats import Counters
from virtual_time import VirtualLoop

Use = Callable[["Server"], Coroutine[Any, Any, None]]
LONG = Sampling(max_new_tokens=100, ignore_eos=True)


class Server:
    """Generations on the running loop's time."""

    def __init__(self, model: Model | None = None, **options: Any) -> None:
        settings: dict[str, Any] = {"ms_per_token": 10, "sigma": 0, **options}
        self.counters = Counters()
        self.model = model or Letters(versioned=True)
        version, content = self.model.start()
        self.clock = RunningClock(asyncio.get_running_loop().time)
        self.generations = Generations(
            ServerOptions(**settings),
            self.counters,
            self.model,
            Weights(version, content=content),
            self.clock,
        )
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, rid: str, sampling: Sampling = LONG, streamed: bool = False) -> list[Generation]:
        """Start a generation that somebody listens to; return it in a list that fills when it is taken on."""
        taken: list[Generation] = []

        async def listen() -> None:
            with self.generations.start([Ask(rid, [1], sampling)], streamed) as started:
                taken.extend(started.generations)
                async for _ in started:
                    pass

        self.tasks.append(asyncio.create_task(listen()))
        return taken

    async def asked(self, *rids: str, **how: Any) -> list[Generation]:
        """Start a generation for each of *rids*; return them."""
        taken = [self.ask(rid, **how) for rid in rids]
        await asyncio.sleep(0)
        return [one for (one,) in taken]

    def abort(self, *rids: str) -> int:
        return self.generations.abort(lambda one: one.id in rids, "running", "queued")


def play(use: Use, **options: Any) -> VirtualLoop:
    """Run *use* with a server on a loop of virtual time; return the loop."""

    async def run() -> None:
        server = Server(**options)
        await use(server)
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        stats = server.counters.stats
        assert (stats.in_flight, stats.waiting) == (0, 0)
        assert stats.generations == stats.completed + stats.aborted + stats.cancelled

    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    return loop


def finish_of(generation: Generation) -> Finish | None:
    """Return why it ended: a function, so that a checker does not remember that it had not."""
    return generation.finish


def skip(seconds: float) -> None:
    """Let time pass without a turn of the loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.pass_over(seconds)


def check_tokens(generation: Generation) -> None:
    """See that each token is the one its weights make after those before it."""
    tokens, logprobs, covered = generation.tokens(), generation.logprobs(), 0
    for span in generation.spans():
        assert span.start == covered < span.end
        for place in range(span.start, span.end):
            before = [*generation.prompt, *tokens[:place]]
            may_end = not generation.sampling.ignore_eos
            assert tokens[place] == token_of(span.weights.version, before, may_end)
            assert logprobs[place] == logprob_of(span.weights.version, before)
        covered = span.end
    assert covered == len(tokens) == len(generation)


def check_times(generation: Generation, changes: list[tuple[float, int]]) -> None:
    """See that each token was made by the last of *changes*, (when, version), before it was due."""
    if generation.began is None:
        return  # it was sent back to wait, and aborted there
    for span in generation.spans():
        for place in range(span.start, span.end):
            due = generation.began + (place + 1) * generation.pace_s
            possible = {[version for when, version in changes if when < due - 1e-6][-1]}
            possible |= {version for when, version in changes if abs(when - due) <= 1e-6}
            assert span.weights.version in possible


# Which tokens exist


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "stream", "abort", "swap", "close", "freeze", "requeue", "resume"]),
            st.integers(0, 200),
        ),
        min_size=5,
        max_size=30,
    ),
    st.integers(0, 3),
)
def test_token_k_exists_from_k_times_the_pace_of_running_time_made_by_the_weights_of_that_moment(
    steps: list[tuple[str, int]], slots: int
) -> None:
    changes = [(0.0, 0)]
    taken: list[Generation] = []

    async def use(server: Server) -> None:
        generations = server.generations
        for number, (step, milliseconds) in enumerate(steps):
            if step in ("ask", "stream"):
                sampling = Sampling(max_new_tokens=40, ignore_eos=number % 2 == 0)
                taken.extend(await server.asked(f"r-{number}", sampling=sampling, streamed=step == "stream"))
            elif step == "abort" and taken:
                server.abort(taken[-1].id)
            elif step == "swap":
                generations.swap(Weights(number))
                changes.append((server.clock.now(), number))
            elif step in ("close", "freeze", "requeue", "resume"):
                getattr(generations, step)()
            await asyncio.sleep(milliseconds / 1000)
            if slots:
                assert generations.running <= slots
        generations.resume()
        await asyncio.gather(*server.tasks)

    play(use, slots=slots, sigma=0.8)
    for generation in taken:
        check_tokens(generation)
        assert generation.finish is not None
        check_times(generation, changes)


def test_an_aborted_generation_has_the_tokens_that_were_due() -> None:
    async def use(server: Server) -> None:
        whole, stream = await server.asked("a") + await server.asked("b", streamed=True)
        await asyncio.sleep(0.052)
        assert (len(whole), len(stream)) == (0, 5)  # nobody asked how far the first is
        assert server.abort("a", "b") == 2
        for generation in (whole, stream):
            assert generation.finish == Finish("abort", message="running")
            assert len(generation) == 5
            check_tokens(generation)
        assert server.counters.stats.aborted == 2
        assert server.abort("a", "b") == 0

    play(use)


def test_a_generation_that_is_due_to_end_is_not_aborted_any_more() -> None:
    async def use(server: Server) -> None:
        (generation,) = await server.asked("a", sampling=Sampling(max_new_tokens=3, ignore_eos=True))
        skip(0.05)
        assert server.abort("a") == 0
        assert (finish_of(generation), len(generation)) == (Finish("length"), 3)

    play(use)


def test_a_listener_hears_of_each_token_once_and_of_what_it_missed_in_one() -> None:
    async def use(server: Server) -> None:
        heard = []
        sampling = Sampling(max_new_tokens=8, ignore_eos=True)
        asks = [Ask("a", [1], sampling), Ask("b", [2], sampling)]
        with server.generations.start(asks, streamed=True) as started:
            async for generation in started:
                heard.append((generation.id, len(generation)))
                if heard[-1] == ("b", 2):
                    await asyncio.sleep(0.04)
        assert heard == [("a", 1), ("b", 1), ("a", 2), ("b", 2)] + [
            (rid, count) for count in (6, 7, 8) for rid in "ab"
        ]

    play(use)


def test_time_stands_still_while_frozen_and_goes_on_from_there() -> None:
    heard: list[int] = []

    async def use(server: Server) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def listen() -> None:
            with server.generations.start([Ask("a", [1], LONG)], streamed=True) as started:
                async for generation in started:
                    heard.append(len(generation))  # noqa: PERF401 - it is looked at meanwhile

        server.tasks.append(asyncio.create_task(listen()))
        await asyncio.sleep(0.032)
        server.generations.freeze()
        await asyncio.sleep(0)
        assert heard == [1, 2, 3]
        server.generations.resume()
        skip(0.02)
        server.generations.freeze()  # what is due by now is heard of
        turns = loop.turns
        await asyncio.sleep(1000)
        assert heard == [1, 2, 3, 5]
        assert loop.turns - turns < 5
        server.generations.resume()
        await asyncio.sleep(0.021)
        assert heard == [1, 2, 3, 5, 6, 7]

    play(use)


def test_a_long_request_at_no_pace_lets_others_in_between() -> None:
    async def use(server: Server) -> None:
        sampling = Sampling(max_new_tokens=5000, ignore_eos=True)
        with server.generations.start([Ask("a", [1], sampling)], streamed=True) as started:
            heard = [len(generation) async for generation in started]
        assert heard[-1] == 5000
        assert all(after - before <= 512 for before, after in itertools.pairwise([0, *heard]))

    play(use, ms_per_token=0)


def test_a_whole_reply_waits_for_the_slowest_of_its_generations() -> None:
    async def use(server: Server) -> None:
        asks = [
            Ask(f"r-{count}", [1], Sampling(max_new_tokens=count, ignore_eos=True)) for count in (9, 3, 30)
        ]
        with server.generations.start(asks) as started:
            assert [len(one) for one in await started.ended()] == [9, 3, 30]
        assert asyncio.get_running_loop().time() == pytest.approx(0.3, abs=0.006)

    play(use)


def test_frozen_generations_can_be_aborted_and_get_new_weights() -> None:
    async def use(server: Server) -> None:
        first, second = await server.asked("a", "b")
        await asyncio.sleep(0.032)
        server.generations.freeze()
        server.generations.swap(Weights(5))
        assert server.abort("a") == 1
        server.generations.resume()
        await asyncio.sleep(0.02)
        server.abort("b")
        spans = [[(one.weights.version, one.start, one.end) for one in g.spans()] for g in (first, second)]
        assert spans == [[(0, 0, 3)], [(0, 0, 3), (5, 3, 5)]]
        check_tokens(second)

    play(use)


def test_an_abort_after_so_many_tokens_is_due_when_the_last_of_them_is() -> None:
    from areal_core.embedded._fault_script import ABORT_AFTER

    async def use(server: Server) -> None:
        for count in (0, 3):
            token = ABORT_AFTER.set(count)
            (generation,) = await server.asked(f"r-{count}")
            ABORT_AFTER.reset(token)
            await asyncio.sleep(0.031)
            assert generation.finish == Finish("abort", message="Aborted")
            assert len(generation) == count
        assert server.counters.stats.aborted == 2

    play(use)


# Who runs


def test_as_many_run_as_there_are_slots_and_the_others_in_the_order_they_came() -> None:
    async def use(server: Server) -> None:
        short = Sampling(max_new_tokens=10, ignore_eos=True)
        taken = await server.asked("a", "b", "c", "d", sampling=short)
        assert (server.generations.running, server.generations.queued) == (2, 2)
        assert server.counters.stats.waiting == 2
        assert server.abort("c") == 1
        assert taken[2].finish == Finish("abort", message="queued")
        assert taken[2].tokens() == []
        (late,) = await server.asked("e", sampling=short)
        await asyncio.sleep(0.11)
        assert [one.id for one in (taken[3], late) if one.began is not None] == ["d", "e"]
        assert late.began == pytest.approx(0.1, abs=0.006)
        await asyncio.gather(*server.tasks)

    play(use, slots=2)


def test_one_that_begins_at_once_never_waits_in_the_eyes_of_who_counts() -> None:
    async def use(server: Server) -> None:
        seen = asyncio.create_task(server.counters.reach({"waiting": 1}))
        await server.asked("a", "b")
        assert not seen.done()
        await server.asked("c")
        assert (await seen).in_flight == 3

    play(use, slots=2)


def test_a_listener_that_leaves_makes_room_for_the_next() -> None:
    async def use(server: Server) -> None:
        _, second = await server.asked("a", "b")
        assert server.generations.queued == 1
        server.tasks[0].cancel()
        await asyncio.sleep(0)
        assert second.began == asyncio.get_running_loop().time()
        assert server.counters.stats.cancelled == 1

    play(use, slots=1)


def test_what_fails_as_it_begins_is_forgotten_and_lets_others_run() -> None:
    class Failing(Letters):
        def step(self, batch: Any, weights: Weights) -> list[tuple[int, float]]:
            if any(one.prompt == [666] for one in batch):
                raise ZeroDivisionError
            return super().step(batch, weights)

    async def use(server: Server) -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), server.generations.start([Ask("bad", [666], LONG)]):
                raise AssertionError
        assert server.counters.stats.in_flight == 0
        (good,) = await server.asked("good", sampling=Sampling(max_new_tokens=3, ignore_eos=True))
        await server.generations.idle()
        assert good.finish == Finish("length")

    play(use, model=Failing(versioned=True), slots=1)


def test_what_comes_in_a_pause_waits_and_has_not_started_by_the_log() -> None:
    async def use(server: Server) -> None:
        def logged() -> list[tuple[str, str]]:
            return [(one["event"], one["id"]) for one in server.generations.log.read()[1:]]

        await server.asked("before")
        server.generations.close()
        gated, gone = await server.asked("gated", "gone")
        assert [server.generations.live(gated), server.generations.running] == [False, 1]
        server.tasks[2].cancel()
        await asyncio.sleep(10)
        assert (gone.finish is None, server.counters.stats.cancelled) == (False, 1)
        assert logged() == [("start", "before"), ("end", "before")]
        server.generations.resume()
        assert gated.began == pytest.approx(10, abs=0.01)
        assert logged()[2:] == [("start", "gated")]

    play(use)


def test_those_sent_back_to_wait_go_on_first_with_the_tokens_they_had() -> None:
    async def use(server: Server) -> None:
        first, second, third = await server.asked("a", "b", "c", streamed=True)
        await asyncio.sleep(0.032)
        server.generations.freeze()
        server.generations.requeue()
        assert (server.generations.running, server.generations.queued) == (0, 3)
        server.generations.swap(Weights(4))
        server.generations.resume()
        assert third.began is None
        await asyncio.sleep(0.021)
        for generation in (first, second):
            assert [(s.weights.version, s.start, s.end) for s in generation.spans()] == [(0, 0, 3), (4, 3, 5)]
            check_tokens(generation)
        assert len(third) == 0

    play(use, slots=2)


def test_draining_waits_for_the_end_of_all_and_keeps_new_ones_out() -> None:
    async def use(server: Server) -> None:
        old, queued = await server.asked("a", "b", sampling=Sampling(max_new_tokens=10, ignore_eos=True))
        entered = asyncio.Event()

        async def drain() -> None:
            async with server.generations.drained():
                entered.set()
                assert (finish_of(old), finish_of(queued)) == (Finish("length"),) * 2
                await asyncio.sleep(5)

        draining = asyncio.create_task(drain())
        await asyncio.sleep(0)
        (new,) = await server.asked("c")
        await entered.wait()
        assert new.began is None
        await draining
        assert new.began == pytest.approx(5.2, abs=0.02)

    play(use, slots=1)


def test_a_thousand_generations_cost_no_more_turns_of_the_loop_than_there_are_ticks() -> None:
    async def use(server: Server) -> None:
        sampling = Sampling(max_new_tokens=30, ignore_eos=True)
        taken = [server.ask(f"r-{number}", sampling, streamed=True) for number in range(1000)]
        await asyncio.gather(*server.tasks)
        assert all(len(one) == 30 for (one,) in taken)

    loop = play(use, slots=0, sigma=0.3)
    # 30 tokens at the slowest pace of a thousand, 2.6 times the median; each tick wakes listeners once.
    assert loop.time() < 1.1
    assert loop.turns < 3 * loop.time() / 0.004


# Their pace


def test_another_attempt_at_a_request_has_the_pace_of_the_first() -> None:
    digits = "0123456789abcdef" * 2
    for rid in ("question-7", "", "a-b"):
        assert request_of(f"{rid}-{digits}") == rid
        assert ms_per_token(f"{rid}-{digits}", ServerOptions()) == ms_per_token(rid, ServerOptions())
    for rid in (digits, f"x-{digits[1:]}", f"x-{digits.upper()}", f"x-{digits}\n", f"x-{digits}-"):
        assert request_of(rid) == rid
    assert request_of(f"x-{digits}-{digits}") == f"x-{digits}"


# The policy makes each token when it is due


def test_the_policy_decodes_all_that_are_due_in_one_batch() -> None:
    sizes: list[int] = []

    class Counted(PolicyModel):
        def step(self, batch: Any, weights: Weights) -> list[tuple[int, float]]:
            sizes.append(len(batch))
            return super().step(batch, weights)

    async def use(server: Server) -> None:
        sampling = Sampling(max_new_tokens=5, ignore_eos=True, temperature=0)
        taken = [server.ask(f"r-{number}", sampling) for number in range(50)]
        await asyncio.gather(*server.tasks)
        assert {tuple(one.tokens()) for (one,) in taken} == {tuple(taken[0][0].tokens())}

    play(use, model=Counted())
    assert sizes == [50] * 5
