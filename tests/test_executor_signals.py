"""Real Ctrl-Cs, at moments nobody chooses: nothing is lost, nothing comes twice, the ledger balances."""

from __future__ import annotations

import itertools
import json
import os
import signal

from children import StartScript, say_that_no_more_come, without_slow_callbacks
from test_executor_process import PRELUDE

ROUNDS = (
    PRELUDE
    + """
    logging.getLogger("areal_core").addHandler(logging.NullHandler())  # failed rollouts are no news here
    engine = Engine()
    config = {"max_consecutive_failures": 10**6, "on_stale": "keep"}
    # Two, as what is kept going for batches would use up the other's budget.
    executor = initialized(consumer_batch_size=10**6, **config)
    batcher = initialized(engine, consumer_batch_size=8, max_head_offpolicyness=1, **config)
    ROW, BATCH = 10**6, 10**9
    ids, rows, chance = itertools.count(), itertools.count(ROW), random.Random(7)
    interrupts, announced, library = 0, -1, os.path.dirname(areal_core.__file__)
    submitted, got, by_batch, by_row, started = [], [], [], [], []

    async def work(value):
        started.append(value)
        await asyncio.sleep(value % 4 * 0.0005)
        if value % 5 == 0:
            raise ValueError
        return trajectory_of(value)

    workflow = Playing(work)

    # In C: what a Ctrl-C interrupts in a dataloader's own code is lost, as in any iterator.
    items = itertools.count(BATCH)
    loader = map(list, zip(items, items, items, items))

    # No signal is noticed between the return of a call into the library and the end of its line.

    def submit():
        for value in itertools.islice(ids, 6):
            submitted.append(value)  # before: the call may be interrupted when it has submitted
            executor.submit(value, workflow, task_id=value)

    def wait():
        submit()
        got.extend(executor.wait_outcomes(3, timeout=5))

    def wait_too_short():
        try:
            got.extend(executor.wait_outcomes(64, timeout=0.0001))
        except TimeoutError:
            pass

    def wait_for_task():
        try:
            by_row.append(executor.wait_for_task(submitted[-2], timeout=5))
        except LookupError:
            pass

    def rollout_batch():
        data = [next(rows) for _ in range(5)]
        by_row.extend(executor.rollout_batch(data, workflow))

    def prepare_batch():
        by_batch.append(batcher.prepare_batch(loader, workflow))

    def new_version():
        engine.version += 1
        batcher.on_version_changed()

    CALLS = [wait, wait_too_short, wait_for_task, rollout_batch, prepare_batch]

    def play_a_round():
        global announced
        new_version()
        for call in chance.sample(CALLS, 4):
            if announced < interrupts and not chance.randrange(4):
                announced = interrupts
                os.write(1, b".")  # the next one may come
            call()
            new_version()

    def account():
        submit()
        assert executor.runner.run(asyncio.sleep, 0, "alive") == "alive"
        ledger = executor.ledger
        got.extend(executor.wait_outcomes(ledger.submitted - ledger.collected, timeout=10))
        for _ in range(3):  # what is kept going, and what was given back
            prepare_batch()
            new_version()
        values = values_of([outcome.trajectory for outcome in got] + by_row)
        values += [value for batch in by_batch for value in values_of(batch)]
        values = [value for value in values if value is not None]
        rolled_out, of_batches = set(started), [value for value in values if value >= BATCH]
        print(json.dumps({
            "interrupts": interrupts,
            "doubled": len(values) - len(set(values)),
            "run twice": [value for value, runs in collections.Counter(started).items() if runs > 1],
            "lost": sorted({v for v in rolled_out if v < BATCH and v % 5} - set(values))[:9],
            "lost of a batch": sorted(
                {v for v in rolled_out if BATCH <= v < max(of_batches) - 64 and v % 5} - set(values)
            )[:9],
            "prompts lost": int(repr(items)[6:-1]) - BATCH - batcher.ledger.submitted,
            "odd endings": [
                outcome.task_id for outcome in got if outcome.task_id < ROW
                and outcome.status != ("accepted" if outcome.task_id % 5 else "failed")
            ],
            "short batches": [len(batch) for batch in by_batch if len(batch) != 8],
            "left": executor.ledger.submitted - executor.ledger.collected,
        }))
        executor.destroy()
        batcher.destroy()
    """
)

ALL_IS_WELL = {
    "doubled": 0,
    "run twice": [],
    "lost": [],
    "lost of a batch": [],
    "prompts lost": 0,
    "odd endings": [],
    "short batches": [],
    "left": 0,
}


def test_more_than_a_hundred_ctrl_cs_lose_nothing_and_double_nothing(start_script: StartScript) -> None:
    child = start_script(
        ROUNDS
        + """
    while interrupts < 120:
        try:
            while True:
                play_a_round()
        except KeyboardInterrupt:
            interrupts += 1
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: one that is pending would be an error
    os.write(1, b"!")
    os.read(0, 1)  # none comes from here on: after the end of Python it would kill the process
    account()
    """
    )
    assert child.stdout is not None
    while child.stdout.read(1) == ".":
        child.send_signal(signal.SIGINT)
    say_that_no_more_come(child)
    stdout = child.stdout.read()
    _, stderr = child.communicate(timeout=30)
    assert (without_slow_callbacks(stderr), child.returncode) == ("", 0)
    assert json.loads(stdout) == {"interrupts": 120, **ALL_IS_WELL}


def test_ctrl_cs_that_interrupt_each_other_lose_nothing_either(start_script: StartScript) -> None:
    """A program cannot survive that in its own code, so here only the library is interrupted."""
    child = start_script(
        ROUNDS
        + """
    def interrupt_the_library(signum, frame):
        while frame is not None:
            if frame.f_code.co_filename.startswith(library):
                raise KeyboardInterrupt
            frame = frame.f_back

    signal.signal(signal.SIGINT, interrupt_the_library)
    while interrupts < 120:
        announced = -1  # some more may come
        try:
            play_a_round()
        except KeyboardInterrupt:
            interrupts += 1
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: one that is pending would be an error
    os.write(1, b"!")
    os.read(0, 1)  # none comes from here on: after the end of Python it would kill the process
    account()
    """
    )
    assert child.stdout is not None
    burst = itertools.cycle(range(1, 30))
    while child.stdout.read(1) == ".":
        for _ in range(next(burst)):
            os.kill(child.pid, signal.SIGINT)
    say_that_no_more_come(child)
    stdout = child.stdout.read()  # not communicate(): what is in the buffer already would be lost to it
    _, stderr = child.communicate(timeout=30)
    assert (without_slow_callbacks(stderr), child.returncode) == ("", 0)
    assert json.loads(stdout) == {"interrupts": 120, **ALL_IS_WELL}
