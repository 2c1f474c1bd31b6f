"""Threads that a caller starts, and that end soon."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

import pytest

from areal_core._runner import passing
from areal_core._runner.answer import Answer
from areal_core._runner.gate import Gate
from areal_core._runner.passing import start_passing, to_the_end
from children import RunScript
from doors import LONG_S

pytestmark = pytest.mark.any_loop


def test_one_that_has_ended_is_freed_in_a_later_one_however_long_others_last() -> None:
    freed_in: list[int] = []
    leaves = threading.Event()

    def run_one() -> weakref.finalize[..., threading.Thread]:
        thread = start_passing(lambda: None, "short")
        assert thread is not None
        thread.join()
        return weakref.finalize(thread, lambda: freed_in.append(threading.get_ident()))

    def last() -> None:
        leaves.wait(LONG_S)

    lasting = start_passing(last, "lasting")
    first = run_one()
    assert not freed_in
    second = run_one()
    assert (first.alive, second.alive) == (False, True)
    assert len(freed_in) == 1 and threading.get_ident() not in freed_in
    leaves.set()
    assert lasting is not None
    lasting.join()


def test_where_there_is_no_thread_to_be_had_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    before = list(passing._started)
    assert start_passing(lambda: None, "none") is None
    assert list(passing._started) == before


def test_what_a_signal_handler_raises_while_it_starts_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    start, done = threading.Thread.start, threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise RuntimeError("of a handler")

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(RuntimeError, match="of a handler"):
        start_passing(done.set, "goes on")
    assert done.wait(LONG_S)


def test_it_has_its_name_and_the_program_waits_for_it(run_script: RunScript) -> None:
    done = run_script(
        """
        import threading
        from areal_core._runner.passing import start_passing

        def work():
            assert threading.main_thread().join(10) is None  # which has ended, but for waiting
            print(threading.current_thread().name)

        start_passing(work, "at work")
        """
    )
    assert done.stdout == "at work\n"


class Ended(threading.Thread):
    """One that has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.start()
        self.join()
        self.looked = 0

    def is_alive(self) -> bool:
        self.looked += 1
        return False


class ForgottenMeanwhile(Ended):
    def is_alive(self) -> bool:
        if not self.looked:
            passing._started.remove(self)
        return super().is_alive()


class Moving(Ended):
    """One that runs on, while another thread moves those that are kept."""

    def is_alive(self) -> bool:
        return True

    def __eq__(self, _other: object) -> bool:
        passing._started.rotate()
        return False

    __hash__ = threading.Thread.__hash__


def test_two_that_start_at_once_may_both_forget_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, moved, done = ForgottenMeanwhile(), Ended(), threading.Event()
    for kept in ([gone], [Moving(), moved]):
        monkeypatch.setattr(passing, "_started", deque(kept))
        done.clear()
        thread = start_passing(done.set, "looks")
        assert thread is not None
        thread.join()
        assert done.is_set()
    assert gone.looked and moved.looked


def test_what_is_done_to_the_end_is_done_in_a_thread_of_its_name_or_here_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def name() -> str:
        return threading.current_thread().name

    assert to_the_end("elsewhere", name) == "elsewhere"
    with pytest.raises(LookupError, match="not there"):
        to_the_end("fails", _fail)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert to_the_end("elsewhere", name) == name()
    with pytest.raises(LookupError, match="not there"):
        to_the_end("fails", _fail)


def test_what_is_done_to_the_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wait, held = Gate.wait, list[Callable[[], None]]()

    def start(target: Callable[[], None], _name: str) -> threading.Thread:
        held.append(target)
        return threading.current_thread()

    def noticed(gate: Gate, *options: float | None) -> bool:
        held.pop()()  # only now
        return wait(gate, *options)

    monkeypatch.setattr(passing, "start_passing", start)
    monkeypatch.setattr(Gate, "wait", noticed)
    assert to_the_end("waits", lambda: 3) == 3


def _fail() -> None:
    raise LookupError("not there")


def test_an_answer_opens_its_gate_when_it_is_there() -> None:
    three, none = Answer(lambda: 3), Answer(_fail)
    for answer in (three, none):
        assert not answer.gate.is_open
        answer.fill()
        assert answer.gate.is_open
    assert three.get() == 3
    with pytest.raises(LookupError):
        none.get()
