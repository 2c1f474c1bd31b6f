"""The trainer's process of a soak run: it is sent signals, and tells its parent in lines of JSON how it goes.

    python benchmarks/_soak_child.py ARGUMENTS

is what soak.py starts. It ends with 0 when it has told all, whatever that is; with 3 when something hung.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import importlib
import json
import os
import select
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _soak_balance import Held, Told, of_engine, of_growth, of_ledger, of_manager, take_held
from _soak_plan import Plan, make_plan
from _soak_trainer import BOUND, Trainer

HUNG = 3
"""The exit status when something hung."""
_TOLD_EVERY_S = 1.0
_LAST_RESORT_S = 5.0
_TRIES = 30


def main() -> int:
    """Train until told to stop; return the exit status."""
    arguments = json.loads(sys.argv[1])
    plan = make_plan(arguments["seed"], arguments["minutes"])
    loop = arguments["loop"]
    factory = importlib.import_module(loop).new_event_loop if loop else None
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(plan, Path(directory), factory)
        _watch(trainer, arguments["seconds"])
        trainer.log.install()
        trainer.gate.install()
        result = Run(trainer, plan, arguments["servers"]).run()
    _tell(kind="result", **result)
    return 0


class Run:
    """One run of *trainer*, from the first start to the last stop."""

    def __init__(self, trainer: Trainer, plan: Plan, servers: list[str]) -> None:
        self._trainer = trainer
        self._plan = plan
        self._servers = servers
        self._lives = 0
        self._began = time.monotonic()
        self._quarter: Held | None = None

    def run(self) -> dict[str, Any]:
        """Return what came of it."""
        trainer = self._trainer
        trainer.engine.initialize(self._servers, trainer.log)
        self._start()
        for act in ("batches", "evaluation", "rows"):  # what is imported on first use is imported then
            trainer.play(act)
        self._began = time.monotonic()
        _tell(kind="ready")
        trainer.gate.is_shut = False
        self._play()
        trainer.gate.is_shut = True
        return self._end()

    def _play(self) -> None:
        acts, restarts, told_at = self._plan.acts(), list(self._plan.restarts), 0.0
        while not _is_over():
            self._trainer.play(next(acts))
            now = time.monotonic() - self._began
            if restarts and now >= restarts[0]:
                del restarts[0]
                self._restart()
            if now >= told_at + _TOLD_EVERY_S:
                told_at = now
                _tell(kind="progress", **self._figures())

    def _start(self) -> None:
        self._trainer.start()
        self._lives += 1

    def _restart(self) -> None:
        self._trainer.stop()
        self._trainer.books.settle()
        if self._quarter is None:
            self._trainer.gate.is_shut = True
            self._quarter = take_held()
            self._trainer.gate.is_shut = False
        self._start()

    def _end(self) -> dict[str, Any]:
        trainer, books = self._trainer, self._trainer.books
        self._take_what_was_pulled()
        trainer.stop()
        books.settle(is_last=True)
        end = take_held()
        for complaint in self._found(end):
            books.complaints.say(complaint)
        report = trainer.executor.report()
        figures = self._figures()
        trainer.engine.destroy()
        return {
            **figures,
            "complaints": list(books.complaints),
            "training": dataclasses.asdict(trainer.executor.ledger),
            "evaluation": dataclasses.asdict(trainer.executor.eval_ledger),
            "staleness": dataclasses.asdict(report),
            "bound": BOUND,
            "judged": books.judge.tokens,
            "oldest": books.judge.oldest,
            "dropped": books.dropped,
            "quarter": None if self._quarter is None else dataclasses.asdict(self._quarter),
            "end": dataclasses.asdict(end),
            "log": dict(trainer.log.counts),
            "blocks_named": trainer.log.blocks_named,
        }

    def _take_what_was_pulled(self) -> None:
        """Take batches until items are pulled once more: all that were pulled before are submitted then."""
        books = self._trainer.books
        pulled = books.pulled
        for _ in range(_TRIES):
            self._trainer.play("batches")
            if books.pulled > pulled:
                return

    def _found(self, end: Held) -> Iterator[str]:
        trainer, executor = self._trainer, self._trainer.executor
        for name, ledger, told in zip(
            ("training", "evaluation"), (executor.ledger, executor.eval_ledger), told_of(trainer), strict=True
        ):
            yield from of_ledger(name, ledger, told)
        yield from of_manager(trainer.manager.get_stats(), executor.ledger)
        yield from of_engine(trainer.engine)
        stats = executor.runner.stats()
        if stats.submitted or stats.running or stats.abandoned:
            yield f"the runner has something in its own ledger, or was left by tasks: {stats}"
        if executor.report().staleness_max > BOUND:
            yield f"the report says that {executor.report().staleness_max} versions were between, not {BOUND}"
        if not trainer.log.blocks_named:
            yield "the function that blocks the loop was never named in the log"
        if self._quarter is None:
            yield "nothing was measured after a quarter of the time"
        else:
            yield from of_growth(self._quarter, end)

    def _figures(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "seconds": time.monotonic() - self._began,
            "version": trainer.version,
            "lives": self._lives,
            "raised": trainer.gate.raised,
            "in_library": trainer.gate.in_library,
            "ignored": trainer.gate.ignored,
            "counts": dict(trainer.counts),
            "refusals": dict(trainer.refusals),
            "ended": trainer.executor.ledger.finished
            + trainer.executor.ledger.collected
            + trainer.executor.ledger.discarded,
        }


def told_of(trainer: Trainer) -> tuple[Told, Told]:
    """Return what the run's own books say of training and of evaluation."""
    books = trainer.books
    training, evaluation = (
        Told(
            books.submitted[is_eval],
            books.taken[is_eval],
            books.accepted_and_taken[is_eval],
            0 if is_eval else books.dropped,
            books.endings[is_eval],
        )
        for is_eval in (False, True)
    )
    return training, evaluation


def _watch(trainer: Trainer, seconds: float) -> None:
    """Have everything explained, and this process ended, if it is still there after so many *seconds*."""

    def explain() -> None:
        time.sleep(seconds)
        sys.stderr.write("\nthe run hangs\n")
        try:
            sys.stderr.write(f"{trainer.executor.explain()}\n")
        except Exception as error:
            sys.stderr.write(f"the executor cannot be explained: {error!r}\n")
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)

    threading.Thread(target=explain, name="watch", daemon=True).start()
    faulthandler.dump_traceback_later(seconds + _LAST_RESORT_S, exit=True)  # where no Python runs any more


def _is_over() -> bool:
    """Return whether the parent has said that it is, or is there no more."""
    return bool(select.select([0], [], [], 0)[0])


def _tell(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
