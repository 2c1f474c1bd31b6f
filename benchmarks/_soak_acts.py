"""What the trainer of a soak run does: each act is a few lines that a Ctrl-C may hit anywhere.

What the library returns goes into the inbox in the line of the call: no signal is noticed in between.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _soak_books import EVAL, EVAL_ROW, OPEN, ROW, Books
from _soak_items import Playing, accept
from areal_core import RemoteInfEngine, WorkflowExecutor
from areal_core.embedded import write_weights
from areal_core.errors import ControlError

Inbox = deque[tuple[Any, ...]]
"""What came back and is not in the books yet: how it came, the version before the call, and what it was."""

_LIST = 4  # items in a list of the dataloader
_SOON_S = 2.0
_KEPT_WEIGHTS = 50


class Acts:
    """All that can be done, by its name in the plan."""

    def __init__(
        self,
        executor: WorkflowExecutor,
        engine: RemoteInfEngine,
        books: Books,
        inbox: Inbox,
        counts: Counter[str],
        directory: Path,
    ) -> None:
        self._executor = executor
        self._engine = engine
        self._books = books
        self._inbox = inbox
        self._counts = counts
        self._directory = directory
        self._dice = random.Random(f"{books.seed}/trainer")
        self._loader = Lists(books)
        self._workflow = Playing()
        self._may_be_paused = False  # the engine
        self._acts: dict[str, Callable[[], object]] = {
            "batches": self._batch,
            "slow consumer": self._be_slow,
            "submits": self._submit,
            "waits": self._wait,
            "waits too short": self._wait_too_short,
            "waits for one": self._wait_for_one,
            "rows": self._rows,
            "evaluation": self._evaluate,
            "rows of evaluation": self._rows_of_evaluation,
            "cancels": self._cancel,
            "pause storm": self._pause_executor,
            "engine's pause storm": self._pause_engine,
            "aborts": self._abort,
            "update": self._train,
            "weights that are not there": self._update_from_nowhere,
        }

    def do(self, act: str) -> None:
        """Undo what an interrupted act left paused, and do the next one."""
        if self._executor.is_paused():
            self._executor.resume()
        if self._may_be_paused:
            self._continue()
        self._acts[act]()

    # -- batches -----------------------------------------------------------------------------------

    def _batch(self) -> None:
        """Take a batch, and train on it."""
        group = self._dice.choice((1, 1, 2, 3))
        self._inbox.append(
            (
                "batch",
                self._version,
                self._executor.prepare_batch(
                    self._loader, self._workflow, should_accept_fn=accept, group_size=group
                ),
            )
        )
        self._counts["batch"] += 1
        self._train()

    def _be_slow(self) -> None:
        self._batch()
        time.sleep(0.5)  # while rollouts go on, and age
        self._train()
        self._train()

    def _submit_some(self, count: int, is_eval: bool = False) -> list[int]:
        items = [self._books.new(EVAL if is_eval else OPEN) for _ in range(count)]
        group = self._dice.choice((1, 2))
        for item in items:
            number = item["data_id"]
            self._executor.submit(item, self._workflow, None, accept, group, task_id=number, is_eval=is_eval)
            self._books.confirm(number)
        return [item["data_id"] for item in items]

    def _submit(self) -> None:
        self._submit_some(self._dice.randint(1, 8))

    def _wait(self) -> None:
        self._submit_some(4)
        self._inbox.append(("outcomes", self._version, self._executor.wait_outcomes(2, timeout=_SOON_S)))
        self._inbox.append(("unnamed", self._version, self._executor.wait(1, timeout=_SOON_S)))

    def _wait_too_short(self) -> None:
        self._submit_some(2)
        self._inbox.append(("outcomes", self._version, self._executor.wait_outcomes(64, timeout=0.001)))

    def _wait_for_one(self) -> None:
        (number,) = self._submit_some(1)
        self._inbox.append(
            ("rows", self._version, [number], [self._executor.wait_for_task(number, timeout=_SOON_S)])
        )

    def _rows(self) -> None:
        self._roll_out(ROW, 4)

    def _rows_of_evaluation(self) -> None:
        self._roll_out(EVAL_ROW, 3)

    def _roll_out(self, lane: int, count: int) -> None:
        items = [self._books.new(lane) for _ in range(count)]
        numbers = [item["data_id"] for item in items]
        self._inbox.append(
            (
                "rows",
                self._version,
                numbers,
                self._executor.rollout_batch(
                    items, self._workflow, should_accept_fn=accept, is_eval=lane == EVAL_ROW
                ),
            )
        )

    def _evaluate(self) -> None:
        self._submit_some(6, is_eval=True)
        self._inbox.append(
            ("outcomes", self._version, self._executor.wait_outcomes(3, timeout=_SOON_S, is_eval=True))
        )

    def _cancel(self) -> None:
        numbers = self._submit_some(4) + self._submit_some(2, is_eval=True)
        time.sleep(self._dice.uniform(0, 0.1))  # some have started then, some have not
        for number in numbers[::2]:
            self._counts["cancelled"] += self._executor.cancel(number)

    def _pause_executor(self) -> None:
        self._submit_some(3)
        for _ in range(self._dice.randint(3, 12)):
            self._executor.pause()
            self._counts["pauses of the executor"] += 1
            time.sleep(self._dice.uniform(0, 0.02))
            self._executor.resume()

    def _pause_engine(self) -> None:
        for _ in range(self._dice.randint(2, 5)):
            self._may_be_paused = True
            self._executor.runner.run(self._engine.pause_generation)
            self._counts["pauses of the engine"] += 1
            time.sleep(self._dice.uniform(0, 0.05))
            self._continue()

    def _continue(self) -> None:
        try:
            self._executor.runner.run(self._engine.continue_generation)
        except ControlError:  # who cannot be told leaves rotation, and the others go on
            self._may_be_paused = False
            raise
        self._may_be_paused = False

    def _abort(self) -> None:
        self._executor.runner.run(self._engine.abort_all_requests)
        self._counts["aborts of all"] += 1

    @property
    def _version(self) -> int:
        return self._engine.get_version()

    # -- weights ---------------------------------------------------------------------------------------

    def _train(self) -> None:
        version = self._version + 1
        self._books.judge.newest = max(self._books.judge.newest, version)
        path = self._directory / f"weights-{version}"
        write_weights(path, version)
        self._update(path, version)
        self._counts["updates"] += 1
        (self._directory / f"weights-{version - _KEPT_WEIGHTS}").unlink(missing_ok=True)

    def _update_from_nowhere(self) -> None:
        self._update(self._directory / "nowhere", self._version + 1)

    def _update(self, path: os.PathLike[str], version: int) -> None:
        self._may_be_paused = True
        self._executor.runner.run(self._engine.update_weights_from_disk, path, version)
        self._may_be_paused = False


class Lists:
    """The dataloader: lists of items nobody has had yet."""

    def __init__(self, books: Books) -> None:
        self._lists = books.lists(_LIST)

    def __iter__(self) -> Any:
        return self._lists
