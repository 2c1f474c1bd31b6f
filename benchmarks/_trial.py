"""The mutants of one module before the tests."""

from __future__ import annotations

import hashlib
import queue
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from _baseline import Baseline, take, tree_hash
from _mutants import ANNOTATION, OPERATORS, list_mutants, mutated
from _sandbox import ROOT, Run, Sandbox
from _survivors import Change, change

SURVIVED = "survived"
MOST_KILLERS = 50  # tests that killed one mutant of the module are likely to kill another


@dataclass
class Tally:
    """How mutants fared."""

    mutants: int = 0
    asserted: int = 0
    """A test failed."""
    hung: int = 0
    """A test did not end."""
    waiting: int = 0
    """Not run yet."""
    annotations: int = 0
    """Changes of annotations, not run at all."""
    survivors: list[tuple[int, Change]] = field(default_factory=list)
    """The line and the change of each."""

    @property
    def share(self) -> float:
        """The share of mutants that survived."""
        return len(self.survivors) / self.mutants if self.mutants else 0.0

    def add(self, other: Tally) -> None:
        """Count *other* too."""
        for name in ("mutants", "asserted", "hung", "waiting", "annotations", "survivors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Trial:
    """Runs the mutants of one module. Its outcomes stay in *store*, in cosmic-ray's session format."""

    def __init__(
        self,
        file: str,
        patterns: Sequence[str],
        store: Path,
        sandboxes: Sequence[Sandbox],
        other: Sandbox | None,
    ) -> None:
        self._file = file
        self._source = (ROOT / file).read_text()
        self._patterns = patterns
        self._store = store
        self._sandboxes = sandboxes
        self._other = other  # on another Python, for what survives on this one
        self._killers: set[str] = set()

    def run(self, sample: int | None) -> tuple[Tally, float]:
        """Run the mutants that have no outcome yet; return how all fared, and the seconds it took now.

        With a *sample* only so many of them all, the same ones each time. Raises RedError when the tests do
        not pass as it is.
        """
        began = time.monotonic()
        with self._opened() as database:
            chosen = self._chosen(database, sample)
            if self._waiting(database, chosen) or (
                self._other is not None and _survivors(database, SURVIVED)
            ):
                baseline = take(self._sandboxes[0], self._patterns, self._store)
                self._run_waiting(database, baseline, chosen)
                self._run_survivors_on_other(database, baseline)
            return self._tally(database, chosen), time.monotonic() - began

    def count(self) -> int:
        """Return how many mutants there are, apart from those that need no test."""
        with self._opened() as database:
            return len(_tested(database))

    @contextmanager
    def _opened(self) -> Iterator[WorkDB]:
        name = self._file.removesuffix(".py").replace("/", ".")
        with use_db(str(self._store / f"{name}.sqlite"), WorkDB.Mode.create) as database:
            self._list(database, self._store / f"{name}.state")
            yield database

    def _chosen(self, database: WorkDB, sample: int | None) -> frozenset[str]:
        """Return the ids of those to run: all, or a sample that depends on the module alone."""
        tested = sorted(_tested(database), key=lambda item: item.mutations[0].start_pos)
        if sample is not None:
            tested = random.Random(self._file).sample(tested, min(sample, len(tested)))
        return frozenset(item.job_id for item in tested)

    def _waiting(self, database: WorkDB, chosen: frozenset[str]) -> list[WorkItem]:
        return [item for item in _waiting(database) if item.job_id in chosen]

    def _list(self, database: WorkDB, note: Path) -> None:
        """List the mutants anew when module or operators changed; forget survivors when anything did."""
        source, tree = hashlib.sha256(f"{OPERATORS}{self._source}".encode()).hexdigest(), tree_hash()
        state = note.read_text().split() if note.exists() else ["", ""]
        if state[0] != source:
            note.unlink(missing_ok=True)
            list_mutants(ROOT / self._file, database)
        elif state[1] != tree:
            again = [item.job_id for item in _survivors(database)]
            database.set_multiple_results(again, WorkResult(WorkerOutcome.ABNORMAL))
        note.write_text(f"{source} {tree}")

    def _run_waiting(self, database: WorkDB, baseline: Baseline, chosen: frozenset[str]) -> None:
        waiting = sorted(self._waiting(database, chosen), key=lambda item: item.mutations[0].start_pos)
        free: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        for sandbox in self._sandboxes:
            free.put(sandbox)

        def judge(item: WorkItem) -> tuple[str, WorkResult]:
            sandbox = free.get()
            try:
                mutation = item.mutations[0]
                tests = baseline.tests_of(self._file, self._source, mutation)
                return item.job_id, self._judge(mutation, tests, baseline, sandbox)
            finally:
                free.put(sandbox)

        with ThreadPoolExecutor(len(self._sandboxes)) as threads:
            jobs = [threads.submit(judge, item) for item in waiting]
            try:
                for done, job in enumerate(as_completed(jobs), 1):
                    database.set_result(*job.result())
                    progress(f"{self._file} {done} of {len(jobs)}")
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _run_survivors_on_other(self, database: WorkDB, baseline: Baseline) -> None:
        if self._other is None:
            return
        for item in _survivors(database, SURVIVED):
            mutation = item.mutations[0]
            tests = baseline.tests_of(self._file, self._source, mutation)
            result = self._judge(mutation, tests, baseline, self._other)
            text = f"{result.output} on the other Python too"
            database.set_result(item.job_id, WorkResult(result.worker_outcome, text, result.test_outcome))

    def _judge(
        self, mutation: MutationSpec, tests: Sequence[str], baseline: Baseline, sandbox: Sandbox
    ) -> WorkResult:
        """Let *tests* at a mutant until one fails or hangs."""
        code = mutated(self._source, mutation)
        try:
            for stage in baseline.stages(tests, self._killers):
                run = self._run_patiently(sandbox, code, stage, baseline)
                if run.outcome != "passed":
                    if len(self._killers) < MOST_KILLERS:
                        self._killers.add(run.test)
                    text = f"{run.outcome}: {run.test}: {run.why}"
                    return WorkResult(WorkerOutcome.NORMAL, text, TestOutcome.KILLED)
            return WorkResult(WorkerOutcome.NORMAL, SURVIVED, TestOutcome.SURVIVED)
        finally:
            sandbox.write(self._file, self._source)

    def _run_patiently(self, sandbox: Sandbox, code: str, tests: Sequence[str], baseline: Baseline) -> Run:
        """Run *tests*; believe in a hang only if the same test, without the mutation, is quick right then."""
        limits = baseline.limits()
        while True:
            sandbox.write(self._file, code)
            run = sandbox.run(tests, limits)
            if run.outcome != "timeout" or run.test not in limits:
                return run
            sandbox.write(self._file, self._source)
            began = time.monotonic()
            sandbox.run([run.test])
            if time.monotonic() - began < limits[run.test] / 2:
                return run
            limits = {test: 2 * limit for test, limit in limits.items()}

    def _tally(self, database: WorkDB, chosen: frozenset[str]) -> Tally:
        tally = Tally(waiting=len(self._waiting(database, chosen)))
        for item, result in database.completed_work_items:
            if result.worker_outcome is WorkerOutcome.SKIPPED:
                tally.annotations += result.output == ANNOTATION
            elif result.worker_outcome is WorkerOutcome.NORMAL:
                tally.mutants += 1
                if result.test_outcome is TestOutcome.SURVIVED:
                    tally.survivors.append(self._describe(item.mutations[0]))
                elif result.output.startswith("timeout"):
                    tally.hung += 1
                else:
                    tally.asserted += 1
        tally.survivors.sort()
        return tally

    def _describe(self, mutation: MutationSpec) -> tuple[int, Change]:
        code = mutated(self._source, mutation)
        return mutation.start_pos[0], change(self._file, mutation.definition_name, self._source, code)


def _survivors(database: WorkDB, output: str | None = None) -> list[WorkItem]:
    """Return those that survived; with *output* only those of which just that was noted."""
    return [
        item
        for item, result in database.completed_work_items
        if result.test_outcome is TestOutcome.SURVIVED and output in (None, result.output)
    ]


def _tested(database: WorkDB) -> list[WorkItem]:
    """Return those that are not left out."""
    left_out = {
        item.job_id
        for item, result in database.completed_work_items
        if result.worker_outcome is WorkerOutcome.SKIPPED
    }
    return [item for item in database.work_items if item.job_id not in left_out]


def _waiting(database: WorkDB) -> list[WorkItem]:
    again = [
        item
        for item, result in database.completed_work_items
        if result.worker_outcome is WorkerOutcome.ABNORMAL
    ]
    return [*database.pending_work_items, *again]


def progress(text: str) -> None:
    """Show *text* where somebody watches; the next one replaces it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
