"""What can keep a runner from starting: initialize() says so at once, and a later one works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import RunnerStoppedError
from children import RunScript
from doors import give

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def works(runner: AsyncTaskRunner[Any]) -> bool:
    with runner:
        runner.submit(give, 7)
        return runner.wait(1, timeout=10) == [7]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize(
    "error", [OSError(24, "too many"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_what_the_loop_factory_raises_comes_out_and_nothing_is_left(
    loop_factory: LoopFactory, error: BaseException
) -> None:
    working = False

    def make_loop() -> asyncio.AbstractEventLoop:
        if not working:
            raise error
        return loop_factory()

    runner = AsyncTaskRunner[int](8, loop_factory=make_loop)
    threads, open_before = set(threading.enumerate()), descriptors()
    for _ in range(3):
        with pytest.raises(type(error)) as raised:
            runner.initialize()
        assert raised.value is error
    assert set(threading.enumerate()) == threads
    assert descriptors() == open_before
    assert runner.stats().state == "new"
    with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized"):
        runner.submit(give, 1)
    runner.destroy()
    working = True
    assert works(runner)


@pytest.mark.parametrize("what", [None, object(), 7])
def test_a_loop_factory_that_gives_no_loop_is_named(loop_factory: LoopFactory, what: object) -> None:
    runner = AsyncTaskRunner[int](8, loop_factory=lambda: what)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=f"^loop_factory gave {what!r}, which is no event loop; "):
        runner.initialize()
    assert runner.stats().state == "new"


def test_a_thread_that_cannot_be_started_is_the_callers_error(loop_factory: LoopFactory) -> None:
    runner = AsyncTaskRunner[int](8, loop_factory=loop_factory)
    threads, open_before = set(threading.enumerate()), descriptors()
    threading.stack_size(2**46)  # no machine has that
    try:
        with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
            runner.initialize()
    finally:
        threading.stack_size(0)
    assert set(threading.enumerate()) == threads
    assert descriptors() == open_before
    assert runner.stats().state == "new"
    assert works(runner)


DESCRIPTORS = """
    import importlib, os, resource, sys, threading
    from areal_core import AsyncTaskRunner

    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

    async def give(value):
        return value

    def start_with(spare):
        runner = AsyncTaskRunner(8, loop_factory=new_loop)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
        try:
            runner.initialize()
            outcome = "started"
        except OSError as error:
            outcome = str(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert threading.active_count() == 1 + (outcome == "started")
        runner.destroy()
        with runner:
            runner.submit(give, 7)
            assert runner.wait(1, timeout=10) == [7]
        print(spare, outcome, flush=True)

    for spare in range(13):
        # In a process that has never had a loop: that is the one which libuv would abort.
        pid = os.fork()
        if not pid:
            start_with(spare)
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            print(spare, "ended the process:", status)
"""


def test_too_few_descriptors_are_an_error_with_the_numbers_and_never_the_end_of_the_process(
    run_script: RunScript,
) -> None:
    child = run_script(DESCRIPTORS)
    assert (child.stderr, child.returncode) == ("", 0)
    assert child.stdout.splitlines() == [
        f"{spare} [Errno 24] an event loop needs 8 spare file descriptors and only {spare} are left; "
        "close some, or raise the limit (ulimit -n)"
        for spare in range(8)
    ] + [f"{spare} started" for spare in range(8, 13)]


# -- uvloop, or not ---------------------------------------------------------------------------------

WHICH_LOOP = """
    import asyncio, sys
    from areal_core import AsyncTaskRunner

    async def which_loop():
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]

    with AsyncTaskRunner(8) as runner:
        runner.submit(which_loop)
        print(runner.wait(1, timeout=10))
"""

NO_UVLOOP = {
    "is not installed": (
        None,
        "ModuleNotFoundError: import of uvloop halted; None in sys.modules",
    ),
    "was built for another Python": (
        "raise ImportError('undefined symbol: _PyInterpreterState_Get')",
        "ImportError: undefined symbol: _PyInterpreterState_Get",
    ),
    "does not find its library": (
        "raise OSError('libuv.so.1: cannot open shared object file')",
        "OSError: libuv.so.1: cannot open shared object file",
    ),
    "cannot be read": (
        "def new_event_loop(:",
        "SyntaxError: invalid syntax (uvloop.py, line 1)",
    ),
    "is something else": (
        "",
        "AttributeError: module 'uvloop' has no attribute 'new_event_loop'",
    ),
    "makes no loop": (
        "def new_event_loop():\n    raise RuntimeError('not on this kernel')",
        "RuntimeError: not on this kernel",
    ),
}


@pytest.mark.any_loop
@pytest.mark.parametrize("how", NO_UVLOOP)
def test_where_uvloop_does_not_work_asyncio_does_and_one_line_tells(
    run_script: RunScript, tmp_path: Path, how: str
) -> None:
    module, error = NO_UVLOOP[how]
    hide = "sys.modules['uvloop'] = None" if module is None else ""
    if module is not None:
        (tmp_path / "uvloop.py").write_text(module + "\n")  # beside the script, so first on its path
    child = run_script(WHICH_LOOP.replace("import asyncio, sys", f"import asyncio, sys; {hide}"))
    assert (child.stdout, child.returncode) == ("['asyncio']\n", 0)
    assert child.stderr == f"uvloop_not_used error={error} instead=asyncio\n"


@pytest.mark.any_loop
def test_where_uvloop_works_it_is_used_without_a_word(run_script: RunScript) -> None:
    child = run_script(WHICH_LOOP)
    assert (child.stderr, child.stdout, child.returncode) == ("", "['uvloop']\n", 0)


@pytest.mark.any_loop
def test_a_program_that_brings_its_own_loop_needs_no_uvloop(run_script: RunScript) -> None:
    child = run_script("""
    import asyncio, sys
    sys.modules["uvloop"] = None
    from areal_core import AsyncTaskRunner

    with AsyncTaskRunner(8, loop_factory=asyncio.new_event_loop) as runner:
        print(runner.run(asyncio.sleep, 0, "works"))
    """)
    assert (child.stderr, child.stdout, child.returncode) == ("", "works\n", 0)
