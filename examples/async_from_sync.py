"""Async work from synchronous code: values, errors, deadlines and cancellation.

    python examples/async_from_sync.py

No HTTP here: a task is any coroutine function with its arguments. Each task that was accepted ends in
exactly one outcome, and the outcome keeps its error.
"""

from __future__ import annotations

import argparse
import asyncio
import logging

from areal_core import AsyncTaskRunner, TimedResult


async def count_words(text: str, seconds: float = 0.0) -> int:
    """Count the words of *text*, and take *seconds* over it."""
    await asyncio.sleep(seconds)
    if not text:
        raise ValueError("there is no text")
    return len(text.split())


def call_one(runner: AsyncTaskRunner[int]) -> None:
    """Run one coroutine as if it were a function: its value comes back, or its exception."""
    print("run gives", runner.run(count_words, "to be or not to be"))
    try:
        runner.run(count_words, "")
    except ValueError as error:
        print("run raises", repr(error))


def wait_for_values(runner: AsyncTaskRunner[int]) -> None:
    """Wait for values in the order they come. A wait that times out consumes nothing."""
    runner.submit(count_words, "slow but sure", seconds=1.0)
    runner.submit(count_words, "quick")
    try:
        runner.wait(count=2, timeout=0.1)
    except TimeoutError as error:
        print("wait raises", repr(error))
    print("wait gives", runner.wait(count=2, timeout=10.0))


def wait_for_outcomes(runner: AsyncTaskRunner[int]) -> None:
    """Wait for outcomes: they say how each task ended, and why."""
    runner.submit(count_words, "one two three", task_id=1)
    runner.submit(count_words, "", task_id=2)
    runner.with_options(task_id=3, task_timeout=0.1).submit(count_words, "too slow", seconds=60.0)
    runner.submit(count_words, "no longer wanted", seconds=60.0, task_id=4)
    runner.cancel(4)
    for result in sorted(runner.wait(count=4, timeout=10.0, with_timing=True), key=by_id):
        print(f"task {result.task_id} {result.status}: {result.error or result.data!r}")


def go_on_from_results(runner: AsyncTaskRunner[int]) -> None:
    """Take outcomes as they come, and submit more meanwhile, until no task is left."""
    runner.submit(count_words, "a b c d")
    for result in runner.as_completed(timeout=10.0):
        print("as_completed gives", result.data)
        if result.data and result.data > 1:
            runner.submit(count_words, "a " * (result.data // 2))


def by_id(result: TimedResult[int]) -> int:
    """Sort by id; ``wait`` itself gives the order in which tasks finished."""
    return result.task_id


def main() -> None:
    """Show one thing after the other, on one runner."""
    parser = argparse.ArgumentParser(description="Run async work from synchronous code.")
    parser.add_argument("--quick", action="store_true", help="changes nothing: this takes a second")
    parser.parse_args()
    # A task without a value is a line in the log, by default on stderr. Here the outcomes tell.
    logging.getLogger("areal_core").setLevel(logging.CRITICAL)
    with AsyncTaskRunner[int](max_queue_size=100) as runner:
        for part in (call_one, wait_for_values, wait_for_outcomes, go_on_from_results):
            print(f"\n# {(part.__doc__ or '').splitlines()[0]}")
            part(runner)
        print(f"\n{runner.stats()}")


if __name__ == "__main__":
    main()
