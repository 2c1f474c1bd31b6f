"""What is known of the tests before any mutant: that they pass, what they take, which lines each reaches."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from cosmic_ray.work_item import MutationSpec

from _reaching.sitecustomize import IMPORT, PROCESS
from _sandbox import COPIED, ROOT, Run, Sandbox


class RedError(Exception):
    """The tests do not pass on the unchanged code."""


@dataclass
class Baseline:
    """The tests of some modules."""

    seconds: dict[str, float]
    """All tests, and what each takes."""
    everywhere: list[str]
    """Those of which it is not known which lines they reach: taken to reach every one."""
    reached: dict[str, dict[str, list[str]]]
    """File -> line -> tests. The test "" is the import."""

    def limits(self) -> dict[str, float]:
        """Return how long each test may take on a mutant."""
        return {test: 5.0 + 10.0 * took for test, took in self.seconds.items()}

    def tests_of(self, file: str, source: str, mutation: MutationSpec) -> list[str]:
        """Return the tests that reach a mutant, quickest first; all, where none was seen to do so.

        Nobody sees what only another Python runs.
        """
        seen: set[str] = set()
        for line in _lines(source, mutation):
            seen.update(self.reached.get(file, {}).get(str(line), []))
        tests = self.seconds.keys() if "" in seen or not seen else seen
        found = self.seconds.keys() & {*tests, *self.everywhere}
        return sorted(found, key=self.seconds.__getitem__)


def take(sandbox: Sandbox, patterns: Sequence[str], store: Path, watching: Sandbox | None) -> Baseline:
    """Run the tests plainly, in a fork that has collected them, and so that it is seen what they reach.

    The last in *watching*, on a Python that can do that; None: there is none, and all tests may reach every
    line. What *store* knows is read from there when nothing changed. Raises RedError.
    """
    kept = store / f"tests-{hashlib.sha256(f'{patterns}{tree_hash()}'.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        return Baseline(**json.loads(kept.read_text()))
    files = [file for pattern in patterns for file in sandbox.files(pattern)]
    plain = sandbox.run(files, go_on=True)
    if plain.outcome != "passed" and not plain.failed:
        raise RedError(f"{plain.outcome}: {plain.test} {plain.why}\n{sandbox.output()[-3000:]}")
    _see_green(sandbox, sandbox.run, plain.failed)  # once more: the machine may have been busy
    sandbox.collect(files)
    _see_green(sandbox, lambda tests: sandbox.run_swapped(tests, {}, None), list(plain.seconds))
    tests = list(plain.seconds)
    baseline = Baseline(plain.seconds, tests, {})
    if watching is not None:
        baseline = _watched(watching, plain.seconds, store)
    kept.write_text(json.dumps(asdict(baseline)))
    return baseline


def _see_green(sandbox: Sandbox, run: Callable[[Sequence[str]], Run], tests: Sequence[str]) -> None:
    """Raise RedError for the first test that fails twice."""
    while tests:
        seen = run(tests)
        if seen.outcome != "passed" and seen.test in tests:
            tests, red = tests[tests.index(seen.test) + 1 :], seen.test
            seen = run([red])
        else:
            tests = ()
        if seen.outcome != "passed":
            raise RedError(f"{seen.outcome}: {seen.test} {seen.why}\n{sandbox.output()[-3000:]}")


def _watched(watching: Sandbox, seconds: dict[str, float], store: Path) -> Baseline:
    """Run the tests so that it is seen what they reach; one that hangs then is taken to reach everything."""
    reached: dict[str, dict[str, set[str]]] = {}
    everywhere, rest = list[str](), list(seconds)
    while rest:
        directory = store / "reached"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        seen = watching.run(rest, go_on=True, reached=directory)
        if seen.test not in rest if seen.outcome == "timeout" else not seen.started:
            raise RedError(f"while it was watched: {seen.test} {seen.why}\n{watching.output()[-3000:]}")
        run = rest if seen.outcome != "timeout" else rest[: rest.index(seen.test) + 1]
        everywhere += _read(run, seen, directory, reached)
        rest = rest[len(run) :]
    lines = {file: {line: sorted(tests) for line, tests in known.items()} for file, known in reached.items()}
    return Baseline(seconds, everywhere, lines)


def _read(
    tests: Sequence[str], seen: Run, directory: Path, reached: dict[str, dict[str, set[str]]]
) -> list[str]:
    """Read into *reached* which lines each test reached; return those of which that is not known."""
    unknown = list(seen.failed)
    for place, test in ((str(place), test) for place, test in enumerate(tests)):
        lines = (directory / place).read_text().splitlines() if (directory / place).exists() else []
        if test not in seen.started or lines.count(PROCESS) < seen.started[test]:
            unknown.append(test)
        _note(reached, lines, test)
    _note(reached, (directory / "import").read_text().splitlines(), "")
    return unknown


def _note(reached: dict[str, dict[str, set[str]]], lines: Iterable[str], test: str) -> None:
    for line in lines:
        file, found, number = line.removeprefix(IMPORT).rpartition(":")
        if found:
            at_import = line.startswith(IMPORT)
            reached.setdefault(file, {}).setdefault(number, set()).add("" if at_import else test)


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
    with _parsing:
        statements = _statements(source)
    around = [one for one in statements if one.lineno <= first <= (one.end_lineno or one.lineno)]
    innermost = max(around, key=lambda node: node.lineno, default=None)
    lines = set(range(first, last + 1))
    if innermost is not None:
        body = getattr(innermost, "body", None)
        end = body[0].lineno - 1 if body else innermost.end_lineno or innermost.lineno
        lines.update(range(innermost.lineno, max(end, innermost.lineno) + 1))
    return lines


_parsing = threading.Lock()  # Python 3.11 cannot parse in two threads at once: SystemError


@lru_cache(maxsize=1)
def _statements(source: str) -> list[ast.stmt]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
