"""Change the library in one place at a time and see whether a test notices.

Goes module by module, keeps each outcome in ``build/mutate``, and goes on there when it is started again.
Ends with 1 when a mutant survives for which ``survivors.toml`` tells no reason, or more than 5 % survive.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from _baseline import RedError
from _sandbox import ROOT, Sandbox
from _survivors import FILE, Change, as_toml, reasons
from _trial import Tally, Trial, progress

sys.path.append(str(ROOT / "tests"))
from all_pythons import find_python, run

STORE = ROOT / "build" / "mutate"
MOST_SURVIVORS = 0.05
OTHER_PYTHON = "3.13"  # from 3.12 on tasks start eagerly
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

_CLEANUP = ("tests/test_drive.py", "tests/test_loop_cleanup*.py")
_CLIENTS = (
    "tests/test_http_*.py",
    "tests/test_first_import.py",
    "tests/test_descriptors.py",
    "tests/test_workflow_context.py",
)
_RUNNER = ("tests/test_runner_*.py",)

# Which tests are to kill the mutants of which modules.
TESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("areal_core/loop_cleanup.py", _CLEANUP),
    ("areal_core/_drive.py", _CLEANUP),
    ("areal_core/_callback.py", _CLEANUP),
    ("areal_core/_process.py", _CLEANUP + _CLIENTS),
    ("areal_core/_log.py", _CLEANUP + _RUNNER),
    ("areal_core/workflow_context.py", _CLIENTS),
    ("areal_core/_http/*.py", _CLIENTS),
    ("areal_core/async_task_runner.py", _RUNNER),
    ("areal_core/_runner/*.py", _RUNNER),
)


def main() -> int:
    """Run what was asked for and return the exit status."""
    options = _options()
    if options.fresh:
        shutil.rmtree(STORE, ignore_errors=True)
    STORE.mkdir(parents=True, exist_ok=True)
    total, untested = Tally(), []
    known = {what: why for what, why in reasons().items() if _wanted(what.file, options.module)}
    with ExitStack() as stack:
        lock = stack.enter_context((STORE / "lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two runs would write the same copies
        copies = [STORE / f"copy-{worker}" for worker in range(options.workers)]
        sandboxes = [stack.enter_context(Sandbox(copy)) for copy in copies]
        other = None if options.this_python_only else _other_sandbox(stack)
        tried = f"what survives is tried on {OTHER_PYTHON} too" if other else "on no other"
        print(f"Python {THIS_PYTHON}; {tried}", flush=True)
        print(_row("module", "mutants", "by assertion", "by timeout", "survived", "", "seconds"), flush=True)
        for file, patterns in _modules(options.module):
            try:
                tally, seconds = Trial(file, patterns, STORE, sandboxes, other).run(options.sample)
            except RedError as error:
                print(f"{file}: the tests do not pass on the unchanged code\n{error}", flush=True)
                untested.append(file)
                continue
            _print_module(file, tally, known, seconds)
            total.add(tally)
    return _conclude(total, known, untested)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", action="append", help="only those whose path contains this; repeatable")
    parser.add_argument("--sample", type=int, help="run so many of each module's mutants, chosen at random")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="how many at once")
    parser.add_argument("--fresh", action="store_true", help="forget all outcomes")
    parser.add_argument("--this-python-only", action="store_true", help=f"do without Python {OTHER_PYTHON}")
    return parser.parse_args()


def _modules(wanted: Sequence[str] | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    for pattern, tests in TESTS:
        for path in sorted(ROOT.glob(pattern)):
            file = str(path.relative_to(ROOT))
            if _wanted(file, wanted):
                yield file, tests


def _wanted(file: str, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(part in file for part in wanted)


def _other_sandbox(stack: ExitStack) -> Sandbox | None:
    if THIS_PYTHON == OTHER_PYTHON:
        return None
    python, venv = find_python(OTHER_PYTHON), f".venv-{OTHER_PYTHON}"
    if python is None or run(
        ["make", f"PYTHON={python}", f"VENV={venv}", f"{venv}/.installed-test"], STORE / "setup.log"
    ):
        return None
    return stack.enter_context(Sandbox(STORE / "copy-other", str(ROOT / venv / "bin" / "python")))


def _print_module(file: str, tally: Tally, known: dict[Change, str], seconds: float) -> None:
    progress("")
    print(_tally_row(file, tally, f"{seconds:.0f}"))
    for line, what in tally.survivors:
        where = f"{what.file}:{line}" + (f" in {what.inside}" if what.inside else "")
        print(f"    {where}: {what.was}\n        -> {what.now}")
        print(f"        {known.get(what) or 'NO REASON'}")
    sys.stdout.flush()


def _conclude(total: Tally, known: dict[Change, str], untested: Sequence[str]) -> int:
    print(_tally_row("all", total, ""))
    print(f"left out: {total.annotations} changes of annotations, which are never evaluated")
    survivors = {what for _, what in total.survivors}
    unexplained = sorted(what for what in survivors if not known.get(what))
    if not total.waiting and not untested:
        for what in known.keys() - survivors:
            print(f"no such survivor any more: {what.file} in {what.inside}: {what.was} -> {what.now}")
    if unexplained:
        print(f"\nA test is missing, or an entry in {FILE.name}:\n")
        print("\n".join(map(as_toml, unexplained)))
    complaints = {
        f"tests failed without any mutation: {', '.join(untested)}": untested,
        f"{len(unexplained)} survivors have no reason": unexplained,
        f"more than {MOST_SURVIVORS:.0%} survived": total.share > MOST_SURVIVORS,
        f"{total.waiting} mutants were not run": total.waiting,
    }
    failures = [text for text, failed in complaints.items() if failed]
    print("FAILED: " + "; ".join(failures) if failures else "each survivor has its reason")
    return 1 if failures else 0


def _tally_row(name: str, tally: Tally, seconds: str) -> str:
    survived, share = len(tally.survivors), f"{tally.share:.1%}"
    return _row(name, tally.mutants, tally.asserted, tally.hung, survived, share, seconds)


def _row(name: object, *columns: object) -> str:
    return f"{name:36}" + "".join(f"{column!s:>13}" for column in columns)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; start it again to go on")
        sys.exit(130)
