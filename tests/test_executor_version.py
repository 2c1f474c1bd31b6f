"""What a new policy version does: it starts what waits, and what is too old for it is not trained on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from areal_core.config import InferenceEngineConfig
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import Blockade, Caller, Door, in_thread, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Answering,
    Engine,
    Lists,
    Playing,
    TellingEngine,
    answering,
    balance,
    counts,
    life_under,
    statuses_of,
    trajectory_of,
    values_of,
)
from logged import LogLines

Announce = Callable[[WorkflowExecutor, Any], None]


def by_hand(executor: WorkflowExecutor, engine: Engine) -> None:
    engine.version = 1
    executor.on_version_changed()


def by_subscription(executor: WorkflowExecutor, engine: TellingEngine) -> None:
    engine.set_version(1)


ANNOUNCED = pytest.mark.parametrize(
    ("engine", "announce"),
    [(Engine(), by_hand), (TellingEngine(), by_subscription)],
    ids=["on_version_changed", "subscribe"],
)


@ANNOUNCED
def test_waiting_rollouts_have_started_when_the_callback_has_run_with_no_other_event(
    make_executor: MakeExecutor, engine: Any, announce: Announce
) -> None:
    engine.version = 0
    executor, blockade, door = make_executor(engine, consumer_batch_size=2), Blockade(), Door()
    for _ in range(2):
        executor.submit(1, answering)
    executor.wait(2, WAIT_S)
    workflow = Playing(door.walk_through)
    for _ in range(3):
        executor.submit(None, workflow)
    turn_loop(executor.runner)
    assert (executor.ledger.pending, executor.ledger.running) == (3, 0)
    assert executor.get_capacity() == 0

    ledgers: list[Any] = []
    looked = threading.Event()

    def look() -> None:
        ledgers.append(executor.ledger)
        looked.set()

    executor.runner.submit(blockade.block)
    blockade.wait_until_entered()  # no event can come to the loop, but those:
    announce(executor, engine)
    life_under(executor).thread.loop.call_soon_threadsafe(look)
    blockade.lift()
    assert looked.wait(WAIT_S)
    assert (ledgers[0].pending, ledgers[0].running) == (1, 2)
    door.wait_for(2)
    door.open()
    executor.wait(2, WAIT_S)


@ANNOUNCED
def test_a_caller_who_waits_for_the_version_is_served(
    make_executor: MakeExecutor, engine: Any, announce: Announce
) -> None:
    engine.version = 0
    executor, loader = make_executor(engine, consumer_batch_size=2), Lists(2)
    assert values_of(executor.prepare_batch(loader, answering)) == [0, 1]
    preparing = start_blocked(executor.prepare_batch, loader, answering)
    turn_loop(executor.runner)
    assert not preparing.is_done()
    announce(executor, engine)
    assert values_of(preparing.result()) == [2, 3]


def test_the_executor_subscribes_once_while_it_runs(make_executor: MakeExecutor) -> None:
    engine = TellingEngine(4)
    executor = make_executor(engine)
    assert len(engine.subscribers) == 1
    executor.destroy()
    assert engine.subscribers == []
    engine.set_version(5)
    executor.initialize()
    assert len(engine.subscribers) == 1
    executor.submit(1, answering)
    assert executor.wait_outcomes(1, WAIT_S)[0].start_version == 5


@pytest.mark.parametrize("unsubscribe", [None, lambda: 1 / 0])
def test_a_provider_whose_unsubscribe_fails_does_not_keep_the_loop_open(
    make_executor: MakeExecutor, unsubscribe: Any, log_lines: LogLines
) -> None:
    class Odd(Engine):
        def subscribe(self, callback: Callable[[int], None]) -> Any:
            return unsubscribe

    executor = make_executor(Odd())
    loop = life_under(executor).thread.loop
    executor.destroy()
    assert loop.is_closed()
    told = log_lines.of("error")
    assert told == ([] if unsubscribe is None else ["unsubscribe_raised"])


@pytest.mark.any_loop
@pytest.mark.parametrize("method", ["subscribe", "get_version"])
def test_a_provider_that_raises_at_initialize_leaves_nothing_behind(
    make_executor: MakeExecutor, method: str
) -> None:
    class Odd(TellingEngine):
        broken = False

        def get_version(self) -> int:
            return self._fail() if self.broken and method == "get_version" else super().get_version()

        def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
            return self._fail() if self.broken and method == "subscribe" else super().subscribe(callback)

        def _fail(self) -> Any:
            raise OSError("no connection")

    engine = Odd()
    executor = make_executor(engine)
    executor.destroy()
    engine.broken = True
    with pytest.raises(OSError, match="no connection"):
        executor.initialize()
    assert engine.subscribers == []
    assert executor.runner.thread is not None
    assert not executor.runner.thread.is_alive()
    engine.broken = False
    executor.initialize()
    executor.submit(1, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [1]


@pytest.mark.any_loop
def test_the_provider_is_asked_in_callers_threads_only_and_never_under_a_lock(
    make_executor: MakeExecutor,
) -> None:
    class Curious(Engine):
        def get_version(self) -> int:
            threads.add(threading.current_thread())
            if executors:
                in_thread(lambda: executors[0].ledger)  # it would wait for a lock
                in_thread(executors[0].get_capacity)
            return super().get_version()

    threads: set[threading.Thread] = set()
    executors: list[WorkflowExecutor] = []
    executor = make_executor(Curious(), consumer_batch_size=8)
    executors.append(executor)
    executor.submit(1, answering)
    executor.wait(1, WAIT_S)
    executor.on_version_changed()
    executor.rollout_batch([1, 2], answering)
    executor.prepare_batch(Lists(1, batch_size=1), answering)
    assert threads == {threading.current_thread()}


@pytest.mark.any_loop
def test_a_version_that_rises_while_the_batch_is_cut_is_seen(make_executor: MakeExecutor) -> None:
    """And nobody has told of it: the cut itself looks."""

    class Rising(Engine):
        reads = -1

        def get_version(self) -> int:
            if self.reads >= 0:
                self.reads += 1
            if self.reads == 1:
                self.version += 1
            return super().get_version()

    engine = Rising()
    executor = make_executor(engine, consumer_batch_size=2, on_stale="drop")
    loader = Lists(2)
    executor.pause()
    preparing = Caller(executor.prepare_batch, loader, Playing(lambda data: _give(engine, data)))
    preparing.wait_until_blocked()
    engine.reads = 0
    executor.resume()
    batch = preparing.result()
    assert [int(one["versions"].min()) for one in batch] == [1, 1]
    assert executor.ledger.stale == 2
    balance(executor.ledger)


async def _give(engine: Engine, data: int) -> Any:
    return trajectory_of(data, versions=engine.version)


@pytest.mark.any_loop
@pytest.mark.parametrize("engine_class", [Engine, TellingEngine])
def test_a_version_that_was_read_before_another_and_comes_after_it_takes_nothing_back(
    make_executor: MakeExecutor, engine_class: type[Engine]
) -> None:
    class Slow(engine_class):  # type: ignore[misc, valid-type]
        """Who reads its version in another thread gets it when the gate is open, as it was before."""

        read, gate, main = threading.Event(), threading.Event(), threading.get_ident()

        def get_version(self) -> int:
            version: int = self.version
            if threading.get_ident() != self.main:
                self.read.set()
                self.gate.wait(WAIT_S)
            return version

    engine, door = Slow(), Door()
    executor = make_executor(engine, consumer_batch_size=4, max_head_offpolicyness=1)
    early = Caller(executor.on_version_changed)
    assert engine.read.wait(WAIT_S)
    if isinstance(engine, TellingEngine):
        engine.set_version(1)
    else:
        engine.version = 1
        executor.on_version_changed()
    for _ in range(4):
        executor.submit(trajectory_of(1, versions=1), Playing(door.walk_through))
    door.wait_for(4)
    engine.gate.set()
    early.result()
    executor.report()  # it comes after what was posted before
    assert executor.explain_capacity().version == 1
    door.open()
    assert values_of(executor.wait(4, WAIT_S)) == [1] * 4


@pytest.mark.any_loop
def test_a_provider_that_never_says_the_same_twice_holds_nobody_up(make_executor: MakeExecutor) -> None:
    class Clock(Engine):
        def get_version(self) -> int:
            self.version += 1
            return self.version

    executor = make_executor(Clock(), max_head_offpolicyness=10**6)
    before = executor.explain_capacity().version
    Caller(executor.on_version_changed).result()
    executor.report()  # it comes after what was posted before
    assert executor.explain_capacity().version > before
    executor.submit(1, Answering())
    assert values_of(Caller(executor.wait, 1).result()) == [1]


class Flapping(Engine):
    """Two replicas, of which one is a version behind: each read gets the other."""

    reads = 0

    def get_version(self) -> int:
        self.reads += 1
        return 3 + self.reads % 2


class Lagging(TellingEngine):
    """Tells at once what it says only later, when it is asked."""

    reads = 0

    def get_version(self) -> int:
        self.reads += 1
        return 3


@pytest.mark.any_loop
@pytest.mark.parametrize("make", [Flapping, Lagging], ids=["flaps", "lags"])
def test_a_provider_that_contradicts_itself_has_not_gone_back(
    make_executor: MakeExecutor, make: type[Flapping | Lagging]
) -> None:
    engine = make()
    executor = make_executor(engine, consumer_batch_size=2, max_head_offpolicyness=4)
    if isinstance(engine, Lagging):
        engine.set_version(4)
    for _ in range(4):
        executor.submit(1, Answering())
        assert values_of(Caller(executor.wait, 1).result()) == [1]
    assert executor.ledger.stale == 0
    assert engine.reads < 20, "it goes on asking"


class Gated(Engine):
    """Has whoever reads its version wait for his turn between a look at it and his return, or before it."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.plans: dict[threading.Thread, tuple[bool, threading.Event, threading.Event]] = {}

    def get_version(self) -> int:
        reads_late, came, may_go = self.plans.pop(threading.current_thread(), (False, None, None))
        version = self.version
        if came is not None and may_go is not None:
            came.set()
            assert may_go.wait(WAIT_S)
        return self.version if reads_late else version

    def start(self, executor: WorkflowExecutor, *, reads_late: bool) -> Callable[[], None]:
        """Have another thread tell *executor*, and stop at its first read; return what lets it end."""
        came, may_go = threading.Event(), threading.Event()
        thread = threading.Thread(target=executor.on_version_changed)
        self.plans[thread] = reads_late, came, may_go
        thread.start()
        assert came.wait(WAIT_S)

        def end() -> None:
            may_go.set()
            thread.join(WAIT_S)

        return end


@pytest.mark.any_loop
@pytest.mark.parametrize("reads_late", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("versions", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3)])
def test_of_several_threads_that_read_the_version_no_order_takes_anything_back(
    make_executor: MakeExecutor,
    versions: tuple[int, int, int],
    order: tuple[int, int],
    reads_late: tuple[bool, bool],
) -> None:
    """What the trainer went through is seen in its order, and in the end what it came to."""
    engine = Gated(0)
    executor = make_executor(engine, consumer_batch_size=4)
    seen, ends = [], []
    for version, is_late in zip(versions, (*reads_late, None), strict=True):
        engine.version = version
        if is_late is not None:
            ends.append(engine.start(executor, reads_late=is_late))
    for tell in (*(ends[number] for number in order), executor.on_version_changed):
        tell()
        executor.report()  # it comes after what was posted before
        seen.append(executor.explain_capacity().version)
    places = [versions.index(version) for version in seen]
    assert places == sorted(places), f"of {versions} it saw {seen}"
    assert seen[-1] == versions[-1]


@pytest.mark.any_loop
@pytest.mark.parametrize("later", [1, 3])
def test_two_threads_that_set_the_engines_version_may_tell_in_any_order(
    make_executor: MakeExecutor, later: int
) -> None:
    """Also where one went back: it is the one that was set last."""
    engine = RemoteInfEngine(InferenceEngineConfig())
    executor = make_executor(engine, consumer_batch_size=4)
    held, may_go = threading.Event(), threading.Event()
    main = threading.current_thread()

    class HoldsUp:
        """A subscriber that came before the executor, and keeps one thread from telling it."""

        def __call__(self, version: int) -> None:
            if threading.current_thread() is not main:
                held.set()
                assert may_go.wait(WAIT_S)

    executor.destroy()
    engine.subscribe(HoldsUp())
    executor.initialize()
    early = threading.Thread(target=engine.set_version, args=(2,))
    early.start()
    assert held.wait(WAIT_S)
    engine.set_version(later)
    may_go.set()
    early.join(WAIT_S)
    executor.report()
    assert executor.explain_capacity().version == engine.get_version() == later


def test_tokens_that_are_too_old_at_delivery_are_masked_and_the_others_trained_on(
    make_executor: MakeExecutor,
) -> None:
    engine = TellingEngine(5)
    executor = make_executor(engine, consumer_batch_size=2, max_head_offpolicyness=1)
    original = trajectory_of(7, versions=[-1, 5, 6, 7], length=4)

    async def play(data: Any) -> Any:
        return original

    executor.submit(None, Playing(play))
    turn_loop(executor.runner)
    engine.set_version(7)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert outcome.trajectory is not None
    assert outcome.trajectory["loss_mask"].tolist() == [[0, 0, 1, 1]]
    assert (outcome.tokens_masked, outcome.origin, outcome.start_version) == (1, 6, 5)
    assert "loss_mask" not in original
    report = executor.report()
    assert (report.tokens_trained, report.tokens_masked, report.staleness_max) == (2, 1, 1)


@pytest.mark.parametrize("on_stale", ["mask", "drop", "keep"])
def test_what_is_too_old_as_a_whole_is_stale_unless_it_is_kept(
    make_executor: MakeExecutor, on_stale: str
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=2, on_stale=on_stale)
    executor.submit(1, answering, task_id=1)  # it has no versions: its start counts
    executor.submit(2, Playing(lambda data: _give(engine, data)), task_id=2)
    turn_loop(executor.runner)
    engine.set_version(1)
    outcomes = executor.wait_outcomes(2, WAIT_S)
    ending = "accepted" if on_stale == "keep" else "stale"
    assert statuses_of(outcomes) == {1: ending, 2: ending}
    if ending == "stale":
        assert [outcome.trajectory for outcome in outcomes] == [None, None]
        assert outcomes[0].reason is not None
        assert "version 1" in outcomes[0].reason
    assert executor.report().staleness_max == (1 if on_stale == "keep" else 0)


def test_a_running_rollout_that_can_bring_nothing_young_enough_is_ended(make_executor: MakeExecutor) -> None:
    engine, door = TellingEngine(), Door()
    executor = make_executor(engine, consumer_batch_size=1)
    executor.submit(None, Playing(door.walk_through))
    door.wait_for()
    engine.set_version(1)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert outcome.status == "stale"
    assert executor.report().wasted_seconds > 0


def test_requeue_runs_it_again_with_its_id(make_executor: MakeExecutor) -> None:
    engine, runs = TellingEngine(), []

    async def play(data: int) -> Any:
        runs.append(engine.version)
        return trajectory_of(data)

    executor = make_executor(engine, consumer_batch_size=1, on_stale="requeue")
    executor.submit(3, Playing(play), task_id=3)
    for version in (1, 2):
        turn_loop(executor.runner)
        engine.set_version(version)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert (outcome.task_id, outcome.status, runs) == (3, "stale", [0, 1])
    ledger = {"submitted": 1, "collected": 1, "stale": 1, "requeued": 1}
    assert counts(executor.ledger) == ledger


def test_an_evaluation_never_becomes_too_old(make_executor: MakeExecutor) -> None:
    engine, door = TellingEngine(), Door()
    executor = make_executor(engine)
    executor.submit(1, answering, task_id=1, is_eval=True)
    executor.submit(trajectory_of(2, versions=0), Playing(door.walk_through), task_id=2, is_eval=True)
    door.wait_for()
    engine.set_version(9)
    door.open()
    outcomes = executor.wait_outcomes(2, WAIT_S, is_eval=True)
    assert statuses_of(outcomes) == {1: "accepted", 2: "accepted"}
    assert [outcome.tokens_masked for outcome in outcomes] == [0, 0]


@pytest.mark.parametrize("on_stale", ["mask", "drop", "requeue"])
@pytest.mark.parametrize("staleness", [0, 2])
def test_no_trained_token_is_over_the_bound_while_another_thread_raises_the_version(
    make_executor: MakeExecutor, on_stale: str, staleness: int
) -> None:
    """The version when the call returns is not known; that after it, less what was raised meanwhile, is."""
    engine, over = TellingEngine(), threading.Event()

    async def play(data: int) -> Any:
        first = engine.version
        for _ in range(data % 3):
            await _turn()
        return trajectory_of(data, versions=[-1, first, engine.version], length=3)

    async def _turn() -> None:
        import asyncio

        await asyncio.sleep(0)

    executor = make_executor(
        engine,
        consumer_batch_size=8,
        max_head_offpolicyness=staleness,
        on_stale=on_stale,
        max_requeues=3,
        max_consecutive_unaccepted=1_000_000,  # where the machine is slow, most are too old
    )
    loader, seen = Lists(8), []
    bumps = 0

    def bump() -> None:
        nonlocal bumps
        while not over.wait(0.0005):
            engine.set_version(engine.version + 1)
            bumps += 1

    bumping = threading.Thread(target=bump)
    bumping.start()
    try:
        for _ in range(60):
            before = engine.version
            for one in executor.prepare_batch(loader, Playing(play)):
                seen.append(int(one["input_ids"][0, 0]))
                trained = one["versions"][one.get("loss_mask", one["versions"] >= 0) != 0]
                # The cut was not before the call, and so no bound can be lower than this.
                assert trained.min() >= before - staleness
    finally:
        over.set()
        bumping.join()
    assert bumps > 20
    assert len(seen) == len(set(seen)) == 480
    balance(executor.ledger)
    report = executor.report()
    assert report.delivered == 480
    assert report.staleness_max <= staleness
    assert np.isfinite(report.staleness_mean)


@pytest.mark.any_loop
def test_a_class_as_workflow_is_made_anew_for_each_call(make_executor: MakeExecutor) -> None:
    made = []

    class Counting(Answering):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    executor = make_executor(consumer_batch_size=4)
    executor.prepare_batch(Lists(4), Counting)
    executor.rollout_batch([1, 2], Counting)
    assert len(made) == 2
