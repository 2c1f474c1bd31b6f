"""What is known of the tests before any mutant: that they pass, what they take, which lines each reaches."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import coverage
from cosmic_ray.work_item import MutationSpec

from _sandbox import COPIED, ROOT, Sandbox


class RedError(Exception):
    """The tests do not pass on the unchanged code."""


@dataclass
class Baseline:
    """The tests of some modules."""

    seconds: dict[str, float]
    """All tests, and what each takes."""
    elsewhere: list[str]
    """Those that start processes, trace, or fail when they are traced: taken to reach every line."""
    reached: dict[str, dict[str, list[str]]]
    """File -> line -> tests. The test "" is the import."""

    def limits(self) -> dict[str, float]:
        """Return how long each test may take on a mutant."""
        return {test: 5.0 + 10.0 * took for test, took in self.seconds.items()}

    def tests_of(self, file: str, source: str, mutation: MutationSpec) -> list[str]:
        """Return the tests that reach a mutant, quickest first; all, where coverage saw none do so.

        It does not see what other Pythons run.
        """
        seen: set[str] = set()
        for line in _lines(source, mutation):
            seen.update(self.reached.get(file, {}).get(str(line), []))
        tests = self.seconds.keys() if "" in seen or not seen.difference(self.elsewhere) else seen
        return self.ordered(self.seconds.keys() & {*tests, *self.elsewhere})

    def ordered(self, tests: Iterable[str]) -> list[str]:
        """Return *tests*, quickest first."""
        return sorted(tests, key=self.seconds.__getitem__)


def take(sandbox: Sandbox, patterns: Sequence[str], store: Path) -> Baseline:
    """Run the tests plainly, in a fork that has collected them, and with coverage.

    What *store* knows is read from there when nothing changed.

    Raises RedError.
    """
    kept = store / f"tests-{hashlib.sha256(f'{patterns}{tree_hash()}'.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        return Baseline(**json.loads(kept.read_text()))
    files = [file for pattern in patterns for file in sandbox.files(pattern)]
    plain = sandbox.run(files)
    if plain.outcome != "passed":
        raise RedError(f"{plain.outcome}: {plain.test} {plain.why}\n{sandbox.output()[-3000:]}")
    data = store / "coverage"
    data.unlink(missing_ok=True)
    measured = {"data": str(data), "files": [str(sandbox.directory / "areal_core" / "*")]}
    sandbox.collect(files)
    collected = sandbox.run_swapped(list(plain.seconds), {}, None)
    if collected.outcome != "passed":
        raise RedError(
            f"in a fork, {collected.outcome}: {collected.test} {collected.why}\n{sandbox.output()[-3000:]}"
        )
    # Without those that trace: after one of them coverage sees nothing of this thread any more.
    traceable = [test for test in plain.seconds if test not in plain.elsewhere]
    seen = sandbox.run(traceable, go_on=True, coverage=measured)
    if seen.outcome == "timeout" or not data.exists():
        raise RedError(f"with coverage: {seen.test} {seen.why}\n{sandbox.output()[-3000:]}")
    elsewhere = [*plain.elsewhere, *seen.elsewhere]
    baseline = Baseline(plain.seconds, elsewhere, _reached(data, sandbox.directory))
    kept.write_text(json.dumps(asdict(baseline)))
    return baseline


def _reached(data: Path, directory: Path) -> dict[str, dict[str, list[str]]]:
    measured = coverage.CoverageData(str(data))
    measured.read()
    return {
        str(Path(file).relative_to(directory)): {
            str(line): tests for line, tests in measured.contexts_by_lineno(file).items()
        }
        for file in measured.measured_files()
    }


def tree_hash() -> str:
    """Return what changes when anything changes that the outcome of a test may depend on."""
    digest = hashlib.sha256()
    for path in sorted(path for name in COPIED for path in [ROOT / name, *(ROOT / name).rglob("*.py")]):
        if path.is_file() and "benchmarks" not in path.parts:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _lines(source: str, mutation: MutationSpec) -> set[int]:
    """Return the lines of the mutation and of the statement it is in, of a compound one its head."""
    first, last = mutation.start_pos[0], mutation.end_pos[0]
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= first <= (node.end_lineno or node.lineno)
    ]
    innermost = max(around, key=lambda node: node.lineno, default=None)
    lines = set(range(first, last + 1))
    if innermost is not None:
        body = getattr(innermost, "body", None)
        end = body[0].lineno - 1 if body else innermost.end_lineno or innermost.lineno
        lines.update(range(innermost.lineno, max(end, innermost.lineno) + 1))
    return lines
