"""What can be seen of a runner: stats, sizes, repr, log lines, tracing."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from typing import Any

import pytest
import structlog

from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from children import RunScript
from conftest import MakeRunner
from doors import Caller, Door, break_down, fail, give, turn_loop
from logged import LogLines

# -- numbers ----------------------------------------------------------------------------------------


@pytest.mark.any_loop
def test_stats_is_a_frozen_snapshot(make_runner: MakeRunner) -> None:
    runner = make_runner()
    before = runner.stats()
    runner.submit(give)
    assert before == RunnerStats(state="running")
    assert runner.stats().submitted == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.submitted = 5  # type: ignore[misc]
    assert [field.name for field in dataclasses.fields(RunnerStats)] == [
        "submitted",
        "pending",
        "running",
        "finished",
        "collected",
        "discarded",
        "abandoned",
        "state",
    ]


def test_each_task_is_counted_once_wherever_it_is(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    seen = []

    def look() -> None:
        stats = runner.stats()
        assert runner.get_queue_sizes() == (stats.pending, stats.finished)
        assert runner.get_input_queue_size() == stats.pending
        assert runner.get_output_queue_size() == stats.finished
        seen.append(
            (stats.submitted, stats.pending, stats.running, stats.finished, stats.collected, stats.discarded)
        )

    look()
    runner.pause()
    for task_id in range(3):
        runner.submit(door.walk_through, task_id=task_id)
    look()
    runner.resume()
    door.wait_for(3)
    look()
    runner.cancel(0)
    turn_loop(runner)
    look()
    door.open()
    turn_loop(runner)
    look()
    runner.wait(1, timeout=10)
    look()
    runner.wait_for_task(2, timeout=10)
    look()
    runner.destroy()
    look()
    runner.initialize()
    look()
    assert seen == [
        (0, 0, 0, 0, 0, 0),
        (3, 3, 0, 0, 0, 0),
        (3, 0, 3, 0, 0, 0),
        (3, 0, 2, 1, 0, 0),
        (3, 0, 0, 3, 0, 0),
        (3, 0, 0, 2, 1, 0),
        (3, 0, 0, 1, 2, 0),
        (3, 0, 0, 1, 2, 0),
        (3, 0, 0, 0, 2, 1),
    ]


@pytest.mark.any_loop
def test_the_equation_holds_in_every_snapshot_while_everything_moves(make_runner: MakeRunner) -> None:
    runner, stop = make_runner(max_queue_size=50), threading.Event()

    def look() -> int:
        looks = 0
        while not stop.is_set():
            stats = runner.stats()
            parts = (stats.pending, stats.running, stats.finished, stats.collected, stats.discarded)
            assert stats.submitted == sum(parts), stats
            looks += 1
        return looks

    looker = Caller(look)
    for burst in range(20):
        for task_id in range(50):
            runner.submit(give, task_id=task_id)
        if burst % 2:
            runner.pause()
            runner.cancel(49)
            runner.resume()
        runner.wait(25, timeout=10)
        assert len(list(runner.as_completed(timeout=10))) == 25
    stop.set()
    assert looker.result() > 0
    assert runner.stats() == RunnerStats(submitted=1000, collected=1000, state="running")


@pytest.mark.any_loop
def test_sizes_of_a_runner_that_was_never_started_are_zero() -> None:
    runner = AsyncTaskRunner[Any](4)
    assert runner.get_queue_sizes() == (0, 0)
    assert (runner.get_input_queue_size(), runner.get_output_queue_size()) == (0, 0)
    assert runner.stats() == RunnerStats()
    assert runner.thread is None
    assert runner.paused is False


@pytest.mark.any_loop
def test_repr_and_stats_tell_the_state(make_runner: MakeRunner) -> None:
    assert repr(AsyncTaskRunner[Any](4)) == (
        "<AsyncTaskRunner new pending=0 running=0 finished=0 max_queue_size=4>"
    )

    class MyRunner(AsyncTaskRunner[Any]):
        pass

    assert repr(MyRunner(4)).startswith("<MyRunner new ")
    runner, door = make_runner(max_queue_size=7), Door()
    runner.submit(give)
    turn_loop(runner)
    for _ in range(2):
        runner.submit(door.walk_through)
    door.wait_for(2)
    assert repr(runner) == "<AsyncTaskRunner running pending=0 running=2 finished=1 max_queue_size=7>"
    runner.pause()
    for _ in range(3):
        runner.submit(give)
    assert repr(runner) == "<AsyncTaskRunner paused pending=3 running=2 finished=1 max_queue_size=7>"
    runner.destroy()
    assert repr(runner) == "<AsyncTaskRunner stopped pending=0 running=0 finished=6 max_queue_size=7>"
    runner.initialize()
    break_down(runner, OSError("broken"))
    assert repr(runner) == "<AsyncTaskRunner died pending=0 running=0 finished=0 max_queue_size=7>"


@pytest.mark.any_loop
def test_the_event_exiting_is_one_object_that_can_be_waited_for(make_runner: MakeRunner) -> None:
    runner = make_runner()
    exiting = runner.exiting
    assert isinstance(exiting, threading.Event)
    assert not exiting.wait(timeout=0)
    assert not exiting.wait(timeout=-0.5)
    assert repr(exiting) == "<GateEvent unset>"
    waiter = Caller(exiting.wait, 10.0)
    runner.destroy()
    assert waiter.result()
    assert exiting.is_set()
    assert repr(exiting) == "<GateEvent set>"
    runner.initialize()
    assert runner.exiting is exiting
    assert not exiting.is_set()


# -- log lines --------------------------------------------------------------------------------------


def test_a_failed_task_is_logged_with_its_traceback_also_with_no_logger_given(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, error = make_runner(), ValueError("100 %s {}")
    runner.submit(fail, error, task_id=7)
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    seconds = round((result.finish_time - result.create_time) / 1e9, 6)
    turn_loop(runner)
    assert [tuple(line) for line in log_lines] == [
        (
            "error",
            f"task_failed task=7 fail seconds={seconds} error=ValueError: 100 %s {{}}",
            error,
        )
    ]


@pytest.mark.any_loop
def test_what_completes_is_not_logged(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner = make_runner()
    runner.submit(give, 1)
    runner.wait(1, timeout=10)
    assert runner.run(give, 1) == 1
    turn_loop(runner)
    assert log_lines == []


@pytest.mark.parametrize("tracing", [True, False])
def test_tracing_logs_a_debug_line_at_each_start_and_end(
    make_runner: MakeRunner, log_lines: LogLines, tracing: bool
) -> None:
    runner, door = make_runner(enable_tracing=tracing), Door()
    runner.submit(give, task_id=1)
    turn_loop(runner)
    runner.submit(fail, ValueError("why"), task_id=2)
    turn_loop(runner)
    runner.submit(door.walk_through, task_id=3)
    door.wait_for()
    runner.pause()
    runner.submit(give, task_id=4)
    runner.cancel(4)
    turn_loop(runner)
    lines = [(line.level, re.sub(r"seconds=[\d.e-]+", "seconds=_", line.message)) for line in log_lines]
    debug = [line for line in lines if line[0] == "debug"]
    others = [line for line in lines if line[0] != "debug"]
    assert debug == (
        [
            ("debug", "task_started task=1 give"),
            ("debug", "task_completed task=1 give seconds=_"),
            ("debug", "task_started task=2 fail"),
            ("debug", "task_started task=3 Door.walk_through"),
        ]
        if tracing
        else []
    )
    assert others == [
        ("error", "task_failed task=2 fail seconds=_ error=ValueError: why"),
        ("warning", "task_cancelled task=4 give seconds=_ error=CancelledError: task 4 was cancelled"),
    ]


@pytest.mark.any_loop
def test_the_seconds_in_a_line_are_those_of_the_task(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, door = make_runner(enable_tracing=True), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.05)
    door.open()
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    turn_loop(runner)
    seconds = round((result.finish_time - result.create_time) / 1e9, 6)
    assert 0.04 < seconds < 10
    assert log_lines.of("debug")[-1] == f"task_completed task=1 Door.walk_through seconds={seconds}"


@pytest.mark.any_loop
def test_a_standard_logger_given_is_used_instead(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("trainer")
    runner = make_runner(logger=logger)
    runner.submit(fail, ValueError("why"), task_id=1)
    runner.wait(1, timeout=10)
    turn_loop(runner)
    records = [record for record in caplog.records if record.name == "trainer"]
    assert [record.levelname for record in records] == ["ERROR"]
    assert records[0].getMessage().startswith("task_failed task=1 fail seconds=")
    assert records[0].exc_info is not None
    runner.destroy()
    runner.initialize(logging.LoggerAdapter(logger, {}))
    runner.submit(fail, ValueError("why"), task_id=2)
    runner.wait(1, timeout=10)
    turn_loop(runner)
    assert [record.getMessage()[:18] for record in caplog.records if record.name == "trainer"] == [
        "task_failed task=1",
        "task_failed task=2",
    ]
    runner.destroy()
    assert log_lines == []
    runner.initialize()
    runner.submit(fail, ValueError("why"), task_id=3)
    runner.wait(1, timeout=10)
    turn_loop(runner)
    assert len(log_lines) == 1


@pytest.mark.any_loop
def test_a_structlog_logger_given_gets_events_with_fields(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    captured = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[captured], run="r1")
    runner, error = make_runner(logger=logger), ValueError("why")
    runner.submit(fail, error, task_id=1)
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    turn_loop(runner)
    assert captured.entries == [
        {
            "event": "task_failed",
            "log_level": "error",
            "run": "r1",
            "task": "1 fail",
            "seconds": round((result.finish_time - result.create_time) / 1e9, 6),
            "error": "ValueError: why",
            "exc_info": error,
        }
    ]
    assert log_lines == []


@pytest.mark.any_loop
def test_a_star_brings_in_what_the_module_is_for() -> None:
    names: dict[str, Any] = {}
    exec("from areal_core.async_task_runner import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == [
        "AsyncTaskRunner",
        "RunnerStats",
        "Status",
        "TaskOptions",
        "TaskQueueFullError",
        "TimedResult",
    ]


@pytest.mark.any_loop
def test_the_options_of_one_submit_are_named_and_take_little_room(make_runner: MakeRunner) -> None:
    runner = make_runner()
    with pytest.raises(TypeError, match="positional"):
        runner.with_options(5.0)  # type: ignore[call-arg]
    assert not hasattr(runner.with_options(task_timeout=5.0), "__dict__")


@pytest.mark.any_loop
def test_what_a_program_made_of_structlog_changes_nothing(run_script: RunScript) -> None:
    script = run_script("""
        import logging
        import structlog

        def refuse():
            raise AssertionError("asked for a context of the program's")

        structlog.configure(
            processors=[], wrapper_class=structlog.make_filtering_bound_logger(50), context_class=refuse
        )
        from areal_core._log import get_logger

        get_logger().warning("said", how="loud")
        get_logger(logging.getLogger("other")).error("said", how="well")
    """)
    assert (script.returncode, script.stdout, script.stderr) == (0, "", "said how=loud\nsaid how=well\n")


class RaisingLogger:
    """A logger that cannot log after all."""

    def warning(self, event: str, **fields: Any) -> None:
        raise OSError("disk full")

    error = info = debug = warning


@pytest.mark.any_loop
def test_a_logger_that_raises_costs_the_line_and_says_so_on_ours(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner = make_runner(logger=RaisingLogger(), enable_tracing=True)
    runner.submit(fail, ValueError("why"), task_id=1)
    runner.submit(give, 2, task_id=2)
    assert runner.wait(2, timeout=10) == [None, 2]
    turn_loop(runner)
    assert not runner.exiting.is_set()
    assert sorted(line[:2] for line in log_lines) == [
        ("error", f"logger_raised lost_event={event} error=OSError: disk full")
        for event in ("task_completed", "task_failed", "task_started", "task_started")
    ]


def test_an_unconfigured_program_sees_warnings_and_errors_on_stderr_and_nothing_on_stdout(
    run_script: RunScript,
) -> None:
    child = run_script(
        """
        import asyncio, importlib, os
        from areal_core.async_task_runner import AsyncTaskRunner

        async def fail(): raise ValueError("why")
        async def wait(): await asyncio.sleep(60)
        async def give(): pass

        loop_factory = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
        with AsyncTaskRunner(4, loop_factory=loop_factory, enable_tracing=True) as runner:
            runner.submit(give, task_id=1)
            runner.submit(fail, task_id=2)
            assert runner.wait(2) == [None, None]
            runner.submit(wait, task_id=3)
            runner.run(give)
            runner.cancel(3)
            runner.wait(1)
            runner.run(give)
            runner.submit(wait, task_id=4)
        """
    )
    assert (child.returncode, child.stdout) == (0, "")
    lines = re.sub(r"seconds=[\d.e-]+", "seconds=_", child.stderr).splitlines()
    assert lines[0] == "task_failed task=2 fail seconds=_ error=ValueError: why"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2] == "ValueError: why"
    assert lines[-1] == "task_cancelled task=3 wait seconds=_ error=CancelledError"
    assert all(line.startswith(("  ", "Traceback")) for line in lines[1:-2])


@pytest.mark.any_loop
def test_a_key_that_an_error_carries_does_not_get_into_the_log(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    """Law: what is logged of an error is what a traceback's last line says, not its repr."""

    class RefusedError(Exception):
        def __init__(self) -> None:
            super().__init__({"Authorization": "Bearer secret"}, 401)

        def __str__(self) -> str:
            return "401, message='Unauthorized'"

    runner = make_runner()
    runner.submit(fail, RefusedError())
    runner.wait(1, timeout=10)
    turn_loop(runner)
    assert log_lines[0].message.endswith(f"error={RefusedError.__qualname__}: 401, message='Unauthorized'")
