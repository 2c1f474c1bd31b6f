"""The pool for what blocks, which is made by its first use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from areal_core._runner.late_pool import LatePool


def test_it_does_what_a_pool_does() -> None:
    pool = LatePool("blocking")
    assert isinstance(pool, ThreadPoolExecutor)
    assert pool.submit(divmod, 7, 3).result() == (2, 1)
    assert pool.submit(lambda: threading.current_thread().name).result().startswith("blocking")
    assert list(pool.map(abs, [-1, 2])) == [1, 2]
    pool.shutdown()


def test_many_threads_may_be_the_first_to_use_it() -> None:
    pool, together = LatePool("blocking"), threading.Barrier(8)
    results: list[int] = []

    def use(number: int) -> None:
        together.wait(10)
        results.append(pool.submit(abs, -number).result())

    users = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    pool.shutdown()
    assert sorted(results) == list(range(8))


@pytest.mark.parametrize("was_used", [False, True], ids=["never used", "used"])
def test_once_shut_it_takes_nothing(was_used: bool) -> None:
    pool = LatePool("blocking")
    if was_used:
        pool.submit(abs, 1).result()
    for _ in range(2):
        pool.shutdown(wait=True, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)


@pytest.mark.parametrize("wait", [True, False], ids=["waits", "does not wait"])
def test_a_shutdown_waits_for_what_runs_if_it_is_to(wait: bool) -> None:
    pool, has_returned, was_first = LatePool("blocking"), threading.Event(), threading.Event()

    def block() -> None:
        if has_returned.wait(10 if not wait else 0.3):
            was_first.set()

    blocked = pool.submit(block)
    pool.shutdown(wait=wait)
    has_returned.set()
    blocked.result(10)
    assert was_first.is_set() is not wait
