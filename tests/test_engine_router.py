"""Which server a generation goes to: choosing, pins, slots, and servers that come and go."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from areal_core._engine.backends.sglang import BACKEND
from areal_core._engine.router import Router
from areal_core._engine.server import Pin, Server
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange
from areal_core.errors import ServerUnreachableError
from conftest import MakeRunner
from engine_tools import Sending, a_request, an_engine, check_balanced, lives, logs_of
from reused_servers import ReusedServer
from threaded_loops import MakeLoop, ThreadedLoop, gathered, threaded_loops

PATIENCE_S = 20.0


def a_server(name: str) -> Server:
    return Server(Exchange(Address.parse(f"{name}:80"), None, 2**20), BACKEND)


def always() -> bool:
    return True


class Farm:
    """A router whose servers are in rotation, and what it said of those that left."""

    def __init__(self, names: str, slots: int | None = None, most_pins: int = 100) -> None:
        self.left: list[Server] = []
        self.router = Router(slots, most_pins, self.left.append)
        self.servers = [a_server(name) for name in names]
        for server in self.servers:
            self.router.add(server)
            assert self.router.put_in(server, always)

    @contextmanager
    def pinned(self, conversation: str | None) -> Iterator[Pin]:
        """Be a call of *conversation*."""
        pin = self.router.pin(conversation)
        try:
            yield pin
        finally:
            self.router.unpin(conversation)

    async def take(self, conversation: str | None = None, patience_s: float = PATIENCE_S) -> Server:
        """Take a slot for a call that has not ended yet; the pin is kept for as long."""
        with self.pinned(conversation) as pin:
            return await self.router.take(pin, patience_s)

    async def call(self, conversation: str, until: asyncio.Event) -> Server:
        """Make a call of *conversation* that lasts *until*."""
        with self.pinned(conversation) as pin:
            server = await self.router.take(pin, PATIENCE_S)
            try:
                await until.wait()
            finally:
                self.router.give_back(server)
            return server

    def waiting(self) -> int:
        """Return how many wait for a server."""
        queues = [self.router._queue, *(server.queue for server in self.servers)]
        return sum(not waiter.gone for queue in queues for waiter in queue)

    def check_idle(self) -> None:
        """See that nothing is counted any more."""
        assert self.waiting() == 0
        assert [server.in_flight for server in self.servers] == [0] * len(self.servers)
        assert not self.router._busy_pins


@contextmanager
def broken_off(loop: ThreadedLoop) -> Iterator[None]:
    """Close *loop* with its tasks as they are, and keep those to the end of the block."""
    loop.settle()
    tasks = asyncio.all_tasks(loop.loop)
    loop.break_off()
    for task in tasks:  # asyncio complains of tasks that end like this
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    yield
    tasks.clear()


@pytest.fixture
def run(loop_factory: MakeLoop) -> Callable[..., None]:
    """Run a coroutine function on a loop of its own."""

    def run(main: Callable[[], object]) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())  # type: ignore[arg-type]

    return run


# -- choosing


def test_the_server_with_the_fewest_in_flight_is_chosen(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("abc")
        a, b, c = farm.servers
        a.in_flight, b.in_flight, c.in_flight = 2, 0, 1
        assert await farm.take() is b
        assert {await farm.take(), await farm.take()} == {b, c}
        assert [server.in_flight for server in farm.servers] == [2, 2, 2]

    run(main)


def test_calls_that_end_before_the_next_are_spread_all_the_same(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("abc")
        chosen: Counter[Server] = Counter()
        for _ in range(30):
            server = await farm.take()
            chosen[server] += 1
            farm.router.give_back(server)
        assert set(chosen.values()) == {10}

    run(main)


def test_calls_of_several_threads_are_spread(loop_factory: MakeLoop) -> None:
    farm = Farm("abc")

    async def burst() -> None:
        await asyncio.gather(*(farm.take() for _ in range(200)))

    with threaded_loops(loop_factory, 3) as loops:
        for one in [loop.begin(burst()) for loop in loops]:
            one.result(20)
    assert [server.in_flight for server in farm.servers] == [200, 200, 200]


def test_choosing_and_counting_are_one_step(loop_factory: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Farm("ab")
    farm.servers[1].in_flight = 1
    with threaded_loops(loop_factory, 2) as (here, there):
        begun: list[Future[Server]] = []

        def in_flight(server: Server) -> int:
            if not begun:  # between looking and counting, another thread has all the time it needs
                begun.append(there.begin(farm.take()))
                wait(begun, timeout=0.2)
            return server.in_flight

        monkeypatch.setattr("areal_core._engine.router._in_flight", in_flight)
        chosen = here.run(farm.take())
        assert begun[0].result(10) is not chosen


# -- pins


def test_a_conversation_stays_on_its_server_over_many_turns(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("abc")
        home = await farm.take("x")
        home.in_flight += 100
        for _ in range(50):
            assert await farm.take("x") is home
            assert await farm.take() is not home

    run(main)


def test_calls_of_one_conversation_that_wait_at_once_get_one_server(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("abc", slots=1)
        held = [await farm.take() for _ in range(3)]
        until = asyncio.Event()
        until.set()
        calls = [asyncio.create_task(farm.call("x", until)) for _ in range(6)]
        other = asyncio.create_task(farm.take("y"))
        await asyncio.sleep(0)
        for server in held:
            farm.router.give_back(server)
        async with asyncio.timeout(10):
            homes = {await call for call in calls}
            farm.router.give_back(await other)
        assert len(homes) == 1
        farm.check_idle()

    run(main)


def test_without_an_id_a_call_is_pinned_to_nothing_that_lasts(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab")
        with farm.pinned(None) as pin:
            server = await farm.router.take(pin, PATIENCE_S)
            farm.router.give_back(server)
            server.in_flight += 5
            assert await farm.router.take(pin, PATIENCE_S) is server  # the next attempt of this call
        assert not farm.router._busy_pins
        assert not farm.router._idle_pins

    run(main)


def test_only_the_longest_idle_conversations_are_forgotten(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("a", most_pins=3)
        until = asyncio.Event()
        busy = [asyncio.create_task(farm.call(f"busy {n}", until)) for n in range(10)]
        await asyncio.sleep(0)
        for n in range(6):
            await farm.take(f"idle {n}")
            await farm.take("idle 0")  # this one is used again and again
        assert list(farm.router._idle_pins) == ["idle 4", "idle 5", "idle 0"]
        assert len(farm.router._busy_pins) == 10
        until.set()
        await asyncio.gather(*busy)
        assert len(farm.router._idle_pins) == 3

    run(main)


def test_a_conversation_whose_server_left_moves_for_good(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab")
        home = await farm.take("x")
        farm.router.take_out(home, "it burns")
        elsewhere = await farm.take("x")
        assert elsewhere is not home
        assert farm.router.put_in(home, always)
        elsewhere.in_flight += 5
        assert await farm.take("x") is elsewhere

    run(main)


# -- slots


def test_who_waits_for_a_slot_is_served_in_order(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab", slots=1)
        held = [await farm.take(), await farm.take()]
        order: list[int] = []

        async def call(number: int) -> None:
            server = await farm.take()
            order.append(number)
            farm.router.give_back(server)

        calls = [asyncio.create_task(call(number)) for number in range(20)]
        await asyncio.sleep(0)
        assert farm.waiting() == 20
        farm.router.give_back(held[0])
        async with asyncio.timeout(10):
            await asyncio.gather(*calls)
        assert order == list(range(20))
        farm.router.give_back(held[1])
        farm.check_idle()

    run(main)


def test_who_waits_for_its_own_server_holds_nobody_up(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab", slots=1)
        home = await farm.take("x")
        pinned = asyncio.create_task(farm.take("x"))
        await asyncio.sleep(0)
        other = await farm.take()  # a slot of the other server is free
        assert other is not home
        free = asyncio.create_task(farm.take())
        await asyncio.sleep(0)
        farm.router.give_back(other)
        async with asyncio.timeout(10):
            assert await free is other
        assert not pinned.done()
        farm.router.give_back(home)
        async with asyncio.timeout(10):
            assert await pinned is home

    run(main)


def test_at_its_server_a_pinned_call_waits_no_longer_than_others(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("a", slots=1)
        await farm.take("x")
        order: list[str] = []

        async def call(name: str, conversation: str | None) -> None:
            server = await farm.take(conversation)
            order.append(name)
            farm.router.give_back(server)

        calls = []
        for name, conversation in (("1", None), ("2", "x"), ("3", None), ("4", "x"), ("5", "y")):
            calls.append(asyncio.create_task(call(name, conversation)))
            await asyncio.sleep(0)
        farm.router.give_back(farm.servers[0])
        async with asyncio.timeout(10):
            await asyncio.gather(*calls)
        assert order == ["1", "2", "3", "4", "5"]

    run(main)


def test_who_is_cancelled_while_it_waits_takes_no_slot(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("a", slots=1)
        held = await farm.take()
        cancelled, last = asyncio.create_task(farm.take()), asyncio.create_task(farm.take())
        await asyncio.sleep(0)
        cancelled.cancel()
        await gathered(cancelled)
        farm.router.give_back(held)
        async with asyncio.timeout(10):
            farm.router.give_back(await last)
        farm.check_idle()

    run(main)


def test_who_is_cancelled_just_as_it_gets_a_slot_gives_it_back(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("a", slots=1)
        held = await farm.take()
        cancelled, last = asyncio.create_task(farm.take()), asyncio.create_task(farm.take())
        await asyncio.sleep(0)
        farm.router.give_back(held)
        cancelled.cancel()
        async with asyncio.timeout(10):
            farm.router.give_back(await last)
        assert cancelled.cancelled()
        farm.check_idle()

    run(main)


def test_waiters_of_several_loops_share_the_slots(loop_factory: MakeLoop) -> None:
    farm = Farm("abc", slots=2)
    most = dict.fromkeys(farm.servers, 0)

    async def calls(seed: int) -> None:
        random = Random(seed)

        async def call() -> None:
            server = await farm.take(random.choice([None, "x", "y", f"{seed}"]))
            most[server] = max(most[server], server.in_flight)
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
            farm.router.give_back(server)

        await asyncio.gather(*(call() for _ in range(300)))

    with threaded_loops(loop_factory, 4) as loops:
        for one in [loop.begin(calls(seed)) for seed, loop in enumerate(loops)]:
            one.result(20)
    assert list(most.values()) == [2, 2, 2]
    farm.check_idle()


@pytest.mark.parametrize("collected", [False, True])
def test_who_waits_on_a_loop_that_was_closed_gets_no_slot(loop_factory: MakeLoop, collected: bool) -> None:
    farm = Farm("a", slots=1)
    with threaded_loops(loop_factory, 1) as (here,):
        held = here.run(farm.take())
        gone = ThreadedLoop(loop_factory)
        gone.begin(farm.take())
        gone.settle()
        last = here.begin(farm.take())
        here.settle()
        with broken_off(gone):
            if not collected:
                farm.router.give_back(held)
                farm.router.give_back(last.result(10))
        if collected:
            gc.collect()
            farm.router.give_back(held)
            farm.router.give_back(last.result(10))
    farm.check_idle()


# -- servers that come and go


def test_waiters_move_in_their_order_when_their_server_leaves(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab", slots=1)
        home = await farm.take("x")
        elsewhere = await farm.take()
        order: list[str] = []

        async def call(name: str, conversation: str | None) -> None:
            server = await farm.take(conversation)
            assert server is elsewhere
            order.append(name)
            farm.router.give_back(server)

        calls = []
        for name, conversation in (("1", "x"), ("2", None), ("3", "x"), ("4", "y")):
            calls.append(asyncio.create_task(call(name, conversation)))
            await asyncio.sleep(0)
        farm.router.take_out(home, "it burns")
        farm.router.give_back(elsewhere)
        async with asyncio.timeout(10):
            await asyncio.gather(*calls)
        assert order == ["1", "2", "3", "4"]
        farm.router.give_back(home)
        farm.check_idle()

    run(main)


def test_a_server_that_leaves_sends_its_waiters_to_free_slots_at_once(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab", slots=1)
        home = await farm.take("x")
        call = asyncio.create_task(farm.take("x"))
        await asyncio.sleep(0)
        farm.router.take_out(home, "it burns")
        async with asyncio.timeout(10):
            assert await call is not home

    run(main)


def test_a_server_that_comes_gets_those_who_wait(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("")
        server = a_server("late")
        farm.router.add(server)
        calls = [asyncio.create_task(farm.take()) for _ in range(5)]
        await asyncio.sleep(0)
        assert not farm.router.put_in(server, lambda: False)
        assert server.why_out == "new"
        await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        assert farm.router.put_in(server, always)
        async with asyncio.timeout(10):
            assert set(await asyncio.gather(*calls)) == {server}

    run(main)


def test_with_no_server_for_too_long_the_error_names_each_and_why(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab")
        farm.router.take_out(farm.servers[0], "it burns")
        farm.router.take_out(farm.servers[1], "it is flooded")
        waits = asyncio.create_task(farm.take(patience_s=0.05))
        with pytest.raises(
            ServerUnreachableError, match=r"0\.05 s .*a:80 is out: it burns.*b:80 is out: it is fl"
        ):
            await waits
        assert farm.waiting() == 0

    run(main)


def test_patience_is_counted_from_when_the_last_server_left(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("ab", slots=1)
        held = [await farm.take(), await farm.take()]
        waits = asyncio.create_task(farm.take(patience_s=0.1))
        done, _ = await asyncio.wait((waits,), timeout=0.15)  # busy servers are no reason to give up
        assert not done
        farm.router.take_out(held[0], "it burns")
        done, _ = await asyncio.wait((waits,), timeout=0.15)
        assert not done
        farm.router.take_out(held[1], "it burns")
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ServerUnreachableError):
            await waits
        assert 0.05 < loop.time() - began < 5

    run(main)


def test_patience_is_counted_anew_for_who_begins_to_look_after_servers(run: Callable[..., None]) -> None:
    async def main() -> None:
        farm = Farm("a")
        farm.router.take_out(farm.servers[0], "it burns")
        farm.router._deserted_since = 0.0  # long ago
        with pytest.raises(ServerUnreachableError):
            await farm.take()
        farm.router.renew_patience()
        waits = asyncio.create_task(farm.take())
        await asyncio.sleep(0)
        farm.router.put_in(farm.servers[0], always)
        assert await waits is farm.servers[0]
        farm.router.renew_patience()  # means nothing with a server there
        assert farm.router._deserted_since is None

    run(main)


def test_what_a_server_is_out_for_can_change_but_not_while_it_is_in() -> None:
    farm = Farm("a")
    (server,) = farm.servers

    def why() -> str | None:
        return server.why_out

    farm.router.explain(server, "no")
    assert why() is None
    farm.router.take_out(server, "it burns")
    farm.router.explain(server, "it burnt down")
    assert why() == "it burnt down"
    farm.router.remove(server)
    farm.router.explain(server, "no")
    assert why() == "it burnt down"


def test_a_server_leaves_once_and_is_told_of_once() -> None:
    farm = Farm("a")
    (server,) = farm.servers
    farm.router.take_out(server, "it burns")
    farm.router.take_out(server, "it is flooded")
    assert farm.left == [server]
    assert server.why_out == "it burns"


def test_a_server_that_was_removed_never_comes_back() -> None:
    farm = Farm("ab")
    server = farm.servers[0]
    farm.router.remove(server)
    assert server.why_out == "removed"
    assert not farm.router.put_in(server, always)
    assert farm.router.servers == (farm.servers[1],)
    assert farm.router.in_rotation == (farm.servers[1],)


def test_an_address_is_one_server() -> None:
    farm = Farm("a")
    with pytest.raises(ValueError, match="a:80 is one of the servers already"):
        farm.router.add(a_server("a"))


def test_servers_that_come_and_go_meanwhile_lose_nobody(loop_factory: MakeLoop) -> None:
    farm = Farm("abc", slots=3)
    ended = threading.Event()

    def shake() -> None:
        random = Random(1)
        while not ended.is_set():
            server = random.choice(farm.servers)
            if server.why_out is None:
                farm.router.take_out(server, "shaken")
            else:
                farm.router.put_in(server, always)

    async def calls(seed: int) -> None:
        random = Random(seed)

        async def call() -> None:
            server = await farm.take(random.choice([None, "x", "y", f"{random.random()}"]))
            assert server.in_flight <= 3
            await asyncio.sleep(0)
            farm.router.give_back(server)

        for _ in range(20):
            await asyncio.gather(*(call() for _ in range(30)))

    shaking = threading.Thread(target=shake)
    with threaded_loops(loop_factory, 2) as loops:
        shaking.start()
        try:
            calling = [loop.begin(calls(seed)) for seed, loop in enumerate(loops)]
            for one in calling:
                one.result(30)
        finally:
            ended.set()
            shaking.join()
    farm.check_idle()


# -- against a model


class Call:
    """One call: waiting, on a server, or over."""

    def __init__(self, task: asyncio.Task[Server], conversation: str | None) -> None:
        self.task = task
        self.conversation = conversation


class RouterMachine(RuleBasedStateMachine):
    """Random calls, ends, cancellations, and servers that come and go; after each step the counts agree."""

    slots: int | None = 2

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.farm = Farm("abcd", self.slots, most_pins=3)
        self.calls: list[Call] = []
        self.order: list[Call] = []  # of those that wait

    def teardown(self) -> None:
        for call in list(self.calls):
            self.end(call)
        for server in self.farm.servers:
            self.farm.router.put_in(server, always)
        self.turn()
        for call in list(self.calls):
            assert call.task.done()
            self.end(call)
            self.turn()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.farm.check_idle()
        self.loop.close()

    def turn(self) -> None:
        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def end(self, call: Call) -> None:
        if call.task.done():
            self.calls.remove(call)
            self.farm.router.give_back(call.task.result())

    @rule(conversation=st.sampled_from([None, "x", "y", "z", "w", "v"]))
    def begin(self, conversation: str | None) -> None:
        self.calls.append(Call(self.loop.create_task(self.farm.take(conversation)), conversation))
        self.turn()

    @rule(which=st.integers(0, 50), at_once=st.booleans())
    def finish(self, which: int, at_once: bool) -> None:
        served = [call for call in self.calls if call.task.done()]
        if served:
            self.end(served[which % len(served)])
        if not at_once:
            self.turn()

    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        waiting = [call for call in self.calls if not call.task.done()]
        if waiting:
            call = waiting[which % len(waiting)]
            call.task.cancel()
            self.calls.remove(call)
            self.turn()
            assert call.task.cancelled()

    @rule(which=st.integers(0, 3))
    def leave(self, which: int) -> None:
        self.farm.router.take_out(self.farm.servers[which], "model")
        self.turn()

    @rule(which=st.integers(0, 3))
    def come(self, which: int) -> None:
        self.farm.router.put_in(self.farm.servers[which], always)
        self.turn()

    @invariant()
    def the_counts_agree(self) -> None:
        self.turn()
        served = Counter(call.task.result() for call in self.calls if call.task.done())
        waiting = [call for call in self.calls if not call.task.done()]
        assert {one: one.in_flight for one in self.farm.servers} == {
            one: served[one] for one in self.farm.servers
        }
        assert self.farm.waiting() == len(waiting)
        in_flight = Counter(call.conversation for call in waiting if call.conversation is not None)
        assert {name: pin.in_flight for name, pin in self.farm.router._busy_pins.items()} == in_flight
        assert len(self.farm.router._idle_pins) <= 3
        free = [one for one in self.farm.servers if one.why_out is None and self.has_slot(one)]
        for server in free:  # nobody waits for what is free
            assert not [waiter for waiter in server.queue if not waiter.gone]
        assert not free or not [waiter for waiter in self.farm.router._queue if not waiter.gone]

    def has_slot(self, server: Server) -> bool:
        return self.slots is None or server.in_flight < self.slots


class UnlimitedRouterMachine(RouterMachine):
    """The same with no limit of slots."""

    slots = None


@pytest.mark.any_loop
@pytest.mark.parametrize("machine", [RouterMachine, UnlimitedRouterMachine])
def test_after_any_operations_the_counts_agree_with_a_model(
    loop_name: str, machine: type[RouterMachine]
) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=50))


# -- through the engine


def test_each_conversation_is_one_servers_and_all_servers_have_some(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    runners = [make_runner(), make_runner()]
    with an_engine(*servers) as engine:
        for turn in range(5):
            tasks = []
            for number in range(12):
                sending = Sending(runners[(number + turn) % 2], engine)
                tasks.append((sending, sending.send(a_request([1, turn], most=3, rid=f"{number}"))))
            for sending, task in tasks:
                sending.reply(task)
        places = {(one.conversation, one.server) for one in lives(logs_of(*servers))}
        assert len(places) == 12
        assert {server for _, server in places} == {server.addr for server in servers}
        check_balanced(engine)


def test_no_server_gets_more_at_once_than_it_may(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    runners = [make_runner(), make_runner()]
    with an_engine(*servers, max_inflight_per_server=2) as engine:
        tasks = []
        for number in range(60):
            sending = Sending(runners[number % 2], engine)
            tasks.append((sending, sending.send(a_request(most=5, rid=f"{number % 7}"))))
        for sending, task in tasks:
            sending.reply(task)
        for server in servers:
            at_once = 0
            for event in server.log():
                at_once += {"start": 1, "end": -1}.get(event["event"], 0)
                assert at_once <= 2
        check_balanced(engine)


def test_a_generation_without_any_server_fails_after_setup_timeout(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers[:2], setup_timeout=1.0) as engine:
        sending = Sending(make_runner(), engine)
        for server in servers[:2]:
            server.kill()
        error = sending.ending(sending.send(a_request(most=3)))
        assert isinstance(error, ServerUnreachableError)
        assert error.server is None
        for server in servers[:2]:
            assert f"{server.addr} is out: " in str(error)
        assert "no server has been in rotation for setup_timeout=1 s" in str(error)
