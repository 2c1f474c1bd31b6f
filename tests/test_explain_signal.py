"""A signal prints explanations, also of a program whose main thread hangs, and gets in nobody's way."""

from __future__ import annotations

import select
import signal
import subprocess

import pytest

from areal_core.explain import install_explain_signal
from children import RunScript, StartScript, say_that_no_more_come, without_slow_callbacks
from conftest import MakeExecutor
from doors import in_thread
from executor_tools import Playing, park
from test_executor_process import PRELUDE

PROGRAM = (
    PRELUDE
    + """
    from areal_core import install_explain_signal

    def say(text):
        os.write(1, text.encode() + b"\\n")
    """
)


def stderr_until(child: subprocess.Popen[str], text: str) -> str:
    """Return what *child* prints to stderr, up to the line with *text*."""
    assert child.stderr is not None
    lines = ""
    for line in child.stderr:
        lines += line
        if text in line:
            return lines
    raise AssertionError(f"no line with {text!r}: {lines}")


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def end(child: subprocess.Popen[str]) -> None:
    """Let *child* end by itself, which it does when it is sent SIGTERM."""
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=30)
    assert "Traceback" not in stderr
    assert child.returncode == 0


def answer_of(child: subprocess.Popen[str]) -> str:
    """Send SIGUSR1 until *child* prints a line; return it.

    One that comes just before the main thread blocks is seen by Python when that wakes up, not before.
    """
    assert child.stdout is not None
    while True:
        child.send_signal(signal.SIGUSR1)
        if select.select([child.stdout], [], [], 1.0)[0]:
            return line_of(child)


def test_a_program_that_hangs_in_wait_explains_itself(start_script: StartScript) -> None:
    child = start_script(
        PROGRAM
        + """
    def leave(signum, frame):
        executor.destroy()
        other.destroy()
        sys.exit()
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGUSR1, lambda signum, frame: say(f"chained {signum == signal.SIGUSR1}"))
    install_explain_signal(signal.SIGUSR1)
    executor, other = started(park), initialized()
    other.pause()
    other.submit(1, Playing(answer))
    say("ready")
    executor.wait(1)
    """
    )
    assert line_of(child) == "ready"
    printed = ""
    while "a caller waits for any 1 rollouts to end: 0 have" not in printed:  # it was about to
        assert answer_of(child) == "chained True"
        printed = stderr_until(child, "  paused: pause() was called")
        assert "script.py" in printed
        assert " park\n" in printed
    end(child)


def test_it_comes_through_while_the_main_thread_holds_the_executors_lock(start_script: StartScript) -> None:
    child = start_script(
        PROGRAM
        + """
    signal.signal(signal.SIGTERM, lambda signum, frame: released.set())
    released = threading.Event()
    executor = started(park)
    install_explain_signal(signal.SIGUSR1, executor)

    def look(core):
        say("looking")
        while not released.wait(0.05):
            pass

    executor._shift.desk.read(look)
    executor.destroy()
    """
    )
    assert line_of(child) == "looking"
    child.send_signal(signal.SIGUSR1)
    assert " park\n" in without_slow_callbacks(stderr_until(child, " park"))
    end(child)


def test_the_handler_returns_whatever_lock_the_interrupted_thread_holds(run_script: RunScript) -> None:
    done = run_script(
        PROGRAM
        + """
    lock = threading.Lock()

    class Locked(Engine):
        @property
        def servers(self):
            with lock:
                say("looked")

    executor = initialized(Locked())
    install_explain_signal(signal.SIGUSR1)
    with lock:
        signal.raise_signal(signal.SIGUSR1)
        say("returned")
    executor.explain()
    executor.destroy()
    """
    )
    assert done.stdout.splitlines()[:2] == ["returned", "looked"]
    assert done.returncode == 0


def test_it_comes_while_the_main_thread_looks_a_thousand_times(start_script: StartScript) -> None:
    child = start_script(
        PROGRAM
        + """
    executor = started(park)
    calls = []
    signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
    undo = install_explain_signal(signal.SIGUSR1)
    say("ready")
    for number in range(1, 21):
        while len(calls) < number:
            executor.ledger
            executor.get_capacity()
        say(f"{number}")
    undo()
    os.read(0, 1)
    executor.destroy()
    """
    )
    assert line_of(child) == "ready"
    for number in range(1, 21):
        child.send_signal(signal.SIGUSR1)
        assert line_of(child) == str(number)
    for _ in range(20):
        stderr_until(child, "no more start:")
    say_that_no_more_come(child)
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_with_no_executor_it_says_so_and_is_put_back(run_script: RunScript) -> None:
    done = run_script(
        PROGRAM
        + """
    was = signal.getsignal(signal.SIGUSR1)
    undo = install_explain_signal(signal.SIGUSR1)
    initialized().destroy()
    signal.raise_signal(signal.SIGUSR1)
    undo()
    assert signal.getsignal(signal.SIGUSR1) is was is signal.SIG_DFL
    """
    )
    assert (done.stderr, done.returncode) == ("no executor runs\n", 0)


def test_a_handler_that_came_later_stays_when_it_is_put_back(run_script: RunScript) -> None:
    done = run_script(
        PROGRAM
        + """
    initialized().destroy()  # the end of the program waits from now on for what is printed
    undo = install_explain_signal(signal.SIGUSR1)
    ours = signal.getsignal(signal.SIGUSR1)

    def theirs(signum, frame):
        say("theirs")
        ours(signum, frame)

    signal.signal(signal.SIGUSR1, theirs)
    undo()
    assert signal.getsignal(signal.SIGUSR1) is theirs
    signal.raise_signal(signal.SIGUSR1)
    """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("theirs\n", "", 0)


def test_a_forked_child_says_that_none_is_its_own(run_script: RunScript) -> None:
    done = run_script(
        PROGRAM
        + """
    executor = started(park)
    install_explain_signal(signal.SIGUSR1)
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGUSR1)
        from areal_core._runner import exit_hook
        exit_hook.join_aside(time.monotonic() + 10)
        os._exit(0)
    os.waitpid(child, 0)
    executor.destroy()
    """,
        flags=("-X", "dev"),
    )
    assert "no executor runs\n" in done.stderr
    assert done.returncode == 0


@pytest.mark.any_loop
def test_it_is_for_the_main_thread_only(loop_name: str) -> None:
    with pytest.raises(ValueError, match="in the main thread only"):
        in_thread(install_explain_signal, signal.SIGUSR1)


@pytest.mark.any_loop
def test_what_is_no_executor_or_no_signal_is_refused(loop_name: str) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(TypeError, match="executor is a int"):
        install_explain_signal(signal.SIGUSR1, 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="signal"):
        install_explain_signal(10_000)
    with pytest.raises(OSError, match="Invalid"):
        install_explain_signal(signal.SIGKILL)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_signal_keeps_no_executor_alive(make_executor: MakeExecutor) -> None:
    import gc
    import weakref

    executor = make_executor()
    executor.submit(1, Playing(lambda _: park()))
    undo = install_explain_signal(signal.SIGUSR1, executor)
    try:
        handler = signal.getsignal(signal.SIGUSR1)
        assert executor not in gc.get_referents(handler)
        assert weakref.ref(executor) in vars(handler).values()
    finally:
        undo()
