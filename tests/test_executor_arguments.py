"""What an executor is given, and what it refuses at once."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from areal_core.config import InferenceEngineConfig
from areal_core.errors import RunnerStoppedError
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from executor_tools import (
    WAIT_S,
    Answering,
    Engine,
    Lists,
    accept_even,
    answering,
    counts,
    values_of,
)


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("workflow", "kwargs", "value"),
    [
        (answering, None, 1),
        (Answering, None, 1),
        (Answering, {"add": 10}, 11),
        ("executor_tools:Answering", {"add": 10}, 11),
        ("executor_tools.Answering", None, 1),
        ("executor_tools:answering", None, 1),
    ],
)
def test_a_workflow_is_an_instance_a_class_or_an_import_path_of_either(
    make_executor: MakeExecutor, workflow: Any, kwargs: Any, value: int
) -> None:
    executor = make_executor()
    executor.submit(1, workflow, kwargs)
    assert values_of(executor.wait(1, WAIT_S)) == [value]


@pytest.mark.any_loop
def test_what_differs_from_the_last_time_is_not_taken_for_it(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    for workflow, arguments in (
        (answering, {}),
        (answering, {"should_accept_fn": accept_even}),
        (answering, {}),
        (Answering(5), {}),
        (answering, {"group_size": 2}),
        (answering, {"is_eval": True}),
        (Answering, {"workflow_kwargs": {"add": 10}}),
        (Answering, {}),
        ("executor_tools:Answering", {"should_accept_fn": "executor_tools:accept_even"}),
    ):
        executor.submit(1, workflow, **arguments)
    assert executor.wait_outcomes(1, WAIT_S, is_eval=True)[0].is_eval
    outcomes = sorted(executor.wait_outcomes(8, WAIT_S), key=lambda one: one.task_id)
    assert [one.status for one in outcomes] == ["accepted", "rejected", *["accepted"] * 5, "rejected"]
    brought = [one.trajectory["input_ids"].tolist() for one in outcomes if one.trajectory]
    assert brought == [[[1]], [[1]], [[6]], [[1], [1]], [[11]], [[1]]]


@pytest.mark.any_loop
def test_a_class_is_made_anew_each_time_and_an_argument_that_is_wrong_is_refused_each_time(
    make_executor: MakeExecutor,
) -> None:
    made = []

    class Counted(Answering):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    executor = make_executor(consumer_batch_size=8)
    for _ in range(2):
        executor.submit(1, Counted)
        for workflow, arguments, error in (
            (answering, {"workflow_kwargs": {"add": 1}}, ValueError),
            (answering, {"group_size": True}, TypeError),
            (answering, {"is_eval": 0}, TypeError),
        ):
            executor.submit(1, answering)
            with pytest.raises(error):
                executor.submit(1, workflow, **arguments)
    assert len(made) == 2
    executor.wait(8, WAIT_S)


@pytest.mark.any_loop
def test_an_executor_keeps_no_workflow_once_it_is_destroyed(make_executor: MakeExecutor) -> None:
    workflow = Answering()
    executor, kept = make_executor(), weakref.ref(workflow)
    executor.submit(1, workflow)
    executor.wait(1, WAIT_S)
    executor.destroy()
    for call in (executor.submit, executor.rollout_batch, executor.prepare_batch):
        with pytest.raises(RunnerStoppedError):
            call([1], workflow)
    del workflow
    gc.collect()
    assert kept() is None


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("workflow", "kwargs", "error", "text"),
    [
        ("no_such_module:Answering", None, ImportError, "no_such_module"),
        ("executor_tools:Missing", None, ImportError, "'Missing' in 'executor_tools'"),
        ("Answering", None, ValueError, "'Answering' is no import path"),
        ("executor_tools:", None, ValueError, "is no import path"),
        ("executor tools:Answering", None, ValueError, "is no import path"),
        ("executor_tools:Nothing", None, TypeError, "no arun_episode"),
        ("executor_tools:nothing", None, TypeError, "no arun_episode"),
        (Engine, None, TypeError, "no arun_episode"),
        (lambda data: None, None, TypeError, "no arun_episode"),
        (None, None, TypeError, "workflow=None"),
        (answering, {"add": 1}, ValueError, "made already"),
        (Answering, {"addd": 1}, TypeError, "addd"),
        (Answering, [1], TypeError, "workflow_kwargs"),
    ],
)
@pytest.mark.parametrize("method", ["submit", "rollout_batch", "prepare_batch"])
def test_what_is_no_workflow_is_refused_at_once(
    make_executor: MakeExecutor,
    workflow: Any,
    kwargs: Any,
    error: type[Exception],
    text: str,
    method: str,
) -> None:
    executor = make_executor()
    with pytest.raises(error, match=text):
        getattr(executor, method)([1], workflow, kwargs)
    assert executor.ledger.submitted == 0


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("accept", "error", "text"),
    [
        (7, TypeError, "should_accept_fn=7 cannot be called"),
        ("executor_tools:no_filter", ImportError, "no_filter"),
        ("executor_tools", ValueError, "is no import path"),
    ],
)
def test_what_is_no_filter_is_refused_at_once(
    make_executor: MakeExecutor, accept: Any, error: type[Exception], text: str
) -> None:
    executor = make_executor()
    with pytest.raises(error, match=text):
        executor.submit(1, answering, should_accept_fn=accept)
    assert executor.ledger.submitted == 0


REFUSED: dict[str, tuple[Callable[[WorkflowExecutor], object], type[Exception], str]] = {
    "group_size 0": (lambda e: e.submit(1, answering, group_size=0), ValueError, "group_size=0"),
    "group_size 2.0": (lambda e: e.submit(1, answering, group_size=2.0), TypeError, "group_size=2"),  # type: ignore[arg-type]
    "group_size True": (lambda e: e.rollout_batch([1], answering, group_size=True), TypeError, "True"),
    "is_eval 1": (lambda e: e.submit(1, answering, is_eval=1), TypeError, "is_eval=1"),  # type: ignore[arg-type]
    "id too large": (lambda e: e.submit(1, answering, task_id=2**48), ValueError, "task_id="),
    "id negative": (lambda e: e.submit(1, answering, task_id=-1), ValueError, "task_id=-1"),
    "id a str": (lambda e: e.submit(1, answering, task_id="1"), TypeError, "task_id"),  # type: ignore[arg-type]
    "id a bool": (lambda e: e.submit(1, answering, task_id=True), TypeError, "task_id"),
    "wait 0": (lambda e: e.wait(0), ValueError, "count=0"),
    "wait True": (lambda e: e.wait(True), TypeError, "True"),
    "wait 1.0": (lambda e: e.wait(1.0), TypeError, "count"),  # type: ignore[arg-type]
    "timeout negative": (lambda e: e.wait(1, -1), ValueError, "timeout=-1"),
    "timeout NaN": (lambda e: e.wait(1, math.nan), ValueError, "timeout=nan"),
    "timeout a str": (lambda e: e.wait_for_task(1, "1"), TypeError, "timeout"),  # type: ignore[arg-type]
    "eval of outcomes": (lambda e: e.wait_outcomes(1, 0, is_eval=None), TypeError, "is_eval"),  # type: ignore[arg-type]
    "waited id": (lambda e: e.wait_for_task("1"), TypeError, "task_id"),  # type: ignore[arg-type]
    "cancelled id": (lambda e: e.cancel(None), TypeError, "task_id"),  # type: ignore[arg-type]
    "give_back 0": (lambda e: e.give_back(0), ValueError, "count=0"),
    "give_back too many": (lambda e: e.give_back(1), ValueError, "only 0 trajectories were delivered"),
    "dynamic_bs 1": (
        lambda e: e.prepare_batch(Lists(1), answering, dynamic_bs=1),  # type: ignore[arg-type]
        TypeError,
        "dynamic_bs=1",
    ),
    "batch size 0": (lambda e: e.prepare_batch(Lists(1, batch_size=0), answering), ValueError, "=0"),
    "batch size too large": (
        lambda e: e.prepare_batch(Lists(1, batch_size=3), answering),
        ValueError,
        r"a batch of 3 is more than the 2 trajectories",
    ),
    "initialized already": (lambda e: e.initialize(), RuntimeError, "initialized already"),
    "parts 0": (lambda e: e.initialize(train_data_parallel_size=0), ValueError, "=0"),
}


@pytest.mark.any_loop
@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_at_once_and_harms_nothing(
    make_executor: MakeExecutor, case: str
) -> None:
    executor = make_executor(consumer_batch_size=2)
    call, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        call(executor)
    executor.submit(1, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [1]
    assert executor.ledger.submitted == 1


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (({"consumer_batch_size": 1}, Engine()), "config is a dict"),
        ((InferenceEngineConfig(), object()), "no get_version"),
        ((InferenceEngineConfig(), Engine(), Engine()), "staleness_manager is a Engine"),
    ],
)
def test_what_no_executor_can_be_made_of_is_refused(arguments: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        WorkflowExecutor(*arguments)


CALLS: dict[str, Callable[[WorkflowExecutor], object]] = {
    "submit": lambda e: e.submit(1, answering),
    "cancel": lambda e: e.cancel(1),
    "wait": lambda e: e.wait(1),
    "wait_outcomes": lambda e: e.wait_outcomes(1),
    "wait_for_task": lambda e: e.wait_for_task(1),
    "rollout_batch": lambda e: e.rollout_batch([1], answering),
    "prepare_batch": lambda e: e.prepare_batch(Lists(1), answering),
    "give_back": lambda e: e.give_back(1),
    "pause": lambda e: e.pause(),
    "resume": lambda e: e.resume(),
    "on_version_changed": lambda e: e.on_version_changed(),
    "reset_failures": lambda e: e.reset_failures(),
    "run_everywhere": lambda e: e.run_everywhere(asyncio.sleep, 0),
    "get_capacity": lambda e: e.get_capacity(),
}


@pytest.mark.any_loop
@pytest.mark.parametrize("call", CALLS)
def test_before_initialize_everything_raises_and_nothing_hangs(call: str) -> None:
    executor = WorkflowExecutor(InferenceEngineConfig(), Engine())
    with pytest.raises(RunnerStoppedError, match="never initialized"):
        CALLS[call](executor)
    assert counts(executor.ledger) == counts(executor.eval_ledger) == {}
    assert executor.report().delivered == 0
    assert not executor.is_paused()
    assert repr(executor).startswith("<WorkflowExecutor new ")
    executor.destroy()


@pytest.mark.parametrize("name", ["wait", "wait_outcomes", "wait_for_task", "rollout_batch", "prepare_batch"])
def test_on_the_loop_thread_a_wait_raises_and_harms_nothing(make_executor: MakeExecutor, name: str) -> None:
    executor = make_executor(consumer_batch_size=2)

    async def call() -> None:
        with pytest.raises(RuntimeError, match=rf"^{name}\(\) on the"):
            CALLS[name](executor)
        with pytest.raises(RuntimeError, match=r"^destroy\(\) on the"):
            executor.destroy()

    executor.runner.run(call)
    assert executor.ledger.submitted == 0
    executor.submit(1, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [1]
