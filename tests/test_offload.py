"""Calls that are made elsewhere than on the loop: where, in what order, until when, and what is left."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import pytest

import offload_jobs as jobs
import slow_to_import
from areal_core._offload import crew
from areal_core.offload import Place, WorkerDiedError, abandoned_threads, offloaded
from children import STRICT, RunScript, StartScript, without_slow_callbacks
from conftest import MakeRunner
from threaded_loops import gathered, threaded_loops, turns_until

T = TypeVar("T")

LONG_S = 20.0
SHORT_S = 0.2

MakeLoop = Callable[[], asyncio.AbstractEventLoop]


class Run(Protocol):
    def __call__(self, act: Coroutine[Any, Any, T]) -> T: ...


@pytest.fixture
def run(loop_factory: MakeLoop) -> Run:
    """Run a coroutine on a new loop, and close that."""

    def run(act: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(act)

    return run


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Give a pipe with a name, by which a worker process tells that it has come so far."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


async def told(fifo: Path) -> int:
    """Wait for what is written to *fifo*."""
    return int(await asyncio.to_thread(fifo.read_text))


def ended(pid: int) -> bool:
    """Wait for the end of process *pid*."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with open(descriptor, "rb", buffering=0, closefd=True):  # noqa: PTH123 - a descriptor
        return bool(select.select([descriptor], [], [], LONG_S)[0])


# -- what can be offloaded ----------------------------------------------------------------------------


def local() -> Callable[[], int]:
    def inner() -> int:
        return 1

    return inner


@pytest.mark.parametrize(
    ("fn", "to", "limit", "kind", "says"),
    [
        (1, "loop", None, TypeError, "fn=1 cannot be called; give a function"),
        (jobs.give, "threads", None, ValueError,
         "to='threads' is no place; give one of 'loop', 'thread', 'process'"),
        (jobs.give, "thread", 0, ValueError, "time_limit=0 leaves no time; give seconds"),
        (jobs.give, "loop", "1", TypeError, "time_limit='1' is not a number; give one"),
        (jobs.coroutine, "thread", None, TypeError,
         "offload_jobs.coroutine is async: only an event loop can run it; use to='loop'"),
        (functools.partial(jobs.coroutine), "process", None, TypeError,
         "offload_jobs.coroutine is async: only an event loop can run it; use to='loop'"),
        (jobs.AsyncScorer(), "thread", None, TypeError,
         "offload_jobs.AsyncScorer is async: only an event loop can run it; use to='loop'"),
        (lambda: 1, "process", None, TypeError, "define it with def at the top level of a module"),
        (local(), "process", None, TypeError, "test_offload.local.<locals>.inner cannot be sent to a worker"),
        (jobs.hidden, "process", None, TypeError, "define it with def at the top level of a module"),
        (functools.partial(jobs.give, threading.Lock()), "process", None, TypeError,
         "offload_jobs.give cannot be sent to a worker process: cannot pickle '_thread.lock' object"),
    ],
)  # fmt: skip
@pytest.mark.any_loop
def test_what_cannot_be_called_there_is_refused_at_once(
    loop_name: str, fn: Any, to: Place, limit: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        offloaded(fn, to=to, time_limit=limit)
    assert says in str(refused.value)


@pytest.mark.parametrize("to", ["loop", "thread", "process"])
def test_functions_methods_partials_and_objects_are_called_with_their_arguments(run: Run, to: Place) -> None:
    async def act() -> list[Any]:
        scorer = jobs.Scorer(2)
        return [
            await offloaded(jobs.give, to=to)(1),
            await offloaded(jobs.give, to=to)(a=1, b=[2]),
            await offloaded(functools.partial(jobs.give, b=3), to=to)(a=4),
            await offloaded(scorer, to=to)(5),
            await offloaded(scorer.method, to=to)(5),
            await offloaded(len, to=to)("four"),
        ]

    assert run(act()) == [1, {"a": 1, "b": [2]}, {"b": 3, "a": 4}, 7, 3, 4]


@pytest.mark.parametrize("to", ["loop", "thread", "process"])
def test_what_it_raises_is_raised(run: Run, to: Place) -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero") as raised:
        run(offloaded(jobs.divide, to=to)(0))
    text = "".join(traceback.format_exception(raised.value))
    assert "in inner_divide\n    return 1 / by" in text
    assert ("In the worker process:" in text) == (to == "process")


@pytest.mark.any_loop
def test_it_has_the_name_and_the_text_of_the_function(loop_name: str) -> None:
    call = offloaded(jobs.tell_and_stay)
    assert (call.__name__, call.__doc__) == ("tell_and_stay", jobs.tell_and_stay.__doc__)


# -- on the loop --------------------------------------------------------------------------------------


def test_on_the_loop_what_it_returns_is_awaited(run: Run) -> None:
    async def act() -> None:
        assert await offloaded(jobs.coroutine, to="loop")() == 1
        assert await offloaded(jobs.give_coroutine, to="loop")() == 1
        assert await offloaded(threading.get_ident, to="loop")() == threading.get_ident()

    run(act())


def test_on_the_loop_an_awaitable_is_cancelled_at_the_time_limit(run: Run) -> None:
    with pytest.raises(TimeoutError) as raised:
        run(offloaded(asyncio.sleep, to="loop", time_limit=0.01)(LONG_S))
    assert str(raised.value) == "asyncio.tasks.sleep took longer than time_limit=0.01 s: it was cancelled"


def test_on_the_loop_a_timeout_of_its_own_stays_its_own(run: Run) -> None:
    async def fail() -> NoReturn:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match=r"^mine$"):
        run(offloaded(fail, to="loop", time_limit=LONG_S)())


# -- in threads ---------------------------------------------------------------------------------------


def test_a_thread_has_the_context_of_the_caller(run: Run) -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def with_value(value: str) -> tuple[str, int]:
        variable.set(value)
        return await offloaded(lambda: (variable.get(), threading.get_ident()))()

    async def act() -> None:
        got = await asyncio.gather(*map(with_value, "abc"))
        assert [value for value, _ in got] == ["a", "b", "c"]
        assert threading.get_ident() not in {thread for _, thread in got}

    run(act())


def test_no_more_calls_run_at_once_than_there_are_threads(run: Run) -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def note(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        os.sched_yield()
        with lock:
            running -= 1
        return number

    async def act(count: int) -> list[int]:
        return list(await asyncio.gather(*(offloaded(note)(number) for number in range(count))))

    assert run(act(500)) == list(range(500))
    assert 1 <= most <= crew._THREADS


@pytest.mark.parametrize("to", ["thread", "process"])
def test_calls_begin_in_the_order_in_which_they_are_made(
    run: Run, monkeypatch: pytest.MonkeyPatch, to: Place
) -> None:
    monkeypatch.setattr(crew, "_THREADS", 1)
    monkeypatch.setattr(crew, "_PROCESSES", 1)

    async def act() -> list[int]:
        return list(await asyncio.gather(*(offloaded(jobs.count, to=to)() for _ in range(100))))

    counts = run(act())
    assert counts == list(range(counts[0], counts[0] + 100))


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit(3), asyncio.CancelledError("x")], ids=repr)
def test_an_odd_error_in_a_thread_reaches_the_caller_and_nobody_else(run: Run, error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def act() -> BaseException | None:
        try:
            await offloaded(fail)()
        except BaseException as raised:
            return raised
        return None

    raised = run(act())
    assert raised is error or isinstance(raised, RuntimeError)


def test_a_coroutine_from_a_thread_is_refused(run: Run) -> None:
    give: Callable[[], Any] = jobs.give_coroutine
    with pytest.raises(TypeError, match=r"give_coroutine returned a coroutine, .* use to='loop'"):
        run(offloaded(give)())


def test_a_thread_over_time_is_abandoned_and_takes_no_turn_away(run: Run) -> None:
    go = threading.Event()

    async def act() -> None:
        stuck = offloaded(go.wait, time_limit=0.01)
        before = abandoned_threads()
        errors = await gathered(*(stuck() for _ in range(crew._THREADS + 1)))
        assert [type(error) for error in errors] == [TimeoutError] * len(errors)
        assert "wait took longer than time_limit=0.01 s: its thread goes on, one of " in str(errors[0])
        assert abandoned_threads() - before == len(errors)
        assert await offloaded(jobs.give)(1) == 1

    try:
        run(act())  # closes the loop as well, with all of them there
        assert abandoned_threads() > crew._THREADS
        left = [thread for thread in threading.enumerate() if thread.name == "areal-core-offload"]
    finally:
        go.set()
    for thread in left:
        thread.join(LONG_S)
    assert abandoned_threads() == 0


def test_an_abandoned_thread_that_comes_back_is_counted_no_more(run: Run) -> None:
    async def act() -> None:
        go = threading.Event()
        task = asyncio.ensure_future(offloaded(go.wait)())
        assert await offloaded(jobs.give)(1) == 1  # the other one has begun
        task.cancel()
        assert [type(one) for one in await gathered(task)] == [asyncio.CancelledError]
        assert abandoned_threads() == 1
        go.set()
        await turns_until(lambda: abandoned_threads() == 0)

    run(act())


def test_waiting_for_a_turn_is_not_in_the_time_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_THREADS", 1)
    monkeypatch.setattr(crew, "_PROCESSES", 1)

    async def act(to: Place) -> list[int | BaseException]:
        call = offloaded(jobs.after, to=to, time_limit=0.25)
        return await gathered(*(call(0.1, number) for number in range(5)))

    assert run(act("thread")) == run(act("process")) == list(range(5))


# -- in processes -------------------------------------------------------------------------------------


def test_hundreds_of_calls_share_the_worker_processes(run: Run) -> None:
    async def act() -> tuple[list[Any], set[int]]:
        values = await asyncio.gather(*(offloaded(jobs.give, to="process")(n) for n in range(300)))
        pids = await asyncio.gather(*(offloaded(jobs.pid, to="process")() for _ in range(50)))
        return values, set(pids)

    values, pids = run(act())
    assert values == list(range(300))
    assert 1 <= len(pids) <= (os.cpu_count() or 1)
    assert os.getpid() not in pids
    for pid in pids:  # ended and waited for when the loop was closed
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_imports_what_its_calls_need_and_no_more(run: Run) -> None:
    async def act() -> tuple[list[str], bool]:
        modules = await offloaded(jobs.modules, to="process")()
        return modules, await offloaded(jobs.in_main_thread, to="process")()

    modules, in_main_thread = run(act())
    assert "offload_jobs" in modules
    assert not {"areal_core", "asyncio", "numpy", "pytest", "test_offload"} & set(modules)
    assert in_main_thread


def test_a_call_over_time_is_killed_with_what_it_started(run: Run, fifo: Path) -> None:
    async def act() -> int:
        call = offloaded(jobs.start_another_and_stay, to="process", time_limit=1.0)
        [error], started = await asyncio.gather(gathered(call(str(fifo))), told(fifo))
        assert type(error) is TimeoutError
        assert str(error) == (
            "offload_jobs.start_another_and_stay took longer than time_limit=1 s: its process was killed"
        )
        assert await offloaded(jobs.give, to="process")(1) == 1
        return started

    assert ended(run(act()))


def test_importing_is_not_in_the_time_limit(run: Run) -> None:
    assert run(offloaded(slow_to_import.give, to="process", time_limit=0.3)(1)) == 1


def test_cancelling_frees_the_worker(run: Run, fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_PROCESSES", 1)

    async def act() -> None:
        task = asyncio.ensure_future(offloaded(jobs.tell_and_stay, to="process")(str(fifo)))
        waiting = asyncio.ensure_future(offloaded(jobs.pid, to="process")())
        busy = await told(fifo)
        task.cancel()
        assert await waiting != busy
        assert task.cancelled()
        assert await asyncio.to_thread(ended, busy)

    run(act())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (3, "exited with status 3"),
        (0, "exited with status 0"),
        (-signal.SIGKILL, "was killed by SIGKILL, perhaps for lack of memory"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
    ],
)
def test_a_worker_that_dies_fails_its_call_alone(run: Run, how: int, says: str) -> None:
    async def act() -> list[Any]:
        give, die = offloaded(jobs.give, to="process"), offloaded(jobs.die, to="process")
        return await gathered(give(1), die(how), give(2), give(3), give(4))

    one, died, *others = run(act())
    assert [one, *others] == [1, 2, 3, 4]
    assert type(died) is WorkerDiedError
    assert str(died) == f"the worker process that ran offload_jobs.die {says}"


def test_a_worker_that_dies_with_a_fork_alive_is_noticed(run: Run, fifo: Path) -> None:
    os.mkfifo(f"{fifo}-2")

    async def act() -> None:
        call = offloaded(jobs.die_with_a_fork_alive, to="process")(str(fifo))
        [died], _ = await asyncio.gather(gathered(call), lets_it_die())
        assert isinstance(died, WorkerDiedError)

    async def lets_it_die() -> None:
        forked.append(await told(fifo))
        await asyncio.to_thread(Path(f"{fifo}-2").write_text, "now")

    forked: list[int] = []
    run(act())
    assert ended(forked[0])


def test_a_worker_that_died_while_idle_is_replaced(run: Run) -> None:
    async def act() -> None:
        pid = offloaded(jobs.pid, to="process")
        os.kill(first := await pid(), signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert await pid() != first

    run(act())


@pytest.mark.parametrize(
    ("fn", "kind", "says"),
    [
        (jobs.fail_oddly, RuntimeError, "OddError: a thing at a place"),
        (jobs.fail_unpicklably, RuntimeError, "UnpicklableError: holds a lock"),
        (jobs.give_lock, TypeError, "what was returned, a lock, cannot be pickled"),
        (jobs.give_coroutine, TypeError, "a coroutine was returned, .* have it called on the loop"),
        (functools.partial(jobs.leave, 3), SystemExit, r"^3\n"),
    ],
)
def test_what_cannot_come_back_is_told_and_the_worker_goes_on(
    run: Run, fn: Callable[[], Any], kind: type[BaseException], says: str
) -> None:
    async def act() -> None:
        pid = offloaded(jobs.pid, to="process")
        before = await pid()
        with pytest.raises(kind, match=says) as raised:
            await offloaded(fn, to="process")()
        assert "In the worker process:" in raised.value.__notes__[0]
        assert await pid() == before

    run(act())


def test_a_worker_whose_output_cannot_be_flushed_goes_on(run: Run) -> None:
    async def act() -> None:
        pid = offloaded(jobs.pid, to="process")
        before = await pid()
        await offloaded(jobs.spoil_output, to="process")()
        assert await pid() == before

    run(act())


def test_an_argument_that_cannot_go_there_is_told(run: Run) -> None:
    async def act() -> None:
        give = offloaded(jobs.give, to="process")
        with pytest.raises(TypeError, match=r"a call of offload_jobs\.give cannot be sent .*_thread\.lock"):
            await give(threading.Lock())
        assert await give(1) == 1

    run(act())


def test_each_loop_has_workers_of_its_own(loop_factory: MakeLoop) -> None:
    pid = offloaded(jobs.pid, to="process")
    with threaded_loops(loop_factory, 2) as (one, two):
        pids = {one.run(pid()), two.run(pid())}
        one.close()
        assert len(pids) == 2
        assert two.run(pid()) in pids


def test_the_workers_of_a_runner_end_with_it(make_runner: MakeRunner, fifo: Path) -> None:
    runner = make_runner()
    runner.submit(offloaded(jobs.pid, to="process"))
    runner.submit(offloaded(jobs.tell_and_stay, to="process"), str(fifo))
    pids: list[Any] = [*runner.wait(1, timeout=LONG_S), int(fifo.read_text())]
    runner.destroy()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# -- programs -----------------------------------------------------------------------------------------

PROGRAM = """
    import os, sys
    import offload_jobs as jobs
    from areal_core import AsyncTaskRunner
    from areal_core.offload import offloaded

    def double(number):
        return 2 * number

    def main():
        with AsyncTaskRunner(10) as runner:
            runner.submit(offloaded(double, to="process"), 4)
            runner.submit(offloaded(jobs.give, to="process"), 5)
            for result in sorted(runner.as_completed(), key=lambda result: result.task_id):
                print(result.data, result.error)
"""

HERE = {
    "PYTHONPATH": os.pathsep.join([str(Path(jobs.__file__).parent), str(Path(jobs.__file__).parent.parent)])
}


@pytest.mark.any_loop
def test_functions_of_the_program_itself_can_be_called_in_processes(run_script: RunScript) -> None:
    script = run_script(PROGRAM + '\n    if __name__ == "__main__":\n        main()\n', env=HERE)
    assert (script.returncode, script.stdout, script.stderr) == (0, "8 None\n5 None\n", "")


@pytest.mark.any_loop
def test_a_program_that_would_start_itself_again_and_again_is_told_what_to_do(run_script: RunScript) -> None:
    script = run_script(PROGRAM + "\n    main()\n", env=HERE)
    assert script.returncode == 0
    assert "the program was started again in a worker process" in script.stderr + script.stdout
    assert "5 None\n" in script.stdout


@pytest.mark.any_loop
def test_what_a_program_without_a_file_defines_is_refused(run_script: RunScript) -> None:
    script = run_script(
        """
        import subprocess, sys
        source = '''
        from areal_core.offload import offloaded
        def double(number): return 2 * number
        offloaded(double)
        try:
            offloaded(double, to="process")
        except TypeError as error:
            print(error)
        '''
        subprocess.run([sys.executable, "-c", __import__("textwrap").dedent(source)], check=True)
        """
    )
    assert "double is defined in a program that is no file" in script.stdout
    assert script.stderr == ""


@pytest.mark.any_loop
@pytest.mark.parametrize("command", [["-m", "package"], ["package"]], ids=" ".join)
def test_what_a_main_file_of_a_package_defines_is_refused(tmp_path: Path, command: list[str]) -> None:
    """No process runs such a file again: it has no ``if __name__ == "__main__"``, as a rule."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(
        "from areal_core.offload import offloaded\n"
        "def double(number): return 2 * number\n"
        "offloaded(double)\n"
        "try:\n"
        "    offloaded(double, to='process')\n"
        "except TypeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, *STRICT, *command],
        cwd=tmp_path,
        env={**os.environ, **HERE},
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=True,
    )
    assert "double is defined in a program that is no file, or a __main__.py" in done.stdout
    assert done.stderr == ""


@pytest.mark.any_loop
def test_what_a_call_prints_is_there_when_it_has_returned(run_script: RunScript) -> None:
    script = run_script(
        """
        import asyncio
        import offload_jobs as jobs
        from areal_core.offload import offloaded

        async def act():
            for number in range(2):
                await offloaded(jobs.say, to="process")(number)
                print("program:", number, flush=True)

        asyncio.run(act())
        """,
        env={**HERE, "PYTHONUNBUFFERED": ""},
    )
    assert script.stdout == "0\nprogram: 0\n1\nprogram: 1\n"
    assert script.stderr == "0\n1\n"


def test_a_worker_whose_reply_was_read_in_part_is_given_up(run_script: RunScript) -> None:
    script = run_script(
        """
        import asyncio, importlib, os, resource
        from pathlib import Path
        from areal_core.offload import offloaded

        def limit(more):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

        async def act():
            pid, make = offloaded(os.getpid, to="process"), offloaded(bytes, to="process")
            before = await pid()
            await make(1)
            limit(60_000_000)
            try:
                await make(100_000_000)
            except MemoryError:
                print("too much")
            limit(8_000_000_000)
            print(await asyncio.wait_for(make(b"seven"), 10), await pid() != before)

        loops = importlib.import_module(os.environ["AREAL_TEST_LOOP"])
        with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
            runner.run(act())
        """,
    )
    assert (script.stdout, script.stderr) == ("too much\nb'seven' True\n", "")


@pytest.mark.parametrize(
    "end",
    [
        "return",
        "raise KeyboardInterrupt",
        "os.kill(os.getpid(), 9)",
        "os.fork() and os.kill(os.getpid(), 9), signal.pause()",
    ],
    ids=["it ends", "Ctrl-C", "it is killed", "it is killed and a fork of it lives"],
)
def test_nothing_outlives_the_program(start_script: StartScript, fifo: Path, end: str) -> None:
    script = start_script(
        f"""
        import importlib, os, signal, threading
        import offload_jobs as jobs
        from areal_core import AsyncTaskRunner
        from areal_core.offload import offloaded

        def main():
            global runner  # one that is given up unclosed is complained of
            loops = importlib.import_module(os.environ["AREAL_TEST_LOOP"])
            runner = AsyncTaskRunner(10, loop_factory=loops.new_event_loop)
            runner.initialize()
            runner.submit(offloaded(jobs.pid, to="process"))
            runner.submit(offloaded(jobs.tell_and_stay, to="process"), {str(fifo)!r})
            runner.submit(offloaded(threading.Event().wait))
            print(*runner.wait(1), flush=True)
            input()
            {end}

        if __name__ == "__main__":
            main()
        """,
        env=HERE,
        flags=("-X", "dev", *(() if "fork" in end else ("-W", "error"))),
    )
    busy = int(fifo.read_text())
    assert script.stdin is not None and script.stdout is not None and script.stderr is not None
    idle = int(script.stdout.readline())
    script.stdin.write("\n")
    script.stdin.flush()
    assert script.wait(LONG_S) is not None
    assert ended(busy)
    assert ended(idle)
    if "fork" not in end:  # that holds the pipe open
        errors = without_slow_callbacks(script.stderr.read())
        assert errors == "" or end.startswith("raise")
        assert "Warning" not in errors


LEAVES_NOTHING = """
    import asyncio, importlib, os, random, threading
    import offload_jobs as jobs
    from areal_core.offload import offloaded

    async def cancel_while_a_worker_starts():
        call = offloaded(jobs.give, to="process")
        for turns in range(4):
            task = asyncio.ensure_future(call(1))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert await call(2) == 2

    async def end_at_any_moment():
        calls = [offloaded(jobs.after, to="process", time_limit=limit) for limit in (None, 0.004)]
        for _ in range(5):
            tasks = []
            for _ in range(8):
                seconds = chance.choice([0, 0.002, 0.004, 0.006])
                tasks.append(task := asyncio.ensure_future(chance.choice(calls)(seconds, 1)))
                if chance.random() < 0.5:
                    asyncio.get_running_loop().call_later(0.02 * chance.random(), task.cancel)
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                assert end == 1 or type(end) in (TimeoutError, asyncio.CancelledError), end
        assert await calls[0](0, 2) == 2

    def run(act):
        loops = importlib.import_module(os.environ["AREAL_TEST_LOOP"])
        with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
            runner.run(act())

    chance = random.Random(1)
    run(offloaded(jobs.give, to="process"))  # what is opened once and for all
    before = os.listdir("/proc/self/fd")
    run(cancel_while_a_worker_starts)
    run(end_at_any_moment)
    assert os.listdir("/proc/self/fd") == before
    assert threading.active_count() == 1
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("nothing is left")
"""


def test_limits_and_cancellations_at_any_moment_leave_nothing(run_script: RunScript) -> None:
    script = run_script(LEAVES_NOTHING, env=HERE)
    assert (script.returncode, script.stdout, script.stderr) == (0, "nothing is left\n", "")


@pytest.mark.any_loop
def test_a_program_may_still_choose_how_multiprocessing_starts(run_script: RunScript) -> None:
    script = run_script(
        """
        import asyncio, multiprocessing
        import offload_jobs as jobs
        from areal_core.offload import offloaded

        assert asyncio.run(offloaded(multiprocessing.get_start_method, to="process")(allow_none=True)) is None
        multiprocessing.set_start_method("spawn")
        print(asyncio.run(offloaded(multiprocessing.get_start_method, to="process")(allow_none=True)))
        """,
        env=HERE,
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "spawn\n", "")
