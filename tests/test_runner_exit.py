"""The interpreter's exit beside running runners: prompt, and with the script's own status and stderr."""

from __future__ import annotations

import time

import pytest

from areal_core._runner.lifecycle import life_of
from children import RunScript, StartScript, without_slow_callbacks
from conftest import MakeRunner
from doors import LONG_S, Blockade

PRELUDE = """
    import asyncio, atexit, gc, importlib, logging, os, sys, threading, time
    from areal_core import AsyncTaskRunner, register_loop_cleanup
    from areal_core.errors import RunnerStoppedError

    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

    def initialized(max_queue_size=8, **options):
        runner = AsyncTaskRunner(max_queue_size, loop_factory=new_loop, **options)
        runner.initialize()
        return runner

    def started(async_fn, *args):
        '''Make a runner that runs this task and has begun with it.'''
        runner, began = initialized(), threading.Event()
        async def begin():
            began.set()
            await async_fn(*args)
        runner.submit(begin)
        began.wait()
        return runner

    async def park():
        await asyncio.Event().wait()

    async def refuse():
        while True:
            try:
                await park()
            except asyncio.CancelledError:
                pass
"""

PROMPT_S = 4.0  # tasks get 1 s; the rest is for a busy machine

LEFT_BEHIND = {
    "a runner without tasks": "runner = initialized()",
    "parked tasks": """
    runner = initialized()
    for _ in range(8):
        runner.submit(park)""",
    "pending tasks": """
    runner = initialized()
    runner.pause()
    runner.submit(park)""",
    "uncollected results": """
    runner = initialized()
    runner.submit(asyncio.sleep, 0)
    runner.run(asyncio.sleep, 0.01)""",
    "a task that refuses its cancellation": "runner = started(refuse)",
    "a task that blocks the loop thread": """
    async def block():
        time.sleep(60)

    runner = started(block)""",
    "a task that keeps the loop thread busy": """
    async def spin():
        while True:
            pass

    runner = started(spin)""",
    "one life of many": """
    async def block():
        time.sleep(60)

    for _ in range(8):
        initialized().destroy()
    runner = started(block)""",
    "a thread of the default executor": "runner = started(asyncio.to_thread, time.sleep, 60)",
    "an async generator": """
    async def count():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)

    async def iterate():
        async for _ in count():
            await park()

    runner = started(iterate)""",
    "children of a task": """
    async def parent():
        async with asyncio.TaskGroup() as group:
            group.create_task(park())
            group.create_task(refuse())

    runner = started(parent)""",
    "a runner in a cycle": """
    class Trainer:
        def __init__(self):
            self.runner, self.me = started(park), self

    trainer = Trainer()
    del trainer""",
    "a runner that a task refers to": """
    async def hold(runner):
        await park()

    runner = initialized()
    runner.submit(hold, runner)
    runner.run(asyncio.sleep, 0.01)""",
    "many runners": """
    runners = [started(park) for _ in range(20)] + [started(refuse) for _ in range(5)]""",
    "a runner that is being destroyed": """
    runner = started(refuse)
    threading.Thread(target=runner.destroy, args=(60,), daemon=True).start()
    runner.exiting.wait()""",
    "a runner whose thread was left behind": """
    async def block():
        time.sleep(60)

    logging.getLogger("areal_core").addHandler(logging.NullHandler())
    runner = started(block)
    runner.destroy(timeout=0.1)""",
}


@pytest.mark.parametrize("left", LEFT_BEHIND)
def test_a_script_that_leaves_this_behind_ends_promptly_and_silently(
    start_script: StartScript, left: str
) -> None:
    child = start_script(
        PRELUDE
        + f"""
    {LEFT_BEHIND[left]}
    print("over", flush=True)
    """
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "over\n"
    ended = time.monotonic()
    stdout, stderr = child.communicate(timeout=30)
    assert (without_slow_callbacks(stderr), stdout, child.returncode) == ("", "", 0)
    assert time.monotonic() - ended < PROMPT_S


def test_a_loop_cleanup_that_hangs_is_named_and_does_not_hold_up_the_exit(run_script: RunScript) -> None:
    """It is the script's own function that failed."""
    child = run_script(
        PRELUDE
        + """
    async def register():
        register_loop_cleanup(refuse)

    runner = initialized()
    runner.run(register)
    """
    )
    said, end = "loop_cleanup_timed_out callback=__main__.refuse seconds=", " ended=False\n"
    assert child.stderr.startswith(said), child.stderr
    assert child.stderr.endswith(end), child.stderr
    assert float(child.stderr.removeprefix(said).removesuffix(end)) < 1.0
    assert (child.stdout, child.returncode) == ("", 0)


TRACEBACK = """\
Traceback (most recent call last):
  File "{script}", line {line}, in <module>
    raise LookupError("mine")
LookupError: mine
"""


@pytest.mark.parametrize(
    ("ending", "status", "stderr"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('too bad')", 1, "too bad\n"),
        ('raise LookupError("mine")', 1, TRACEBACK),
        ("os._exit(4)", 4, ""),
        ("os.kill(os.getpid(), 15)", -15, ""),
    ],
)
def test_a_script_that_ends_otherwise_keeps_its_own_status_and_stderr(
    run_script: RunScript, ending: str, status: int, stderr: str
) -> None:
    script = (
        PRELUDE
        + f"""
    refusing, parked = started(refuse), started(park)
    {ending}
    """
    )
    child = run_script(script)
    line = script.rstrip().count("\n") + 1
    assert child.stderr == stderr.format(script=child.args[-1], line=line)
    assert (child.stdout, child.returncode) == ("", status)


def test_an_exit_inside_the_with_block_is_an_exit_like_any_other(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    with AsyncTaskRunner(8, loop_factory=new_loop) as runner:
        runner.submit(park)
        sys.exit(3)
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "", 3)


def test_tasks_get_their_second_to_clean_up_and_no_more(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    async def clean_up(seconds):
        try:
            await park()
        finally:
            await asyncio.sleep(seconds)
            print(seconds, flush=True)

    runners = started(clean_up, 0.1), started(clean_up, 60)
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0.1\n", 0)


def test_waiting_threads_are_told_when_the_script_ends(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    runner = started(park)

    def wait(call, *args):
        try:
            call(*args)
        except RunnerStoppedError as error:
            print(call.__name__, error, flush=True)

    calls = [(runner.wait, 1), (runner.wait_for_task, 7), (next, runner.as_completed()), (runner.run, park)]
    runner.submit(park, task_id=7)
    threads = [threading.Thread(target=wait, args=call) for call in calls]
    for thread in threads:
        thread.start()
    """
    )
    message = "the runner was destroyed; initialize() starts it again"
    said = [f"{call} {message}" for call in ("next", "run", "wait", "wait_for_task")]
    assert (child.stderr, sorted(child.stdout.splitlines()), child.returncode) == ("", said, 0)


def test_waiting_daemon_threads_are_left_where_they_are(run_script: RunScript) -> None:
    """What they wrote, be it the traceback of what wait() raises, could abort the interpreter by now."""
    child = run_script(
        PRELUDE
        + """
    runner = started(park)
    runner.submit(park, task_id=7)
    blocked = threading.Semaphore(0)

    def wait(call, *args):
        sys.setprofile(notice)
        call(*args)

    def notice(frame, event, argument):
        if event == "c_call" and argument.__name__ == "acquire" and frame.f_code.co_name == "wait":
            sys.setprofile(None)
            blocked.release()

    calls = [(runner.wait, 1), (runner.wait_for_task, 7), (next, runner.as_completed()), (runner.run, park)]
    for call in calls:
        threading.Thread(target=wait, args=call, daemon=True).start()
    for call in calls:
        blocked.acquire()
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "", 0)


def test_a_handler_that_runs_at_exit_finds_a_runner_that_was_stopped(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    def use():
        print(runner.wait(1, timeout=0))
        for call, *args in ((runner.submit, park), (runner.run, park), (runner.wait, 1), (runner.resume,)):
            try:
                call(*args)
            except RunnerStoppedError as error:
                print(error)
        runner.destroy()
        print(runner)
        for start in (runner.initialize, initialized):
            try:
                start()
            except RuntimeError as error:
                print(error)

    atexit.register(use)
    runner = initialized()
    runner.submit(asyncio.sleep, 0, "kept")
    runner.run(asyncio.sleep, 0.01)
    """
    )
    stopped = "the runner was destroyed; initialize() starts it again\n"
    assert (child.stderr, child.returncode) == ("", 0)
    assert child.stdout == (
        "['kept']\n"
        + 4 * stopped
        + "<AsyncTaskRunner stopped pending=0 running=0 finished=0 max_queue_size=8>\n"
        + 2 * "the interpreter is exiting; nothing new can start\n"
    )


def test_a_handler_registered_first_may_destroy_the_runner(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    runner = started(park)
    atexit.register(runner.destroy)
    atexit.register(runner.__exit__, None, None, None)
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "", 0)


def test_a_runner_that_outlives_the_library_s_modules_is_collected_silently(run_script: RunScript) -> None:
    child = run_script(
        """
        import sys, threading, types

        early = types.ModuleType("early")  # goes late: a thread rests in one of its functions
        sys.modules["early"] = early
        exec("def rest():\\n import threading; threading.Event().wait()", early.__dict__)

        import asyncio
        from areal_core import AsyncTaskRunner

        runner = AsyncTaskRunner(8, loop_factory=asyncio.new_event_loop)
        runner.initialize()
        runner.destroy()

        class Keeper:
            def __init__(self):
                self.kept = runner

            def __del__(self):
                pass

        early.kept = [Keeper()]
        threading.Thread(target=early.rest, daemon=True).start()
        del runner, Keeper
        """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "", 0)


def test_a_thread_of_the_executor_holds_up_no_exit_after_a_destroy_that_left_things_behind(
    run_script: RunScript,
) -> None:
    before = time.monotonic()
    child = run_script(
        PRELUDE
        + """
    import logging
    logging.getLogger("areal_core").setLevel(logging.CRITICAL)
    runner = started(asyncio.to_thread, time.sleep, 30)
    entered = threading.Event()
    async def block():
        entered.set()
        time.sleep(30)
    runner.submit(block)
    entered.wait()
    runner.destroy(timeout=0.1)
    """
    )
    assert (without_slow_callbacks(child.stderr), child.stdout, child.returncode) == ("", "", 0)
    assert time.monotonic() - before < 15


def test_coroutines_that_refuse_to_be_closed_do_not_hold_up_the_exit_after_a_destroy(
    run_script: RunScript,
) -> None:
    """Collected, at exit too, such a one is closed again; and one that goes on without a loop never ends."""
    child = run_script(
        PRELUDE
        + """
    logging.getLogger("areal_core").setLevel(logging.CRITICAL)

    async def refuse():
        while True:
            try:
                await asyncio.Event().wait()
            except BaseException:
                pass

    async def register():
        register_loop_cleanup(refuse, timeout=0.01)

    runner = started(refuse)
    runner.run(register)
    runner.destroy(timeout=1.0)
    print(runner.stats().abandoned)
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "1\n", 0)


@pytest.mark.any_loop
def test_threads_that_are_blocked_have_one_second_together(make_runner: MakeRunner) -> None:
    """What the exit does with each life, here with less than a second."""
    blockades = [Blockade() for _ in range(3)]
    lives = []
    for blockade in blockades:
        runner = make_runner(leave=True)
        runner.submit(blockade.block)
        blockade.wait_until_entered()
        lives.append(life_of(runner))
    before = time.monotonic()
    for life in lives:
        life.leave(before + 0.05)
    for life in lives:
        life.join(before + 0.05)
    assert 0.05 <= time.monotonic() - before < 0.8
    for blockade, life in zip(blockades, lives, strict=True):
        blockade.lift()
        life.thread.thread.join(LONG_S)


def test_a_thread_that_does_something_for_a_call_is_waited_for(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    from areal_core._runner import exit_hook

    initialized().destroy()
    def work():
        assert threading.get_ident() != main
        asyncio.run(asyncio.sleep(0.2))
        print("done")
    main = threading.get_ident()
    exit_hook.run_aside(work)
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "done\n", 0)


def test_one_that_never_ends_keeps_the_exit_for_a_second_only(run_script: RunScript) -> None:
    began = time.monotonic()
    child = run_script(
        PRELUDE
        + """
    from areal_core._runner import exit_hook

    initialized().destroy()
    exit_hook.run_aside(threading.Event().wait)
    """
    )
    assert (child.stderr, child.returncode) == ("", 0)
    assert time.monotonic() - began < PROMPT_S


def test_past_the_exits_beginning_it_is_done_without_a_thread(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    from areal_core._runner import exit_hook

    initialized().destroy()
    main = threading.get_ident()
    atexit.register(exit_hook.run_aside, lambda: print(threading.get_ident() == main))
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "True\n", 0)
