"""The mutants of one module before the tests."""

from __future__ import annotations

import queue
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields

from cosmic_ray.work_item import MutationSpec

from _baseline import Baseline, take
from _mutants import list_mutants, mutated
from _outcomes import Outcome, Outcomes
from _sandbox import ROOT, Run, Sandbox
from _survivors import Change, change

MOST_KILLERS = 50  # tests that killed one mutant of the module are likely to kill another
SAVE_EVERY_S = 20.0


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
    left: list[tuple[int, Change]] = field(default_factory=list)
    """Of those that wait the ones that survived quick tests."""

    @property
    def share(self) -> float:
        """The share of mutants that survived."""
        return len(self.survivors) / self.mutants if self.mutants else 0.0

    def add(self, other: Tally) -> None:
        """Count *other* too."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


class Trial:
    """Runs the mutants of one module, and keeps what became of them."""

    def __init__(
        self,
        file: str,
        patterns: Sequence[str],
        sandboxes: Sequence[Sandbox],
        others: Sequence[Sandbox],
        *,
        all_tests: bool = False,
        longest_s: float | None = None,
    ) -> None:
        self._file = file
        self._source = (ROOT / file).read_text()
        self._patterns = patterns
        self._sandboxes = sandboxes
        self._others = others  # on another Python, for what survives on this one
        self._all_tests = all_tests
        self._longest_s = longest_s
        self._left: list[int] = []
        self._mutants = list_mutants(ROOT / file)
        self._specs = self._mutants.specs
        self._outcomes = Outcomes(file, self._source, self._specs)
        self._killers: dict[str, None] = {}
        self._log = ROOT / "build" / "mutate" / "log.txt"

    def run(self, sample: int | None, again: Callable[[Change], bool]) -> tuple[Tally, float]:
        """Run the mutants that have no outcome yet; return how all fared, and the seconds it took now.

        Survivors for which *again* is true are run again. With a *sample* only so many of them all, the same
        ones each time. With a longest time for a test survivors wait on, but for those that are not to be
        run again: what nobody can observe no slow test does. Raises RedError when the tests do not pass as it
        is.
        """
        began = time.monotonic()
        chosen = self._chosen(sample)
        for place in chosen if self._longest_s is None else ():  # or quick tests would make survivors wait
            if self._is_survivor(place) and again(self._describe(place)[1]):
                self._outcomes[place] = Outcome.WAITING
        waiting = [place for place in chosen if self._outcomes[place] is Outcome.WAITING]
        if waiting:
            baseline = self._baseline()
            try:
                survived = Outcome.SURVIVED_HERE if self._longest_s is None else Outcome.WAITING
                self._run(waiting, self._sandboxes, baseline, survived)
                for place in self._left.copy():
                    if not again(self._describe(place)[1]):
                        self._outcomes[place] = Outcome.SURVIVED
                        self._left.remove(place)
            finally:
                self._outcomes.save()
        if self._others and self._longest_s is None:
            here = [place for place in chosen if self._outcomes[place] is Outcome.SURVIVED_HERE]
            if here:
                baseline = self._baseline()
                try:
                    self._run(here, self._others, baseline, Outcome.SURVIVED)
                finally:
                    self._outcomes.save()
        return self._tally(chosen), time.monotonic() - began

    def _baseline(self) -> Baseline:
        watching = next((one for one in (*self._others, self._sandboxes[0]) if one.can_watch), None)
        return take(self._sandboxes[0], self._patterns, ROOT / "build" / "mutate", watching)

    def _chosen(self, sample: int | None) -> list[int]:
        """Return the places of those to run: all, or a sample that depends on the module alone."""
        places = list(range(len(self._specs)))
        if sample is None:
            return places
        return sorted(random.Random(self._file).sample(places, min(sample, len(places))))

    def _is_survivor(self, place: int) -> bool:
        return self._outcomes[place] in (Outcome.SURVIVED, Outcome.SURVIVED_HERE)

    def _run(
        self, places: Sequence[int], sandboxes: Sequence[Sandbox], baseline: Baseline, survived: Outcome
    ) -> None:
        free: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        files = sorted({test.partition("::")[0] for test in baseline.seconds})
        for sandbox in sandboxes:
            sandbox.collect(files)
            free.put(sandbox)

        def judge(place: int) -> tuple[int, Outcome]:
            sandbox = free.get()
            try:
                return place, self._judge(self._specs[place], baseline, sandbox) or survived
            finally:
                free.put(sandbox)

        saved = time.monotonic()
        with ThreadPoolExecutor(len(sandboxes)) as threads:
            jobs = [threads.submit(judge, place) for place in places]
            try:
                for done, job in enumerate(as_completed(jobs), 1):
                    place, outcome = job.result()
                    self._outcomes[place] = outcome
                    if outcome is Outcome.WAITING:
                        self._left.append(place)
                    progress(f"{self._file} {done} of {len(jobs)}")
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self._outcomes.save()
                        saved = time.monotonic()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _judge(self, mutation: MutationSpec, baseline: Baseline, sandbox: Sandbox) -> Outcome | None:
        """Let the tests at a mutant until one kills it; None when none does."""
        tests = baseline.tests_of(self._file, self._source, mutation)
        tests = sorted(tests, key=lambda test: test not in self._killers)
        if self._all_tests and sandbox in self._sandboxes:
            # Which lines they reach is seen on another Python, where tasks start in another way.
            tests += sorted(baseline.seconds.keys() - {*tests}, key=baseline.seconds.__getitem__)
        if self._longest_s is not None:
            tests = [test for test in tests if baseline.seconds[test] <= self._longest_s]
        code = mutated(self._source, mutation)
        began = time.monotonic()
        killed: Run | None = None
        try:
            while tests and killed is None:
                run = self._run_patiently(sandbox, code, tests, baseline)
                if run.outcome == "passed":
                    break
                if self._is_red_again(run, sandbox, code, baseline):
                    killed = run
                else:
                    tests = tests[tests.index(run.test) + 1 :]
        finally:
            sandbox.write(self._file, self._source)
        if killed is not None and len(self._killers) < MOST_KILLERS:
            self._killers[killed.test] = None
        self._note(mutation, killed, time.monotonic() - began)
        if killed is None:
            return None
        return Outcome.HUNG if killed.outcome == "timeout" else Outcome.ASSERTED

    def _is_red_again(self, run: Run, sandbox: Sandbox, code: str, baseline: Baseline) -> bool:
        """Tell a test that notices the mutant from one that is red once in a while, or after others.

        Where only those run that were seen to reach the mutant a hang is believed: it takes long enough.
        """
        if run.test not in baseline.seconds or (run.outcome == "timeout" and not self._all_tests):
            return True
        return self._run_patiently(sandbox, code, [run.test], baseline).outcome != "passed"

    def _run_patiently(self, sandbox: Sandbox, code: str, tests: Sequence[str], baseline: Baseline) -> Run:
        """Run *tests*; believe in a hang only if the same test, without the mutation, is quick right then."""
        limits = baseline.limits()
        while True:
            run = self._run_once(sandbox, code, tests, limits)
            if run.outcome != "timeout" or run.test not in limits:
                return run
            began = time.monotonic()
            self._run_once(sandbox, self._source, [run.test], {})
            if time.monotonic() - began < limits[run.test] / 2:
                return run
            limits = {test: 2 * limit for test, limit in limits.items()}

    def _run_once(self, sandbox: Sandbox, code: str, tests: Sequence[str], limits: dict[str, float]) -> Run:
        sandbox.write(self._file, code)  # processes that a test starts import it from there
        run = sandbox.run_swapped(tests, limits, (self._file, self._source, code))
        return sandbox.run(tests, limits) if run.outcome == "import" else run

    def _note(self, mutation: MutationSpec, killed: Run | None, took_s: float) -> None:
        what = f"{killed.outcome}: {killed.test}: {killed.why}" if killed else "survived"
        place = f"{self._file}:{mutation.start_pos[0]}:{mutation.start_pos[1]} {mutation.operator_name}"
        with self._log.open("a") as log:
            log.write(f"{place} {took_s:.1f} s {what}\n".replace("\n", " ").rstrip() + "\n")

    def _tally(self, chosen: Iterable[int]) -> Tally:
        tally = Tally(annotations=self._mutants.annotations)
        for place in chosen:
            outcome = self._outcomes[place]
            tally.mutants += outcome is not Outcome.WAITING
            tally.waiting += outcome is Outcome.WAITING
            tally.asserted += outcome is Outcome.ASSERTED
            tally.hung += outcome is Outcome.HUNG
            if self._is_survivor(place):
                tally.survivors.append(self._describe(place))
        tally.survivors.sort()
        tally.left = sorted(map(self._describe, self._left))
        return tally

    def _describe(self, place: int) -> tuple[int, Change]:
        mutation = self._specs[place]
        code = mutated(self._source, mutation)
        return mutation.start_pos[0], change(self._file, mutation.definition_name, self._source, code)


def progress(text: str) -> None:
    """Show *text* where somebody watches; the next one replaces it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
