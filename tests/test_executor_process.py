"""The executor and its process: its exit, and its forks."""

from __future__ import annotations

import time

import pytest

from children import RunScript, StartScript, without_slow_callbacks

PRELUDE = """
    import asyncio, collections, gc, importlib, itertools, json, logging, os, random, signal, sys
    import threading, time, traceback, warnings
    from pathlib import Path
    import numpy as np
    import areal_core
    from areal_core import InferenceEngineConfig, RolloutWorkflow, RunnerStoppedError, WorkflowExecutor

    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

    class Engine:
        version = 0
        def get_version(self):
            return self.version

    class Playing(RolloutWorkflow):
        def __init__(self, play):
            self.play = play
        async def arun_episode(self, engine, data):
            return await self.play(data)

    def trajectory_of(value):
        return {"input_ids": np.full((1, 1), value), "attention_mask": np.ones((1, 1), int)}

    async def answer(data):
        return trajectory_of(data)

    async def park(data):
        await asyncio.Event().wait()

    async def refuse(data):
        while True:
            try:
                await park(data)
            except asyncio.CancelledError:
                pass

    def values_of(trajectories):
        return [None if one is None else int(one["input_ids"][0, 0]) for one in trajectories]

    def initialized(engine=None, **config):
        config = InferenceEngineConfig(**config)
        executor = WorkflowExecutor(config, engine or Engine(), loop_factory=new_loop)
        executor.initialize()
        return executor

    def started(play, **config):
        executor, began = initialized(**config), threading.Event()
        async def begin(data):
            began.set()
            return await play(data)
        executor.submit(1, Playing(begin))
        began.wait()
        return executor
"""

PROMPT_S = 4.0  # tasks get 1 s; the rest is for a busy machine

LEFT_BEHIND = {
    "executors in every state": """
    nothing_submitted = initialized()
    parked = started(park)
    pending = initialized()
    pending.pause()
    for _ in range(8):
        pending.submit(1, Playing(answer))
    uncollected = initialized(consumer_batch_size=4)
    for _ in range(4):
        uncollected.submit(1, Playing(answer))
    uncollected.runner.run(asyncio.sleep, 0.01)
    batches = initialized(consumer_batch_size=4)
    batches.prepare_batch([[1, 2, 3, 4]], Playing(answer))
    destroyed = started(park)
    destroyed.destroy()
    in_a_cycle = started(park)
    in_a_cycle.me = in_a_cycle
    gc.disable()  # or it may be collected before the end, and warn
    del in_a_cycle""",
    "what does not end": """
    executor = started(refuse)
    filtering = initialized(accept_in="thread")
    entered = threading.Event()
    def accept(trajectory):
        entered.set()
        time.sleep(60)
    filtering.submit(1, Playing(answer), should_accept_fn=accept)
    entered.wait()""",
    "a rollout that blocks the loop": """
    async def block(data):
        time.sleep(60)
    executor = started(block)""",
    "daemon threads that wait": """
    executor, begun = started(park, consumer_batch_size=4), threading.Semaphore(0)
    async def begin(data):
        begun.release()
        await park(data)
    def in_thread(call, *args):
        threading.Thread(target=call, args=args, daemon=True).start()
    in_thread(executor.wait, 1)
    in_thread(executor.prepare_batch, [[1]], Playing(begin))
    in_thread(executor.rollout_batch, [1], Playing(begin))
    for _ in range(4):
        begun.acquire()""",
}


@pytest.mark.parametrize("left", LEFT_BEHIND)
def test_a_script_that_leaves_this_behind_ends_promptly_and_silently(
    start_script: StartScript, left: str
) -> None:
    child = start_script(PRELUDE + f"\n    {LEFT_BEHIND[left]}\n    print('over', flush=True)\n")
    assert child.stdout is not None
    assert child.stdout.readline() == "over\n"
    ended = time.monotonic()
    stdout, stderr = child.communicate(timeout=30)
    assert (without_slow_callbacks(stderr), stdout, child.returncode) == ("", "", 0)
    assert time.monotonic() - ended < PROMPT_S


def test_what_was_delivered_is_dumped_before_the_exit(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    executor = initialized(consumer_batch_size=50, dump_dir="dump")
    for value in range(50):
        executor.submit(value, Playing(answer))
    executor.wait(50)
    import atexit
    atexit.register(lambda: print(len(Path("dump/0.jsonl").read_text().splitlines())))
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "50\n", 0)


def test_an_error_of_the_script_is_its_exit_code(run_script: RunScript) -> None:
    child = run_script(PRELUDE + "\n    executor = started(park)\n    sys.exit(7)\n")
    assert (child.stderr, child.returncode) == ("", 7)


def test_a_forked_child_has_nothing_of_it_and_can_have_its_own(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    # Since 3.12 Python warns of a fork beside threads, whatever they are.
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)

    executor = started(park, consumer_batch_size=8)
    executor.submit(5, Playing(answer), task_id=5)
    executor.runner.run(asyncio.sleep, 0.01)
    raising = {
        "submit": lambda: executor.submit(1, Playing(answer)),
        "wait": lambda: executor.wait(1, timeout=5),
        "wait_outcomes": lambda: executor.wait_outcomes(1),
        "wait_for_task": lambda: executor.wait_for_task(5),
        "rollout_batch": lambda: executor.rollout_batch([1], Playing(answer)),
        "prepare_batch": lambda: executor.prepare_batch([[1]], Playing(answer)),
        "cancel": lambda: executor.cancel(5),
        "give_back": lambda: executor.give_back(1),
        "pause": executor.pause,
        "resume": executor.resume,
        "is_paused": executor.is_paused,
        "on_version_changed": executor.on_version_changed,
        "reset_failures": executor.reset_failures,
        "get_capacity": executor.get_capacity,
        "ledger": lambda: executor.ledger,
        "eval_ledger": lambda: executor.eval_ledger,
        "report": executor.report,
        "run_everywhere": lambda: executor.run_everywhere(asyncio.sleep, 0),
        "initialize": executor.initialize,
    }

    def in_the_child():
        wrong = []
        for name, call in raising.items():
            try:
                call()
            except RunnerStoppedError as error:
                if "another process" not in str(error):
                    wrong.append((name, str(error)))
            else:
                wrong.append((name, "no error"))
        executor.destroy()
        assert not wrong, wrong
        assert repr(executor) == "<WorkflowExecutor runner of another process>", repr(executor)
        own = initialized(consumer_batch_size=4)
        assert values_of(own.prepare_batch([[1, 2, 3, 4]], Playing(answer))) == [1, 2, 3, 4]
        own.destroy()
        gc.collect()

    for locked in (False, True):
        desk = executor._shift.desk
        release, held = threading.Event(), threading.Event()
        def hold():
            with desk._lock:
                held.set()
                release.wait()
        if locked:
            threading.Thread(target=hold).start()
            held.wait()
        pid = os.fork()
        if not pid:
            try:
                in_the_child()
            except BaseException:
                traceback.print_exc()
                os._exit(70)
            os._exit(0)
        release.set()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert values_of([executor.wait_for_task(5)]) == [5]
    assert executor.ledger.running == 1
    executor.destroy()
    assert [outcome.status for outcome in executor.wait_outcomes(1)] == ["cancelled"]
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "", 0)
