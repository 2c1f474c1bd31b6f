"""What keeps a run from going on is named: by the log in time, and whenever somebody asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from areal_core._executor.events import Log
from areal_core.embedded import EmbeddedServer
from areal_core.errors import RunnerStoppedError
from areal_core.explain import Explanation, StuckRollout
from areal_core.staleness_manager import StalenessManager
from areal_core.types import GenerationHyperparameters
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import SingleTurnWorkflow
from conftest import MakeExecutor
from doors import Caller, Door, in_thread, start_blocked, turn_loop
from engine_tools import an_engine
from executor_tools import (
    WAIT_S,
    Engine,
    Lists,
    Playing,
    ReplyingEngine,
    answering,
    obeying,
    only,
    park,
    trajectory_of,
)
from logged import LogLines

WARNING_S = 0.3
ITEM = {"input_ids": [9_137, 9_138], "data_id": "item-7", "question": "a secret of the data"}
GCONFIG = GenerationHyperparameters(max_new_tokens=2)


def logged(lines: LogLines, event: str) -> str:
    """Wait for a line of *event*; return it."""
    line = lines.wait_for(f"{event} ", WAIT_S)
    assert line.level == "warning"
    return line.message


def after_warning(executor: WorkflowExecutor, lines: LogLines) -> tuple[str, StuckRollout]:
    """Wait until a rollout is told to be stuck; return what the log and what the executor say of it."""
    message = logged(lines, "rollout_stuck")
    age_s = float(message.partition(" age_s=")[2].split()[0])
    assert WARNING_S * 0.9 <= age_s < WARNING_S * 8, "it was not named when it was time"
    rollout = only(executor.explain())
    assert f"stage={rollout.stage} " in message
    assert str(rollout.data_id) in message
    assert rollout.age_s >= WARNING_S * 0.9
    assert "secret" not in message + str(executor.explain())
    assert "9137" not in message + str(executor.explain())
    return message, rollout


# -- a reward that never comes ---------------------------------------------------------------------


_forever = threading.Event()


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    _forever.clear()
    yield
    _forever.set()


async def score_on_the_loop(prompt: list[int], output: list[int], data: Any) -> float:
    await asyncio.get_running_loop().create_future()
    return 1.0


def score_in_a_thread(prompt: list[int], output: list[int], data: Any) -> float:
    _forever.wait(WAIT_S)
    return 1.0


def score_in_a_process(prompt: list[int], output: list[int], data: Any) -> float:
    time.sleep(WAIT_S)
    return 1.0


def stuck_reward(make: MakeExecutor, reward: Any, place: Any, **config: Any) -> WorkflowExecutor:
    executor = make(ReplyingEngine(), stuck_warning=WARNING_S, cancel_grace=0.5, **config)
    executor.submit(ITEM, SingleTurnWorkflow(reward, GCONFIG, reward_in=place, reward_timeout=None))
    return executor


def test_a_reward_that_awaits_for_ever_is_named(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = stuck_reward(make_executor, score_on_the_loop, "loop")
    message, rollout = after_warning(executor, log_lines)
    assert rollout.stage == "waiting for its reward"
    assert rollout.data_id == "item-7"
    assert "test_explain.score_on_the_loop, on the loop" in rollout.stack
    assert rollout.stack.splitlines()[-2].endswith(" score_on_the_loop")
    assert rollout.stack.splitlines()[-1].startswith("a future that is not done")
    for line in rollout.stack.splitlines():
        assert line in message


def test_a_reward_that_blocks_its_thread_is_named_with_the_threads_stack(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = stuck_reward(make_executor, score_in_a_thread, "thread")
    message, rollout = after_warning(executor, log_lines)
    assert rollout.stage == "waiting for its reward"
    for stack in (rollout.stack, message):
        assert "in test_explain.score_in_a_thread, in a thread, which is at" in stack
        assert " score_in_a_thread\n" in stack
        assert "threading.py" in stack.partition(" score_in_a_thread\n")[2]
    _forever.set()


def test_a_reward_that_hangs_in_a_process_is_named_with_the_process(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = stuck_reward(make_executor, score_in_a_process, "process")
    message, rollout = after_warning(executor, log_lines)
    assert rollout.stage == "waiting for its reward"
    assert "in test_explain.score_in_a_process, in a worker process" in message
    deadline = time.monotonic() + WAIT_S
    while "with the process id" not in only(executor.explain()).stack:  # its worker is being started
        assert time.monotonic() < deadline


def test_a_filter_that_never_answers_is_named(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(stuck_warning=WARNING_S)
    executor.submit(1, answering, should_accept_fn=lambda trajectory: park())
    _, rollout = (logged(log_lines, "rollout_stuck"), only(executor.explain()))
    assert rollout.stage == "waiting for should_accept_fn"


# -- servers ---------------------------------------------------------------------------------------


def _no_reward(prompt: list[int], output: list[int], data: Any) -> float:
    return 0.0


asking = SingleTurnWorkflow(_no_reward, GCONFIG)


def test_a_server_that_never_answers_is_named(
    make_executor: MakeExecutor, server: EmbeddedServer, log_lines: LogLines
) -> None:
    server.faults(["silent"])
    with an_engine(server) as engine:
        executor = make_executor(engine, stuck_warning=WARNING_S)
        executor.submit(ITEM, asking)
        message, rollout = after_warning(executor, log_lines)
        name = next(iter(engine.servers))
        assert (rollout.server, rollout.stage) == (name, f"generating on {name}")
        assert rollout.segments == 1
        assert f"server={name}" in message
        assert "SingleTurnWorkflow.arun_episode" in rollout.stack
        executor.destroy()


def test_a_paused_generation_is_named(
    make_executor: MakeExecutor, server: EmbeddedServer, log_lines: LogLines
) -> None:
    with an_engine(server) as engine:
        executor = make_executor(engine, stuck_warning=WARNING_S)
        executor.runner.run(engine.pause_generation)
        executor.submit(ITEM, asking)
        after_warning(executor, log_lines)
        assert "generation paused: 1 generations wait" in logged(log_lines, "nothing_starts")
        assert "generation paused" in executor.explain_capacity().kinds
        executor.runner.run(engine.continue_generation)
        executor.wait(1, WAIT_S)
        assert "generation paused" not in executor.explain_capacity().kinds


def test_it_is_said_when_no_server_is_in_rotation(make_executor: MakeExecutor) -> None:
    class Deserted(Engine):
        def __init__(self) -> None:
            super().__init__()
            self.servers: dict[str, str | None] = {"host:1": "it hangs", "host:2": None}

    engine = Deserted()
    executor = make_executor(engine)
    assert "no server in rotation" not in executor.explain_capacity().kinds
    engine.servers["host:2"] = "it is gone"
    reason = executor.explain_capacity().reasons[-1]
    assert reason == ("no server in rotation", "host:1 is out: it hangs; host:2 is out: it is gone")


def test_an_engine_that_cannot_say_does_no_harm(make_executor: MakeExecutor) -> None:
    class Odd(Engine):
        @property
        def servers(self) -> Any:
            raise ZeroDivisionError

    assert make_executor(Odd()).explain_capacity().kinds == ("nothing pending",)


# -- why nothing starts ----------------------------------------------------------------------------


def test_a_forgotten_pause_is_named(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(stuck_warning=WARNING_S)
    executor.pause()
    executor.submit(1, answering)
    message = logged(log_lines, "nothing_starts")
    assert "paused: pause() was called" in message
    assert "pending=1" in message
    assert executor.explain_capacity().kinds == ("paused",)
    assert not [line for line in log_lines if line.message.startswith("rollout_stuck")]
    executor.resume()
    executor.wait(1, WAIT_S)
    assert executor.explain_capacity().kinds == ("nothing pending", "staleness")


def test_an_exhausted_staleness_budget_is_named(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(consumer_batch_size=2, max_head_offpolicyness=1, stuck_warning=WARNING_S)
    for _ in range(5):
        executor.submit(1, answering)
    message = logged(log_lines, "nothing_starts")
    assert "staleness: all of the budget of version 0 is in use" in message
    assert "(max_head_offpolicyness 1 + 1) x consumer_batch_size 2 = 4 trajectories" in message
    assert "0 run, 4 have ended and were not taken, 0 were delivered" in message
    assert "; take what has ended (prepare_batch, wait)" in message
    found = executor.explain_capacity()
    assert found.kinds == ("staleness",)
    assert (found.units_waiting, found.most_units, found.pending) == (4, 4, 1)
    executor.wait(4, WAIT_S)
    found = executor.explain_capacity()
    assert found.units_consumed == 4
    assert found.reasons[0].text.endswith("raise the version; on_version_changed() tells of it")


def test_full_slots_of_training_and_of_evaluation_are_told_apart(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_concurrent_rollouts=1), Door()
    through = Playing(door.walk_through)
    for is_eval in (False, True, False):
        executor.submit(trajectory_of(1), through, is_eval=is_eval)
    door.wait_for(2)
    (training, evaluation) = executor.explain_capacity().reasons
    assert training.kind == evaluation.kind == "concurrency"
    assert "1 samples of training run, as many as max_concurrent_rollouts=1" in training.text
    assert "1 samples of evaluation run" in evaluation.text
    door.open()


def test_a_full_queue_is_named(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, queue_size=2), Door()
    for _ in range(3):
        executor.submit(trajectory_of(1), Playing(door.walk_through))
    door.wait_for(2)
    (reason,) = executor.explain_capacity().reasons
    assert (reason.kind, reason.text[:25]) == ("queue", "2 samples are under way, ")
    door.open()


def test_too_many_failures_are_named(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8, max_consecutive_failures=1)
    executor.submit(ValueError("mine"), obeying)
    turn_loop(executor.runner)
    executor.submit(1, answering)
    turn_loop(executor.runner)
    (reason,) = executor.explain_capacity().reasons
    assert reason.kind == "failures"
    assert "max_consecutive_failures=1" in reason.text


def test_the_end_is_named(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    executor.destroy()
    assert executor.explain_capacity().kinds == ("ended", "nothing pending")
    assert executor.explain().rollouts == ()


def test_before_its_life_there_is_nothing_to_explain() -> None:
    from areal_core.config import InferenceEngineConfig

    with pytest.raises(RunnerStoppedError, match="never initialized"):
        WorkflowExecutor(InferenceEngineConfig(), Engine()).explain()


# -- who waits, and what else there is to see ------------------------------------------------------


def test_callers_are_told_of(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=3, max_head_offpolicyness=8), Door()
    through = Playing(door.walk_through)
    item = trajectory_of(1)
    executor.submit(item, through, task_id=7)
    callers: list[Caller[Any]] = [
        start_blocked(executor.wait, 2),
        start_blocked(executor.wait_for_task, 7),
        start_blocked(executor.rollout_batch, [item] * 12, through),
        start_blocked(executor.prepare_batch, [[item] * 3] * 9, through),
    ]
    door.wait_for(4)
    deadline = time.monotonic() + WAIT_S
    while len(executor.explain().callers) < 4:  # one of them submits what it waits for, and asks again
        assert time.monotonic() < deadline
    said = "\n".join(executor.explain().callers)
    assert "a caller waits for any 2 rollouts to end: 0 have" in said
    assert "a caller waits for the rollouts 7: 0 have ended" in said
    assert "and 4 more: 0 have ended" in said
    assert "a caller waits for a batch of 3: 0 are there" in said
    assert said in str(executor.explain())
    executor.destroy()
    assert all(isinstance(caller.error(), RunnerStoppedError) for caller in callers)


def test_of_a_group_the_member_that_waits_longest_is_told_of(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    first = iter([True, False, False])

    async def play(_: Any) -> Any:
        if next(first):
            await park()
        return await door.walk_through(trajectory_of(1))

    executor.submit(None, Playing(play), group_size=3)
    door.wait_for(2)
    rollout = only(executor.explain())
    assert rollout.members == "3 of a group of 3 run"
    assert rollout.stack.splitlines()[-2].endswith(" park")
    door.open()
    turn_loop(executor.runner)
    rollout = only(executor.explain())
    assert rollout.members == "1 of a group of 3 run"
    assert rollout.stack.splitlines()[-2].endswith(" park")


def test_the_rest_of_a_group_that_waits_for_slots_is_told_of(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_concurrent_rollouts=1), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), group_size=2)
    door.wait_for()
    executor.pause()
    door.open()
    turn_loop(executor.runner)
    rollout = only(executor.explain())
    assert rollout.stage == "waiting for slots for the rest of its group"
    assert rollout.stack == "(no task)"
    assert executor.explain_capacity().kinds == ("paused",)


def test_one_that_swallows_its_cancellation_is_told_to_have_been_told(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(trajectory_of(1), Playing(door.insist), task_id=1)
    door.wait_for()
    assert executor.cancel(1)
    door.wait_for()
    assert only(executor.explain()).stage.endswith(", though it was told to end (cancelled)")
    door.open()


def test_the_users_code_that_blocks_the_loop_is_shown(make_executor: MakeExecutor) -> None:
    entered = threading.Event()

    async def block(_: Any) -> Any:
        entered.set()
        _forever.wait(WAIT_S)

    executor = make_executor(loop_block_warning=None)
    executor.submit(1, Playing(block))
    assert entered.wait(WAIT_S)
    executor.submit(2, answering)
    explanation = executor.explain()
    assert (explanation.capacity.pending, explanation.capacity.running) == (1, 1)
    assert "nothing pending" not in explanation.capacity.kinds
    assert explanation.loop_is_in is not None
    assert ".block\n" in explanation.loop_is_in
    assert explanation.loop_is_in.splitlines()[0].endswith("Playing.arun_episode")
    assert "it is running at this moment" in only(explanation).stack
    assert "the loop is in the user's code at this moment:" in str(explanation)
    _forever.set()
    executor.wait(1, WAIT_S)
    assert executor.explain().loop_is_in is None


def test_it_is_explained_though_somebody_holds_the_lock(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._executor.explaining._PATIENCE_S", 0.05)
    entered = threading.Event()

    class Blocking(StalenessManager):
        """Called in the middle of the loop's work."""

        def on_rollout_submitted(self) -> None:
            entered.set()
            _forever.wait(WAIT_S)

    engine = Engine()
    executor = make_executor(engine, manager=Blocking(engine, None, 8, 0))
    executor.submit(1, answering)
    assert entered.wait(WAIT_S)
    explanation = executor.explain()
    assert only(explanation).task_id > 0
    assert "on_rollout_submitted" in str(explanation.loop_is_in)
    assert not _forever.is_set()
    _forever.set()
    executor.wait(1, WAIT_S)


def test_any_thread_may_ask(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), task_id=5)
    door.wait_for()

    async def ask() -> Explanation:
        return executor.explain()

    for explanation in (executor.explain(), in_thread(executor.explain), executor.runner.run(ask)):
        assert only(explanation).task_id == 5
        assert only(explanation).stack.splitlines()[-2].endswith(" Door.walk_through")
    door.open()


def test_who_asks_does_not_look_himself(make_executor: MakeExecutor) -> None:
    """He may be interrupted at any moment, which would leave a lock held."""
    lookers: list[int] = []

    class Looked(Engine):
        @property
        def servers(self) -> dict[str, None]:
            lookers.append(threading.get_ident())
            return {}

    executor = make_executor(Looked())
    executor.explain()
    executor.explain_capacity()
    assert len(lookers) == 2
    assert threading.get_ident() not in lookers


def test_a_rollout_that_is_young_is_not_called_stuck(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, door = make_executor(), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through))
    door.wait_for()
    assert executor._shift is not None
    executor._shift.explainer.log_stuck(Log(), 1000.0)
    assert log_lines == []
    door.open()


class _Nameless:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("data_id", "shown"),
    [
        (7, 7),
        (10**5000, "<int"),
        ("x" * 500, "x" * 80 + "..."),
        (_Nameless(), "<_Nameless instance"),
        (("a", 1), "('a', 1)"),
        (list(range(10**6)), "[0, 1, 2, 3, 4, 5, ...]"),
    ],
    ids=["number", "long number", "long text", "raises", "tuple", "long list"],
)
def test_a_data_id_of_any_kind_is_shown_in_short(
    make_executor: MakeExecutor, data_id: Any, shown: Any
) -> None:
    executor, door = make_executor(), Door()
    executor.submit({"data_id": data_id}, Playing(lambda _: door.walk_through(trajectory_of(1))))
    door.wait_for()
    rollout = only(executor.explain())
    assert str(rollout.data_id).startswith(str(shown))
    assert type(rollout.data_id) in (int, str)
    assert len(str(rollout.data_id)) < 100
    door.open()


# -- no more than can be read ----------------------------------------------------------------------


def test_twenty_rollouts_are_shown_the_oldest_first_and_how_many_more_there_are(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=30, stuck_warning=WARNING_S)
    for number in range(30):
        executor.submit(None, Playing(lambda _: park()), task_id=number)
    logged(log_lines, "nothing_starts")
    explanation = executor.explain()
    assert [rollout.task_id for rollout in explanation.rollouts] == list(range(20))
    assert explanation.more == 10
    assert str(explanation).endswith("\nand 10 more that run")
    messages = [line.message for line in log_lines]
    assert sum(message.startswith("rollout_stuck ") for message in messages) == 20
    assert [message for message in messages if "10 more" in message] == [
        "more_rollouts_stuck text=and 10 more that run"
    ]


def test_without_the_setting_nothing_is_said_and_on_demand_all_is(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, door = make_executor(stuck_warning=None), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through))
    door.wait_for()
    assert executor._shift is not None
    watch = executor._shift.explainer._stuck
    assert watch._timer is None
    assert executor.explain().stuck_for_s > 0
    door.open()
    executor.wait(1, WAIT_S)
    assert executor.explain().stuck_for_s == 0


def test_what_was_stuck_goes_on_and_nothing_more_is_said(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, door = make_executor(stuck_warning=WARNING_S), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through))
    logged(log_lines, "rollout_stuck")
    door.open()
    executor.wait(1, WAIT_S)
    assert executor._shift is not None
    assert executor._shift.explainer._stuck.seconds == 0


def test_a_batch_that_waits_for_a_version_is_explained(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2)
    executor.prepare_batch(Lists(2), answering)
    caller = start_blocked(executor.prepare_batch, Lists(2), answering)
    deadline = time.monotonic() + WAIT_S
    while "staleness" not in executor.explain_capacity().kinds or not executor.explain().callers:
        assert time.monotonic() < deadline
    assert "2 were delivered at this version" in str(executor.explain())
    executor.destroy()
    assert caller.error() is not None
