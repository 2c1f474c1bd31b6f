"""What is done aside, in a short-lived thread that the interpreter's end waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from areal_core._runner import exit_hook
from children import RunScript

LONG_S = 10.0

pytestmark = pytest.mark.any_loop


class Work:
    """Begins, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        self.go_on.wait(LONG_S)
        self.ended.set()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Return work that is being done aside, and have it done in the end."""
    # What a Ctrl-C kept from starting in another test would be waited for here in vain.
    monkeypatch.setattr(exit_hook, "_aside", set())
    work = Work()
    exit_hook.run_aside(work)
    assert work.begun.wait(LONG_S)
    yield work
    work.go_on.set()
    exit_hook.join_aside(time.monotonic() + LONG_S)
    assert work.ended.is_set()
    assert not exit_hook._aside, "something is kept of what was done"


def joining(deadline: float) -> tuple[threading.Thread, threading.Event]:
    """Return a thread that joins what is done aside, and what is set when it has."""
    joined = threading.Event()

    def join() -> None:
        exit_hook.join_aside(deadline)
        joined.set()

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    return thread, joined


def test_it_is_done_in_another_thread_and_its_end_is_waited_for_by_all_who_want_to(work: Work) -> None:
    assert work.thread is not threading.current_thread()
    waiting = [joining(time.monotonic() + 5 * LONG_S) for _ in range(3)]
    assert not any(joined.is_set() for _, joined in waiting)
    work.go_on.set()
    for thread, joined in waiting:
        assert joined.wait(LONG_S)
        thread.join()
    assert work.ended.is_set()


@pytest.mark.parametrize("since_s", [0.0, 0.5, 5.0])
def test_past_the_deadline_nobody_waits_and_it_goes_on(work: Work, since_s: float) -> None:
    took = []
    for _ in range(3):  # the machine may stand still
        began = time.monotonic()
        exit_hook.join_aside(began - since_s)
        took.append(time.monotonic() - began)
    assert min(took) < 0.9
    assert not work.ended.is_set()


def test_a_deadline_that_passes_ends_the_wait(work: Work) -> None:
    thread, joined = joining(time.monotonic() + 0.05)
    assert joined.wait(LONG_S)
    thread.join()
    assert not work.ended.is_set()


def test_a_forked_child_waits_for_nothing_that_its_parent_does(run_script: RunScript) -> None:
    child = run_script(
        """
        import os, signal, threading, time, warnings
        from areal_core._runner import exit_hook

        # Since 3.12 Python warns of a fork beside threads, whatever they are.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        begun, go_on = threading.Event(), threading.Event()
        exit_hook.run_aside(lambda: (begun.set(), go_on.wait(20)))
        begun.wait(20)
        if not (pid := os.fork()):
            signal.alarm(10)
            exit_hook.join_aside(time.monotonic() + 60)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        go_on.set()
        """
    )
    assert (child.stdout, child.stderr) == ("7\n", "")


def test_it_is_known_whether_the_interpreter_is_exiting(run_script: RunScript) -> None:
    child = run_script(
        """
        import atexit
        from areal_core import AsyncTaskRunner
        from areal_core._runner import exit_hook

        atexit.register(lambda: print(exit_hook.is_over()))
        with AsyncTaskRunner(1):
            print(exit_hook.is_over())
        """
    )
    assert (child.stdout, child.stderr) == ("False\nTrue\n", "")
