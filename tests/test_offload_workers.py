"""How many workers call offloaded functions, and what is said of the calls that wait for one."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import offload_jobs as jobs
from areal_core import _record
from areal_core._executor.snapshot import Snapshot
from areal_core._offload.crew import stats_of
from areal_core._offload.stats import processors
from areal_core._record import EpisodeRecord
from areal_core.metrics import PrometheusCollector
from areal_core.offload import OffloadStats, Place, configure_offload, offloaded
from areal_core.types import GenerationHyperparameters
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import SingleTurnWorkflow
from conftest import MakeExecutor
from doors import turn_loop
from executor_tools import WAIT_S, Playing, ReplyingEngine, trajectory_of
from scraping import collected, counters, series_of, value
from threaded_loops import turns_until

GCONFIG = GenerationHyperparameters(max_new_tokens=1)
ITEM = {"input_ids": [1, 2]}
COMPUTE = "they compute, and more threads would not help: to='process'"
PROCESSES = "configure_offload(max_processes=...)"
Run = Callable[[Any], Any]


@pytest.fixture
def run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    """Run a coroutine on a new loop, and close that."""

    def run(act: Any) -> Any:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(act)

    return run


@pytest.fixture(autouse=True)
def one_worker() -> Iterator[None]:
    """Have one worker of each kind on the loops of a test."""
    configure_offload(max_threads=1, max_processes=1)
    yield
    configure_offload()


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """Give what functions wait for that a test offloads; at its end all of them go on."""
    go = threading.Event()
    yield go
    go.set()


def scoring(go: threading.Event) -> Callable[[list[int], list[int], Any], float]:
    """Return a reward function that waits for *go*."""

    def score(prompt: list[int], output: list[int], data: Any) -> float:
        go.wait(WAIT_S)
        return 1.0

    return score


def seen_when(executor: WorkflowExecutor, stages: dict[str, int]) -> Snapshot:
    """Wait until so many rollouts are in these *stages*, and return what is to be seen then."""
    deadline = time.monotonic() + WAIT_S
    while (seen := executor.snapshot()).stages != stages:
        assert time.monotonic() < deadline, seen.stages
        turn_loop(executor.runner)
    return seen


def in_place(stats: tuple[OffloadStats, ...], place: Place) -> OffloadStats:
    return next(one for one in stats if one.place == place)


# -- how many there are ----------------------------------------------------------------------------


def test_as_many_calls_are_made_at_once_as_was_set(run: Run) -> None:
    configure_offload(max_threads=3, max_processes=2)
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(3)

    def meet() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(WAIT_S)
        with lock:
            running -= 1

    async def act() -> set[int]:
        await asyncio.gather(*(offloaded(meet)() for _ in range(9)))
        return set(await asyncio.gather(*(offloaded(jobs.pid, to="process")() for _ in range(20))))

    assert 1 <= len(run(act())) <= 2
    assert most == 3


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"max_threads": 0}, ValueError, "max_threads=0 is below 1; give an integer of at least 1"),
        ({"max_processes": -2}, ValueError, "max_processes=-2 is below 1; give an integer of at least 1"),
        ({"max_processes": 2.0}, TypeError, "max_processes=2.0 is not an int"),
        ({"max_threads": True}, TypeError, "max_threads=True is not an int"),
    ],
    ids=str,
)
@pytest.mark.any_loop
def test_a_number_that_cannot_be_is_refused_and_nothing_is_set(
    run: Run, given: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        configure_offload(**{"max_threads": 7, **given})
    assert says in str(refused.value)
    assert [one.workers for one in run(_counts())] == [1, 1]


async def _counts() -> tuple[OffloadStats, OffloadStats]:
    return stats_of(asyncio.get_running_loop())


@pytest.mark.any_loop
def test_a_loop_keeps_the_workers_it_has_and_says_so(run: Run) -> None:
    async def act() -> None:
        await offloaded(jobs.give)(1)
        configure_offload(max_threads=1, max_processes=1)  # as they are
        with pytest.raises(
            RuntimeError, match="it keeps its workers; configure before the loop's first call"
        ):
            configure_offload(max_threads=5)
        assert [one.workers for one in await _counts()] == [1, 1]

    run(act())
    assert [one.workers for one in run(_counts())] == [1, 1]
    configure_offload(max_threads=5)
    threads, processes = run(_counts())
    assert threads.workers == 5
    assert processes.workers >= 1


# -- what waits ------------------------------------------------------------------------------------


def test_a_reward_that_waits_for_a_worker_is_told_from_one_that_is_computed(
    make_executor: MakeExecutor, go: threading.Event
) -> None:
    executor = make_executor(ReplyingEngine(), consumer_batch_size=8)
    workflow = SingleTurnWorkflow(scoring(go), GCONFIG, reward_in="thread", reward_timeout=None)
    for _ in range(3):
        executor.submit(ITEM, workflow)
    seen = seen_when(executor, {"waiting for its reward": 1, "waiting for a worker thread": 2})
    threads = in_place(seen.offloaded, "thread")
    assert (threads.workers, threads.busy, threads.waiting, threads.calls) == (1, 1, 2, 1)
    later = in_place(executor.snapshot().offloaded, "thread")
    assert later.longest_wait_s > threads.longest_wait_s > 0
    assert in_place(seen.offloaded, "process") == OffloadStats(
        place="process", workers=1, processors=processors()
    )
    go.set()
    assert executor.wait(3, WAIT_S) != []
    threads = in_place(executor.snapshot().offloaded, "thread")
    assert (threads.busy, threads.waiting, threads.longest_wait_s, threads.calls) == (0, 0, 0.0, 3)
    assert threads.waited_s >= 2 * later.longest_wait_s * 0.9


def test_an_explanation_says_how_many_calls_wait_and_what_allows_more(
    make_executor: MakeExecutor, go: threading.Event
) -> None:
    executor = make_executor(ReplyingEngine(), consumer_batch_size=8)
    workflow = SingleTurnWorkflow(scoring(go), GCONFIG, reward_in="thread", reward_timeout=None)
    for _ in range(2):
        executor.submit(ITEM, workflow)
    seen_when(executor, {"waiting for its reward": 1, "waiting for a worker thread": 1})
    found = executor.explain()
    assert Counter(one.stage for one in found.rollouts) == {
        "waiting for its reward": 1,
        "waiting for a worker thread": 1,
    }
    (waiting,) = (one for one in found.rollouts if one.stage == "waiting for a worker thread")
    assert "test_offload_workers.scoring.<locals>.score, which waits its turn for a thread" in waiting.stack
    assert in_place(found.offloaded, "thread").waiting == 1
    (line,) = (one for one in str(found).splitlines() if "busy" in one)
    assert line.startswith("1 of 1 worker thread busy with offloaded functions; 1 call waits for one, the ")
    assert line.endswith(" s; configure_offload(max_threads=...) allows more")
    go.set()
    executor.wait(2, WAIT_S)
    assert "configure_offload" not in str(executor.explain())


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("place", "workers", "computed_s", "of", "says"),
    [
        ("thread", 6, 1.0, 2, "configure_offload(max_threads=...) allows more"),
        ("thread", 6, 0.0, 2, "configure_offload(max_threads=...) allows more"),
        ("thread", 6, 17.0, 2, f"{COMPUTE} lets 2 compute at once"),
        ("thread", 6, 30.0, 2, "all 2 processors are taken: only calls that compute less make it faster"),
        ("thread", 6, 17.0, 1, "the only processor is taken: only calls that compute less make it faster"),
        ("thread", 6, 17.0, None, f"{COMPUTE} gives each a processor"),
        ("process", 1, 0.0, 2, "configure_offload(max_processes=2) has one for each processor"),
        ("process", 2, 0.0, 2, "all 2 processors are taken; what only waits goes to='thread'"),
        ("process", 8, 0.0, 1, "the only processor is taken; what only waits goes to='thread'"),
        ("process", 8, 0.0, None, f"{PROCESSES} allows more, up to the processors there are"),
    ],
    ids=["I/O", "only waits", "computes", "all taken", "one processor", "old threads", "may be more", "full",
         "over", "old"],
)  # fmt: skip
def test_the_advice_tells_what_computes_from_what_waits(
    loop_name: str, place: Place, workers: int, computed_s: float, of: int | None, says: str
) -> None:
    assert place != "loop"
    stats = OffloadStats(
        place=place, workers=workers, busy=workers, waiting=1, took_s=100.0, computed_s=computed_s,
        processors=of,
    )  # fmt: skip
    assert stats.advice() == says
    assert str(stats).endswith(f"; {says}")


def test_it_is_measured_whether_a_thread_computes(run: Run) -> None:
    async def act() -> tuple[OffloadStats, OffloadStats]:
        await offloaded(jobs.after)(0.2, None)
        slept = in_place(await _counts(), "thread")
        await offloaded(jobs.compute)(0.2)
        await offloaded(jobs.compute, to="process")(0.05)
        return slept, in_place(await _counts(), "thread")

    slept, both = run(act())
    assert slept.took_s >= 0.2
    assert slept.computed_s < 0.1
    assert both.computed_s - slept.computed_s >= 0.19
    assert both.took_s - slept.took_s >= 0.19


def test_a_function_of_the_workflows_own_has_stages_too(
    make_executor: MakeExecutor, go: threading.Event
) -> None:
    executor = make_executor(consumer_batch_size=8)
    judge, playing = offloaded(go.wait), threading.Event()

    async def play(number: int) -> Any:
        await judge(WAIT_S)
        playing.set()
        await asyncio.get_running_loop().create_future()

    for number in range(2):
        executor.submit(number, Playing(play))
    seen_when(executor, {"in an offloaded function": 1, "waiting for a worker thread": 1})
    go.set()
    seen_when(executor, {"playing its workflow": 2})
    assert playing.is_set()


def test_a_call_that_waits_for_a_process_is_said_to(make_executor: MakeExecutor, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    executor = make_executor(consumer_batch_size=8)
    stay = offloaded(jobs.tell_and_stay, to="process")

    async def play(path: str) -> Any:
        await stay(path)

    rollouts = [executor.submit(str(fifo), Playing(play)) for _ in range(2)]
    seen = seen_when(executor, {"in an offloaded function": 1, "waiting for a worker process": 1})
    processes = in_place(seen.offloaded, "process")
    assert (processes.workers, processes.busy, processes.waiting) == (1, 1, 1)
    for rollout in reversed(rollouts):  # the one that waits first: it would begin
        executor.cancel(rollout)
    assert [one.status for one in executor.wait_outcomes(2, WAIT_S)] == ["cancelled"] * 2
    processes = in_place(executor.snapshot().offloaded, "process")
    assert (processes.busy, processes.waiting, processes.calls) == (0, 0, 1)


def test_a_filter_that_waits_for_a_worker_is_told_from_one_that_decides(
    make_executor: MakeExecutor, go: threading.Event
) -> None:
    executor = make_executor(consumer_batch_size=8, accept_in="thread")

    async def play(number: int) -> Any:
        return trajectory_of(number)

    for number in range(2):
        executor.submit(number, Playing(play), should_accept_fn=lambda _: go.wait(WAIT_S))
    seen_when(executor, {"waiting for should_accept_fn": 1, "waiting for a worker thread": 1})
    go.set()
    assert None not in executor.wait(2, WAIT_S)


class Stages:
    """Notes the stages of an episode."""

    def __init__(self, record: EpisodeRecord) -> None:
        self.entered_stages: list[str] = []
        record.trace = self

    def entered(self, stage: str, server: str | None) -> None:
        self.entered_stages.append(stage)

    def segment_sent(self, version: int) -> None: ...

    def segment_came(self, tokens: int) -> None: ...


def test_a_call_that_waits_too_long_for_its_caller_leaves_no_trace(run: Run, go: threading.Event) -> None:
    async def act() -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(offloaded(go.wait)(WAIT_S))
        await turns_until(lambda: stats_of(loop)[0].busy == 1)
        _record.current.set(record := EpisodeRecord(stage=_record.PLAYING))
        stages = Stages(record)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await offloaded(go.wait)(WAIT_S)
        assert stages.entered_stages == ["waiting for a worker thread", "playing its workflow"]
        threads = stats_of(loop)[0]
        assert (threads.busy, threads.waiting, threads.calls) == (1, 0, 1)
        go.set()
        await first

    run(act())


def test_a_call_that_need_not_wait_is_in_no_stage_of_waiting(run: Run) -> None:
    async def act() -> None:
        for stage in ("playing its workflow", "waiting for its reward"):
            _record.current.set(record := EpisodeRecord(stage=stage))
            stages = Stages(record)
            await offloaded(jobs.give)(1)
            entered[stage] = stages.entered_stages
            assert record.stage == stage

    entered: dict[str, list[str]] = {}
    run(act())
    assert entered == {
        "playing its workflow": ["in an offloaded function", "playing its workflow"],
        "waiting for its reward": [],
    }


def test_what_outlives_its_rollout_does_not_say_that_it_goes_on(run: Run) -> None:
    async def act() -> EpisodeRecord:
        _record.current.set(record := EpisodeRecord(stage=_record.ENDED))
        await offloaded(jobs.give)(1)
        return record

    assert run(act()).stage == "ended"


# -- figures ---------------------------------------------------------------------------------------


def test_figures_say_how_many_workers_there_are_and_how_many_calls_wait(
    make_executor: MakeExecutor, go: threading.Event
) -> None:
    executor = make_executor(ReplyingEngine(), consumer_batch_size=8)
    collector = PrometheusCollector(executor)
    workflow = SingleTurnWorkflow(scoring(go), GCONFIG, reward_in="thread", reward_timeout=None)
    for _ in range(4):
        executor.submit(ITEM, workflow)
    seen_when(executor, {"waiting for its reward": 1, "waiting for a worker thread": 3})
    seen = series_of(collected(collector))
    assert {name: value(seen, f"areal_offload_{name}", place="thread") for name in ("workers", "busy")} == {
        "workers": 1,
        "busy": 1,
    }
    assert value(seen, "areal_offload_waiting", place="thread") == 3
    assert value(seen, "areal_offload_waiting", place="process") == 0
    assert value(seen, "areal_offload_wait_max_seconds", place="thread") > 0
    assert value(seen, "areal_rollouts_stage", stage="waiting_for_worker") == 3
    assert value(seen, "areal_rollouts_stage", stage="reward") == 1
    go.set()
    executor.wait(4, WAIT_S)
    before = counters(collected(collector))
    assert value(before, "areal_offload_calls_total", place="thread") == 4
    assert value(before, "areal_offload_waited_seconds_total", place="thread") > 0
    executor.destroy()  # and the loop with it, which counted
    left = counters(collected(collector))
    assert {key: left[key] for key in before if "offload" in key[0]}.items() <= before.items()
    executor.initialize()
    executor.submit(ITEM, workflow)
    executor.wait(1, WAIT_S)
    after = counters(collected(collector))
    assert value(after, "areal_offload_calls_total", place="thread") == 5
