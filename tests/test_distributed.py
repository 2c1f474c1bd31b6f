"""Rollouts that are played by workers on Ray: real ones, in processes of their own."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from areal_core._distributed import pace
from areal_core.config import InferenceEngineConfig
from areal_core.distributed import DistributedWorkflowExecutor, worker_engine
from areal_core.errors import RemoteError, RunnerDiedError, RunnerStoppedError, WorkerLostError
from executor_tools import WAIT_S, TellingEngine, statuses_of, value_of
from far_rollouts import (
    Acting,
    ApiError,
    DeafEngine,
    FarEngine,
    Leaving,
    Mute,
    MuteThere,
    OddError,
    StayingEngine,
    StayingThere,
    Unsendable,
    asks,
    blocking_engine,
    dies,
    dies_at_work,
    fails,
    fails_if_first,
    no_engine,
    noted_engine,
    odd_engine,
    pid,
    says_so_and_stays,
    state,
    stays_unless_first,
    unsendable,
)
from logged import LogLines

ray = pytest.importorskip("ray")
crew = pytest.importorskip("areal_core._distributed.crew")

pytestmark = [pytest.mark.any_loop, pytest.mark.timeout(120)]

LONG_S = 60.0


class MakeFar(Protocol):
    """The type of fixture ``make_far``."""

    def __call__(self, workers: int = 1, slots: int = 8, **options: Any) -> DistributedWorkflowExecutor: ...


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """Start Ray, whose workers find the tests' modules."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def engine() -> TellingEngine:
    return TellingEngine()


@pytest.fixture
def make_far(_ray: None, engine: TellingEngine, loop_factory: Callable[[], Any]) -> Iterator[MakeFar]:
    """Make initialized executors with workers, and destroy them all."""
    with contextlib.ExitStack() as made:

        def make(workers: int = 1, slots: int = 8, **options: Any) -> DistributedWorkflowExecutor:
            given = {"consumer_batch_size": 512, "on_stale": "keep", **options.pop("config", {})}
            executor = DistributedWorkflowExecutor(
                InferenceEngineConfig(**given),
                engine,
                options.pop("make_engine", FarEngine),
                workers=workers,
                slots_per_worker=slots,
                loop_factory=loop_factory,
                **{"ray_options": {"num_cpus": 0}, **options},
            )
            made.callback(executor.destroy, timeout=10.0)
            executor.initialize()
            return executor

        yield make


def test_what_workers_play_comes_back_with_its_outcome(make_far: MakeFar) -> None:
    executor = make_far(2)
    acts: dict[int, Any] = {
        0: ("answer", 5),
        1: ("reject", None),
        2: ("fail", ValueError("no")),
        3: ("fail", None),
    }
    for task_id, act in acts.items():
        executor.submit(act, Acting(), task_id=task_id)

    outcomes = {outcome.task_id: outcome for outcome in executor.wait_outcomes(4, timeout=WAIT_S)}

    assert statuses_of(outcomes.values()) == {0: "accepted", 1: "rejected", 2: "failed", 3: "failed"}
    assert value_of(outcomes[0].trajectory) == 5
    assert outcomes[1].reason == "the workflow returned None"
    assert isinstance(outcomes[2].error, ValueError)
    assert str(outcomes[2].error) == "no"
    assert "far_rollouts.py" in outcomes[2].error.__notes__[0]
    assert isinstance(outcomes[3].error, RemoteError)
    assert "OddError: odd 1 2" in str(outcomes[3].error)
    assert executor.ledger.accepted == executor.ledger.rejected == 1


def test_arrays_come_back_as_they_were_and_read_only(make_far: MakeFar) -> None:
    executor = make_far()
    executor.submit(("answer", 3), Acting())

    (trajectory,) = executor.wait(1, timeout=WAIT_S)

    assert trajectory is not None
    assert trajectory["input_ids"].dtype == np.int64
    assert trajectory["attention_mask"].dtype == trajectory["versions"].dtype == np.int32
    assert trajectory["input_ids"].tolist() == [[3]]
    assert not trajectory["input_ids"].flags.writeable


def test_a_group_is_played_and_joined_by_one_worker(make_far: MakeFar) -> None:
    executor = make_far(2, slots=2)
    for number in range(6):
        executor.submit(("member", number), Acting(), group_size=4, task_id=number)

    outcomes = executor.wait_outcomes(6, timeout=WAIT_S)

    joined = {outcome.task_id: outcome.trajectory for outcome in outcomes}
    for number in range(6):
        trajectory = joined[number]
        assert trajectory is not None
        assert sorted(trajectory["input_ids"][:, 0]) == [1000 * number + index for index in range(4)]
    assert [worker.running for worker in executor.workers()] == [0, 0]


def test_no_rollout_is_lost_or_doubled_when_workers_are_killed(make_far: MakeFar) -> None:
    executor = make_far(2, slots=16)
    count, kills = 300, 4
    for number in range(count):
        executor.submit(("sleep", 0.05), Acting(), task_id=number)

    for _ in range(kills):
        ended = executor.ledger.finished
        _wait_until(lambda ended=ended: executor.ledger.finished > ended)  # type: ignore[misc]
        os.kill(_pids(executor)[0], signal.SIGKILL)
    outcomes = executor.wait_outcomes(count, timeout=LONG_S)

    assert statuses_of(outcomes) == dict.fromkeys(range(count), "accepted")
    assert executor.ledger.lost == executor.dispatch_stats().lost > 0
    assert executor.ledger.submitted == executor.ledger.collected == count
    _wait_until(lambda: len(executor.workers()) == 2)


def test_a_rollout_runs_again_elsewhere_when_its_worker_dies(make_far: MakeFar, tmp_path: Path) -> None:
    executor = make_far()
    executor.submit(("die_once", str(tmp_path / "was here")), Acting())

    assert value_of(executor.wait(1, timeout=LONG_S)[0]) == 7
    assert executor.ledger.lost == 1


def test_a_rollout_that_kills_each_of_its_workers_fails_in_the_end(make_far: MakeFar) -> None:
    executor = make_far()
    executor.submit(("die", None), Acting())

    (outcome,) = executor.wait_outcomes(1, timeout=LONG_S)

    assert outcome.status == "failed"
    assert isinstance(outcome.error, WorkerLostError)
    assert executor.ledger.lost == 3


def test_one_that_kills_its_worker_takes_no_other_along_in_the_end(make_far: MakeFar) -> None:
    executor = make_far(2, slots=8)
    executor.pause()
    innocents = [executor.submit(("sleep", 1.0), Acting()) for _ in range(15)]
    killer = executor.submit(("die_after", 0.3), Acting())
    executor.resume()

    outcomes = executor.wait_outcomes(16, timeout=LONG_S)

    assert statuses_of(outcomes) == {**dict.fromkeys(innocents, "accepted"), killer: "failed"}
    assert executor.dispatch_stats().died == 4


def test_how_often_a_rollout_may_be_lost_is_for_the_caller_to_say(make_far: MakeFar) -> None:
    executor = make_far(max_losses=0)
    executor.submit(("die", None), Acting())

    (outcome,) = executor.wait_outcomes(1, timeout=LONG_S)

    assert isinstance(outcome.error, WorkerLostError)
    assert executor.dispatch_stats().died == 1


def test_a_worker_whose_loop_hangs_is_killed_and_what_it_had_runs_elsewhere(
    make_far: MakeFar, tmp_path: Path
) -> None:
    executor = make_far(hang_s=2.0, drain_s=1.0)
    executor.submit(("block_once", str(tmp_path / "was here")), Acting())

    assert value_of(executor.wait(1, timeout=LONG_S)[0]) == 8
    assert executor.ledger.lost == 1


def test_a_worker_whose_engine_does_not_take_the_version_is_killed_as_if_it_hung(
    make_far: MakeFar, engine: TellingEngine, tmp_path: Path, log_lines: LogLines
) -> None:
    deaf = functools.partial(DeafEngine, str(tmp_path / "was here"))
    executor = make_far(make_engine=deaf, hang_s=2.0, drain_s=1.0, lease_s=60.0)
    engine.set_version(1)
    executor.submit(("answer", 4), Acting())

    (trajectory,) = executor.wait(1, timeout=LONG_S)

    assert trajectory is not None and value_of(trajectory) == 4
    assert trajectory["versions"].tolist() == [[1]]
    assert (
        "a call of its engine, or reading what it was given did not go on for"
        in log_lines.wait_for("worker_died worker=1").message
    )


def test_what_waits_for_an_engine_that_does_not_take_the_version_goes_to_others_and_is_not_lost(
    make_far: MakeFar, engine: TellingEngine, tmp_path: Path
) -> None:
    deaf = functools.partial(DeafEngine, str(tmp_path / "was here"))
    executor = make_far(2, slots=4, make_engine=deaf, hang_s=2.0, drain_s=3600.0, lease_s=60.0)
    engine.set_version(1)
    for value in range(8):
        executor.submit(("answer", value), Acting())

    trajectories = executor.wait(8, timeout=LONG_S)

    assert {value_of(one) for one in trajectories} == set(range(8))
    assert executor.ledger.lost == 0 and executor.dispatch_stats().died == 0


def test_what_waits_for_an_engine_that_does_not_take_the_version_is_cancelled_at_once(
    make_far: MakeFar, engine: TellingEngine, tmp_path: Path
) -> None:
    executor = make_far(make_engine=functools.partial(DeafEngine, str(tmp_path / "was here")))
    engine.set_version(1)
    rollout = executor.submit(("answer", 1), Acting())
    _wait_until(lambda: executor.workers()[0].running == 1 and executor.workers()[0].stalled_s > 0)

    assert executor.cancel(rollout)

    assert statuses_of(executor.wait_outcomes(1, timeout=WAIT_S)) == {rollout: "cancelled"}


def test_workers_know_the_version(make_far: MakeFar, engine: TellingEngine) -> None:
    executor = make_far(2)
    engine.set_version(3)
    _wait_until(lambda: executor.run_everywhere(state) == [(3, False)] * 2)
    executor.submit(("answer", 1), Acting())

    (trajectory,) = executor.wait(1, timeout=WAIT_S)

    assert trajectory is not None
    assert trajectory["versions"].tolist() == [[3]]


def test_in_a_pause_a_worker_begins_nothing_of_what_it_has(
    make_far: MakeFar, engine: TellingEngine, tmp_path: Path
) -> None:
    executor, go = make_far(slots=1), tmp_path / "go"
    executor.submit(("wait_for", str(go)), Acting(), group_size=4)
    _wait_until(Path(f"{go}.begun").exists)
    assert executor.workers()[0].running == 4
    executor.pause()
    engine.set_version(1)  # is sent later, so what it knows then it has been told
    _wait_until(lambda: executor.run_everywhere(state) == [(1, False)])

    go.touch()

    _wait_until(lambda: executor.workers()[0].ended == 1)
    _wait_until(lambda: executor.workers()[0].silent_s > 0.5)
    _wait_until(lambda: executor.workers()[0].silent_s < 0.5)
    assert executor.workers()[0].ended == 1, "also after a further sign of life"
    executor.resume()
    assert len(executor.wait(1, timeout=WAIT_S)) == 1


def test_a_worker_that_joins_later_knows_the_version_too(make_far: MakeFar, engine: TellingEngine) -> None:
    executor = make_far()
    engine.set_version(5)

    executor.add_workers(1)

    _wait_until(lambda: executor.run_everywhere(state) == [(5, False)] * 2)


def test_workers_come_and_go_while_rollouts_run(make_far: MakeFar) -> None:
    executor = make_far(1, slots=4)
    executor.add_workers(2)
    _wait_until(lambda: len(executor.workers()) == 3)
    count = 400
    for number in range(count):
        executor.submit(("sleep", 0.05), Acting(), task_id=number)
    _wait_until(lambda: all(worker.ended for worker in executor.workers()))

    first = executor.remove_workers(2)

    outcomes = executor.wait_outcomes(count, timeout=LONG_S)
    assert statuses_of(outcomes) == dict.fromkeys(range(count), "accepted")
    assert executor.ledger.lost == 0
    _wait_until(lambda: len(executor.workers()) == 1)
    assert executor.workers()[0].number not in first
    assert len({value_of(outcome.trajectory) for outcome in outcomes}) == 3


def test_the_last_worker_is_not_removed(make_far: MakeFar) -> None:
    executor = make_far(2)
    for count in (2, 3):
        with pytest.raises(
            ValueError, match=rf"^remove_workers\({count}\) would leave none of the 2 there are"
        ):
            executor.remove_workers(count)

    executor.remove_workers(1)

    with pytest.raises(ValueError, match=r"of the 1 there .* add_workers\(\) first, or destroy\(\)$"):
        executor.remove_workers(1)
    executor.submit(("answer", 1), Acting())
    assert value_of(executor.wait(1, timeout=WAIT_S)[0]) == 1


def test_a_removed_worker_finishes_what_it_has_begun(make_far: MakeFar, tmp_path: Path) -> None:
    executor = make_far(2, slots=1)
    go = tmp_path / "go"
    for _ in range(2):
        executor.submit(("wait_for", str(go)), Acting())
    _wait_until(lambda: [worker.running for worker in executor.workers()] == [1, 1])

    (number,) = executor.remove_workers()

    assert [worker.number for worker in executor.workers() if worker.is_draining] == [number]
    executor.add_workers()
    _wait_until(lambda: len(executor.workers()) == 3)  # nobody waits until it has gone
    go.touch()
    assert [value_of(one) for one in executor.wait(2, timeout=WAIT_S)] == [9, 9]
    _wait_until(lambda: number not in [worker.number for worker in executor.workers()])
    assert len(executor.workers()) == 2 and executor.dispatch_stats().starting == 0


def test_a_cancelled_rollout_ends_where_it_is_played(make_far: MakeFar) -> None:
    executor = make_far(1, slots=1)
    running = executor.submit(("sleep", 3600), Acting())
    waiting = executor.submit(("sleep", 3600), Acting())
    _wait_until(lambda: executor.workers()[0].running > 0)

    assert executor.cancel(running)
    assert executor.cancel(waiting)

    assert statuses_of(executor.wait_outcomes(2, timeout=WAIT_S)) == {
        running: "cancelled",
        waiting: "cancelled",
    }
    executor.submit(("answer", 1), Acting())
    assert value_of(executor.wait(1, timeout=WAIT_S)[0]) == 1


def test_an_episode_has_its_deadline_at_its_worker(make_far: MakeFar) -> None:
    executor = make_far(config={"episode_timeout": 0.2})
    executor.submit(("sleep", 3600), Acting())

    (outcome,) = executor.wait_outcomes(1, timeout=WAIT_S)

    assert outcome.status == "timed_out"
    assert isinstance(outcome.error, TimeoutError)


def test_what_cannot_be_sent_or_read_fails_alone_and_says_so(make_far: MakeFar) -> None:
    executor = make_far()
    bad = executor.submit(1, Unsendable())
    worse = executor.submit(("answer", threading.Lock()), Acting())
    unreadable = executor.submit(("fail", OddError(1, 2)), Acting())
    hostile = [executor.submit(("answer", thing()), Acting()) for thing in (Mute, Leaving, MuteThere)]
    good = executor.submit(("answer", 1), Acting())

    outcomes = {outcome.task_id: outcome for outcome in executor.wait_outcomes(7, timeout=WAIT_S)}

    failed = dict.fromkeys((bad, worse, unreadable, *hostile), "failed")
    assert statuses_of(outcomes.values()) == {**failed, good: "accepted"}
    assert "cannot be pickled" in str(outcomes[bad].error)
    assert "a worker cannot read what it was to play: TypeError" in str(outcomes[unreadable].error)
    said = [str(outcomes[one].error) for one in hostile]
    assert "(far_rollouts.MuteError: <exception str() failed>)" in said[0] and "(SystemExit: 3)" in said[1]
    assert "cannot read what it was to play: far_rollouts.MuteError: <exc" in said[2]
    executor.submit(("answer", 2), Acting())
    assert value_of(executor.wait(1, timeout=WAIT_S)[0]) == 2


def test_an_error_or_a_name_that_is_odd_fails_its_rollout_alone_and_ends_no_worker(make_far: MakeFar) -> None:
    executor = make_far(2, config={"check_trajectory_format": False})
    before = set(_pids(executor))
    odd = [executor.submit(("ask", "busy"), Acting()), executor.submit(("name", "z"), Acting())]
    good = [executor.submit(("answer", 1), Acting()) for _ in range(10)]

    outcomes = {outcome.task_id: outcome for outcome in executor.wait_outcomes(12, timeout=WAIT_S)}

    assert statuses_of(outcomes.values()) == {
        **dict.fromkeys(odd, "failed"),
        **dict.fromkeys(good, "accepted"),
    }
    assert isinstance(outcomes[odd[0]].error, ApiError) and str(outcomes[odd[0]].error) == "busy"
    assert "the workflow returned 'z', which cannot be sent" in str(outcomes[odd[1]].error)
    with pytest.raises(ApiError) as raised:  # no match: that asks for notes
        executor.run_everywhere(asks, "busier")
    assert str(raised.value) == "busier"
    assert set(_pids(executor)) == before and executor.dispatch_stats().died == 0


def test_an_item_that_does_not_return_from_being_unpickled_is_lost_in_the_end_and_it_alone(
    make_far: MakeFar, log_lines: LogLines
) -> None:
    executor = make_far(slots=2, hang_s=0.5, drain_s=1.0, max_losses=1)
    executor.pause()
    good = [executor.submit(("answer", number), Acting()) for number in range(3)]
    bad = executor.submit(("answer", StayingThere()), Acting())
    good += [executor.submit(("answer", number), Acting()) for number in range(3)]
    executor.resume()

    outcomes = {outcome.task_id: outcome for outcome in executor.wait_outcomes(7, timeout=LONG_S)}

    assert statuses_of(outcomes.values()) == {**dict.fromkeys(good, "accepted"), bad: "failed"}
    assert isinstance(outcomes[bad].error, WorkerLostError)
    assert executor.dispatch_stats().died == 2
    assert "did not go on for" in log_lines.wait_for("worker_died worker=1").message


def test_a_call_runs_on_every_worker_and_its_error_is_raised_here(make_far: MakeFar) -> None:
    executor = make_far(2)

    pids = executor.run_everywhere(pid)

    assert len(set(pids) | {os.getpid()}) == 3
    with pytest.raises(ValueError, match=r"^oh") as raised:
        executor.run_everywhere(fails, "oh")
    assert "far_rollouts.py" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match=r"^this process is no worker"):
        worker_engine()


def test_batches_come_from_workers_in_one_order_within_one_bound(
    make_far: MakeFar, engine: TellingEngine
) -> None:
    executor = make_far(
        2, slots=4, config={"consumer_batch_size": 8, "max_head_offpolicyness": 1, "on_stale": "mask"}
    )
    data = [[("answer", number) for number in range(8)]]

    for version in range(5):
        batch = executor.prepare_batch(data, Acting())
        assert len(batch) == 8
        for trajectory in batch:
            assert (version - trajectory["versions"][trajectory["loss_mask"] > 0] <= 1).all()
        engine.set_version(version + 1)

    assert executor.report().staleness_max <= 1


@pytest.mark.parametrize("call", [dies_at_work, unsendable])
def test_a_call_that_brings_no_answer_is_told_in_our_words(make_far: MakeFar, call: Any) -> None:
    executor = make_far()
    expected = WorkerLostError if call is dies_at_work else RemoteError

    with pytest.raises(expected) as raised:
        executor.run_everywhere(call, timeout=LONG_S)

    said = "worker 1 was lost while it ran" if call is dies_at_work else "odd 1 2"
    assert said in str(raised.value)


def test_a_call_has_a_limit_of_time_that_names_who_did_not_answer_and_it_ends_there(
    make_far: MakeFar, tmp_path: Path
) -> None:
    executor = make_far(2)
    for number in range(9):  # a worker has room for eight calls at once
        first = str(tmp_path / str(number))
        with pytest.raises(
            TimeoutError, match=r"^worker [12] did not answer .* within 0\.5 s; give it longer"
        ):
            executor.run_everywhere(stays_unless_first, first, timeout=0.5)

    assert len(executor.run_everywhere(pid, timeout=LONG_S)) == 2
    with pytest.raises(ValueError, match="timeout=-1"):
        executor.run_everywhere(pid, timeout=-1)


def test_a_call_that_fails_at_one_worker_ends_at_the_others(make_far: MakeFar, tmp_path: Path) -> None:
    executor = make_far(2)
    for number in range(20):  # a worker has room for eight calls at once
        with pytest.raises(ValueError, match="the first"):
            executor.run_everywhere(fails_if_first, str(tmp_path / str(number)))

    assert len(executor.run_everywhere(pid, timeout=LONG_S)) == 2


def test_a_call_at_a_worker_that_is_removed_says_so(make_far: MakeFar, tmp_path: Path) -> None:
    executor = make_far(2)
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(executor.run_everywhere, says_so_and_stays, str(tmp_path / "runs"))
        _wait_until((tmp_path / "runs").exists)

        (number,) = executor.remove_workers()

        with pytest.raises(WorkerLostError, match=rf"^worker {number} was lost .*: it was removed$"):
            calling.result(timeout=WAIT_S)


def test_where_workers_are_many_what_has_ended_waits_for_more_at_the_worker(
    make_far: MakeFar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pace, "_EACH_S", 1.0)  # as if they were 250
    executor = make_far()
    executor.submit(("wait_for", str(tmp_path / "door")), Acting(), task_id=0)
    began = time.monotonic()
    executor.submit(("answer", 1), Acting(), task_id=1)
    executor.wait_for_task(1, timeout=WAIT_S)
    assert time.monotonic() - began >= 1.0
    (tmp_path / "door").touch()
    executor.wait_for_task(0, timeout=WAIT_S)


def test_a_call_where_no_worker_is_there_says_so(make_far: MakeFar, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_far()
    monkeypatch.setattr(crew, "_RETRY_S", (3600.0, 3600.0))
    os.kill(_pids(executor)[0], signal.SIGKILL)
    _wait_until(lambda: not executor.workers())

    with pytest.raises(WorkerLostError, match=r"^no worker is there to run .*, 1 are starting; wait until"):
        executor.run_everywhere(pid)
    with pytest.raises(TypeError, match=r"^expected an async function"):
        executor.run_everywhere(None)  # type: ignore[arg-type]


def test_workers_that_do_not_start_are_counted_told_of_and_given_up_first(
    make_far: MakeFar, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_LOOK_S", 0.05)
    executor = make_far(ray_options={"num_cpus": 8})
    monkeypatch.setattr(crew, "_PATIENCE_S", 0.1)
    assert executor.dispatch_stats().starting == 0

    executor.add_workers(2)

    _wait_until(lambda: executor.dispatch_stats().starting == 2)
    line = log_lines.wait_for("workers_not_started")
    assert line.level == "warning"
    assert re.search(r"workers=\[2(, 3)?\] waited_s=\S+ needs=num_cpus=8$", line.message)
    executor.submit(("sleep", 0.5), Acting())
    executor.wait(1, timeout=WAIT_S)
    assert sum("workers_not_started" in message for message in log_lines.of("warning")) == 1
    assert executor.remove_workers(1) == [3] and executor.dispatch_stats().starting == 1
    assert executor.remove_workers(1) == [2] and executor.dispatch_stats().starting == 0
    assert [worker.number for worker in executor.workers()] == [1]
    executor.submit(("answer", 1), Acting())
    assert value_of(executor.wait(1, timeout=WAIT_S)[0]) == 1


def test_first_workers_that_do_not_start_in_time_are_told_by_initialize(
    make_far: MakeFar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core.distributed._START_S", 6.0)
    monkeypatch.setattr("areal_core.distributed._CLOSE_S", LONG_S)
    began = time.monotonic()

    with pytest.raises(
        TimeoutError, match=r"worker [12] did not start within 6 s: .* room for num_cpus=8"
    ) as raised:
        make_far(2, ray_options={"num_cpus": 8})

    assert isinstance(raised.value.__cause__, ray.exceptions.GetTimeoutError)
    assert time.monotonic() - began < LONG_S, "nobody waits for what has not started to stop"


def test_a_first_worker_that_dies_as_it_starts_is_told_by_initialize(make_far: MakeFar) -> None:
    with pytest.raises(
        RuntimeError, match=r"^worker 1 did not start: after .* s its process ended"
    ) as raised:
        make_far(make_engine=dies)

    assert isinstance(raised.value.__cause__, ray.exceptions.RayActorError)


def test_one_that_dies_soon_after_its_start_is_replaced_after_a_pause_that_grows(
    make_far: MakeFar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_RETRY_S", (2.0, 60.0))
    starts = tmp_path / "starts"
    executor = make_far(make_engine=functools.partial(noted_engine, str(starts)))
    died_at = []

    for number in (1, 2):
        (process,) = _pids(executor)
        died_at.append(time.monotonic())
        os.kill(process, signal.SIGKILL)
        _wait_until(lambda number=number: [one.number for one in executor.workers()] == [number + 1])  # type: ignore[misc]

    _, second, third = map(float, starts.read_text().split())
    assert second - died_at[0] >= 2.0 and third - died_at[1] >= 4.0


def test_one_that_has_brought_something_is_replaced_at_once(
    make_far: MakeFar, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_far()
    executor.submit(("answer", 1), Acting())
    executor.wait(1, timeout=WAIT_S)
    monkeypatch.setattr(crew, "_RETRY_S", (3600.0, 3600.0))

    os.kill(_pids(executor)[0], signal.SIGKILL)

    _wait_until(lambda: [worker.number for worker in executor.workers()] == [2])


def test_an_engine_that_cannot_be_made_is_told_by_initialize(make_far: MakeFar) -> None:
    with pytest.raises(LookupError, match="there are no servers today"):
        make_far(make_engine=no_engine)


def test_an_engine_is_made_where_no_loop_runs(make_far: MakeFar) -> None:
    assert len(_pids(make_far(make_engine=blocking_engine))) == 1


def test_an_engines_error_that_cannot_be_sent_is_told_by_its_text(make_far: MakeFar) -> None:
    with pytest.raises(RemoteError, match=r"^far_rollouts\.OddError: odd 1 2\n") as raised:
        make_far(make_engine=odd_engine)
    assert "in odd_engine" in raised.value.__notes__[0]


def test_what_ray_says_of_a_worker_is_one_line_in_words() -> None:
    cause = RuntimeError("the loop has ended\nand more")
    error = ray.exceptions.RayTaskError("take", "\x1b[36mray::Worker.take()\x1b[39m", cause)
    assert crew.in_words(error) == "RuntimeError: the loop has ended"
    assert crew.in_words(ray.exceptions.RaySystemError("\x1b[36mno\x1b[39m way")).endswith(": no way")


def test_a_start_after_the_runner_died_ends_the_workers_of_before(make_far: MakeFar) -> None:
    executor = make_far(ray_options={"num_cpus": 8})  # there is no room for those of before
    (before,) = _pids(executor)
    executor.runner._life.thread.post(_divide_by_zero)  # type: ignore[union-attr]
    with pytest.raises(RunnerDiedError):
        executor.wait(1, timeout=WAIT_S)

    executor.initialize()

    _wait_until(lambda: not _is_there(before))
    executor.submit(("answer", 1), Acting())
    assert value_of(executor.wait(1, timeout=WAIT_S)[0]) == 1


def test_a_second_start_is_refused_and_costs_no_worker(make_far: MakeFar) -> None:
    executor = make_far()
    before = _pids(executor)

    with pytest.raises(RuntimeError):
        executor.initialize()

    assert _pids(executor) == before


def test_after_destroy_no_worker_is_told_of(make_far: MakeFar) -> None:
    executor = make_far()
    executor.destroy(timeout=10.0)

    with pytest.raises(RunnerStoppedError):
        executor.workers()


def test_what_workers_had_ends_as_cancelled_and_their_processes_end(make_far: MakeFar) -> None:
    executor = make_far(2)
    pids = _pids(executor)
    ids = [executor.submit(("sleep", 3600), Acting()) for _ in range(10)]

    executor.destroy(timeout=10.0)

    assert statuses_of(executor.wait_outcomes(10, timeout=0)) == dict.fromkeys(ids, "cancelled")
    _wait_until(lambda: not any(map(_is_there, pids)))


def test_whoever_calls_destroy_second_returns_when_all_is_over_too(make_far: MakeFar, tmp_path: Path) -> None:
    executor = make_far(make_engine=functools.partial(StayingEngine, str(tmp_path)))
    (process,) = _pids(executor)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(executor.destroy)
        _wait_until((tmp_path / "asked").exists)
        second = pool.submit(executor.destroy)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)

        (tmp_path / "go").touch()

        assert first.result(timeout=WAIT_S) is second.result(timeout=WAIT_S) is None
    _wait_until(lambda: not _is_there(process))


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("hang_s", 0, "hang_s=0 leaves no time; give seconds"),
        ("hang_s", -1.5, "hang_s=-1.5 is out of range; give a finite number in 0..inf"),
        ("hang_s", math.nan, "hang_s=nan is out of range"),
        ("drain_s", -1, "drain_s=-1.0 is out of range; give a finite number in 0..inf"),
        ("drain_s", math.nan, "drain_s=nan is out of range"),
        ("lease_s", 4, "lease_s=4.0 is out of range; give a finite number in 5..inf"),
        ("max_losses", -1, "max_losses=-1 is below 0; give an integer of at least 0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    engine: TellingEngine, setting: str, value: float, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        DistributedWorkflowExecutor(InferenceEngineConfig(), engine, FarEngine, **{setting: value})  # type: ignore[arg-type]


def test_it_starts_again_after_destroy(make_far: MakeFar) -> None:
    executor = make_far()
    for value in range(2):
        executor.submit(("answer", value), Acting())
        assert value_of(executor.wait(1, timeout=WAIT_S)[0]) == value
        executor.destroy()
        if not value:
            executor.initialize()


def _divide_by_zero() -> None:
    _ = 1 / 0


def _pids(executor: DistributedWorkflowExecutor) -> list[int]:
    """Return the workers' processes; wait until there is one, and none dies while it is asked."""
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        with contextlib.suppress(WorkerLostError):
            found = executor.run_everywhere(pid)
            if found:
                return found
    raise AssertionError("no worker came")


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what another process brings about: nothing here is told of it."""
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


TRAINER = """
    import json, logging, os, signal, sys
    import ray
    from areal_core.config import InferenceEngineConfig
    from areal_core.distributed import DistributedWorkflowExecutor
    from executor_tools import TellingEngine, value_of
    from far_rollouts import Acting, FarEngine

    if __name__ == "__main__":
        directory, step, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        ray.init(num_cpus=4, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        config = InferenceEngineConfig(
            consumer_batch_size=4, max_head_offpolicyness=2, on_stale="keep", journal_dir=directory
        )
        engine = TellingEngine(max(step, 0))
        executor = DistributedWorkflowExecutor(
            config, engine, FarEngine, workers=2, slots_per_worker=4, ray_options={"num_cpus": 0},
            resume_from=None if step < 0 else step,
        )
        executor.initialize()
        values = [range(4 * place, 4 * place + 4) for place in range(8)]
        items = iter([[("answer", value) for value in four] for four in values])
        for version in range(steps):
            batch = executor.prepare_batch(items, Acting())
            print(json.dumps(sorted(map(value_of, batch))), flush=True)
            engine.set_version(engine.version + 1)
            if version < 2:
                executor.commit(max(step, -1) + 1 + version)
        if sys.argv[4] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_trainer_that_was_killed_goes_on_from_its_journal(run_script: Any, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")

    def train(step: int, steps: int, how: str) -> list[int]:
        ended = run_script(
            TRAINER, journal, str(step), str(steps), how, flags=(), env=_environment(), timeout=90.0
        )
        assert ended.returncode == (-signal.SIGKILL if how == "kill" else 0), ended.stderr
        return [value for line in ended.stdout.splitlines() for value in json.loads(line)]

    first = train(-1, 3, "kill")  # commits two batches of the three
    second = train(1, 6, "end")

    assert sorted(first[:8] + second) == list(range(32))


def test_a_program_that_ends_without_destroy_ends(run_script: Any, tmp_path: Path) -> None:
    script = TRAINER.replace("executor.initialize()", "executor.initialize(); sys.exit(7)")

    ended = run_script(script, str(tmp_path), "-1", "1", "end", flags=(), env=_environment(), timeout=60.0)

    assert ended.returncode == 7
    assert "Traceback" not in ended.stderr


FAILING = """
    import ray
    from areal_core.config import InferenceEngineConfig
    from areal_core.distributed import DistributedWorkflowExecutor
    from executor_tools import TellingEngine

    if __name__ == "__main__":
        engine = TellingEngine("no version")
        executor = DistributedWorkflowExecutor(InferenceEngineConfig(), engine, TellingEngine, workers=1)
        try:
            executor.initialize()
        except TypeError as error:
            print(error, ray.is_initialized())
"""


def test_a_ray_that_was_started_here_ends_with_a_failed_start(run_script: Any) -> None:
    ended = run_script(FAILING, flags=(), env=_environment(), timeout=60.0)

    assert "the version of the provider" in ended.stdout
    assert ended.stdout.split()[-1] == "False"


SHARED = """
    import ray
    from areal_core.config import InferenceEngineConfig
    from areal_core.distributed import DistributedWorkflowExecutor
    from executor_tools import TellingEngine, value_of
    from far_rollouts import Acting, FarEngine

    def start():
        executor = DistributedWorkflowExecutor(
            InferenceEngineConfig(), TellingEngine(), FarEngine, workers=1, ray_options={"num_cpus": 0}
        )
        executor.initialize()
        return executor

    if __name__ == "__main__":
        first, second = start(), start()
        first.destroy()
        second.submit(("answer", 7), Acting())
        print(value_of(second.wait(1, timeout=30)[0]), second.dispatch_stats().died)
        second.destroy()
        print(ray.is_initialized())
        third = start()
        ray.shutdown()  # under its feet
        while third.workers():
            pass
        try:
            third.run_everywhere(print)
        except RuntimeError as error:
            print(type(error).__name__)
        third.destroy()
        print(ray.is_initialized())
        fourth = start()
        ray.shutdown()
        ray.init(include_dashboard=False, log_to_driver=False)  # another, which is the program's own
        fourth.destroy()
        print(ray.is_initialized())
"""


@pytest.mark.timeout(180)
def test_a_ray_of_several_executors_ends_with_the_last_and_none_is_started_in_its_place(
    run_script: Any,
) -> None:
    ended = run_script(SHARED, flags=(), env=_environment(), timeout=150.0)

    assert ended.stdout.splitlines() == ["7 0", "False", "WorkerLostError", "False", "True"], ended.stderr


def _environment() -> dict[str, str]:
    """Return that in which a program, and its workers, find the library and the tests' modules."""
    import areal_core

    paths = str(Path(__file__).parent), str(Path(areal_core.__file__).parent.parent)
    return {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}
