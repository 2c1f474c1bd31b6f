"""Threads that a caller starts, and that end soon."""

from __future__ import annotations

import threading
import weakref

import pytest

from areal_core._runner.passing import start_passing
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
    assert start_passing(lambda: None, "none") is None
