"""Change the library in one place at a time and see whether a test notices.

Goes module by module, keeps each outcome in ``outcomes.json``, and goes on there when it is started again.
Ends with 1 when a mutant survives for which ``survivors.toml`` tells no reason, or more than 5 % survive.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from _baseline import RedError
from _mutants import list_mutants
from _outcomes import FILE as OUTCOMES
from _sandbox import ROOT, THIS_PYTHON, Sandbox
from _survivors import FILE, Change, as_toml, reasons
from _trial import Tally, Trial, progress

sys.path.append(str(ROOT / "tests"))
from all_pythons import find_python, run

STORE = ROOT / "build" / "mutate"
MOST_SURVIVORS = 0.05
OTHER_PYTHON = "3.13"  # from 3.12 on tasks start eagerly

_CLEANUP = ("tests/test_drive.py", "tests/test_loop_cleanup*.py")
_CLIENTS = (
    "tests/test_http_*.py",
    "tests/test_first_import.py",
    "tests/test_descriptors.py",
    "tests/test_workflow_context.py",
)
_LOG = (
    "tests/test_logs.py",
    "tests/test_runner_exit.py",
    "tests/test_runner_looking.py",
    "tests/test_runner_outcomes.py",
    "tests/test_runner_silence.py",
    "tests/test_runner_misbehaviour.py",
)
_RUNNER = ("tests/test_runner_*.py",)
_SCHEDULING = ("tests/test_core_*.py", "tests/test_staleness_manager.py", "tests/test_executor_*.py")
_JOURNAL = ("tests/test_journal_*.py", "tests/test_executor_journal.py", "tests/test_executor_crashes.py")
_WIRE = (
    "tests/test_backend_*.py",
    "tests/test_exchange*.py",
    "tests/test_server_sent.py",
    "tests/test_address.py",
    "tests/test_fuzz_*.py",
)
_AGENTS = ("tests/test_agent_*.py",)
_ENGINE = ("tests/test_engine_*.py",)
_EXECUTOR = ("tests/test_executor_*.py", "tests/test_explain*.py")
_DISTRIBUTED = ("tests/test_dispatcher*.py", "tests/test_distributed*.py", "tests/test_outbox.py")
_SIMULATION = ("tests/test_core_simulation.py", "tests/test_simulation*.py")
_OBSERVING = (
    "tests/test_asking.py",
    "tests/test_dispatcher_traces.py",
    "tests/test_lately.py",
    "tests/test_loop_lateness.py",
    "tests/test_metrics.py",
    "tests/test_progress.py",
    "tests/test_server_stats.py",
    "tests/test_snapshot.py",
    "tests/test_status_file.py",
    "tests/test_top.py",
    "tests/test_tracing.py",
)

# Which tests are to kill the mutants of which modules.
TESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("areal_core/loop_cleanup.py", _CLEANUP),
    ("areal_core/_drive.py", _CLEANUP),
    ("areal_core/_callback.py", _CLEANUP),
    ("areal_core/_process.py", (*_CLEANUP, *_CLIENTS, "tests/test_runner_fork.py")),
    ("areal_core/_log.py", (*_CLEANUP, *_LOG)),
    (
        "areal_core/workflow_context.py",
        (*_CLIENTS, "tests/test_agent_client.py", "tests/test_agent_listening.py"),
    ),
    ("areal_core/_http/*.py", _CLIENTS),
    ("areal_core/async_task_runner.py", _RUNNER),
    ("areal_core/_runner/*.py", _RUNNER),
    *(
        (f"areal_core/_executor/{name}.py", _SCHEDULING)
        for name in (
            "ageing",
            "books",
            "budget",
            "core",
            "delivery",
            "ending",
            "freshness",
            "hold",
            "line",
            "patience",
            "report",
            "requests",
            "rollout",
            "rules",
            "scheduler",
            "settings",
            "standstill",
        )
    ),
    ("areal_core/staleness_manager.py", _SCHEDULING),
    *(
        (f"areal_core/_executor/{name}.py", (*_JOURNAL, "tests/test_executor_dataloaders.py"))
        for name in (
            "journaling",
            "prompts",
            "recovery",
        )
    ),
    ("areal_core/journal.py", _JOURNAL),
    ("areal_core/_journal/*.py", _JOURNAL),
    ("areal_core/_engine/backends/*.py", _WIRE),
    ("areal_core/_engine/wire/*.py", (*_WIRE, "tests/test_engine_hostile.py")),
    ("areal_core/_agents/tool_calls.py", _AGENTS),
)

# And of the others, of which `--rest` takes a sample.
REST: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("areal_core/_agents/*.py", _AGENTS),
    ("areal_core/_engine/*.py", _ENGINE),
    ("areal_core/_executor/*.py", _EXECUTOR),
    ("areal_core/_offload/*.py", ("tests/test_offload.py",)),
    ("areal_core/_trajectory/*.py", ("tests/test_trajectory_*.py",)),
    ("areal_core/_watch/*.py", ("tests/test_loop_watch.py", "tests/test_explain*.py")),
    ("areal_core/embedded/*.py", ("tests/test_embedded*.py", "tests/test_pytest_plugin.py")),
    ("areal_core/embedded/_*/*.py", ("tests/test_embedded*.py",)),
    ("areal_core/workflows/*.py", ("tests/test_workflows.py",)),
    ("areal_core/_distributed/*.py", _DISTRIBUTED),
    ("areal_core/_observe/*.py", _OBSERVING),
    ("areal_core/_simulation/*.py", _SIMULATION),
    ("areal_core/top/*.py", ("tests/test_top.py",)),
    ("areal_core/__init__.py", ("tests/test_facade.py", "tests/test_first_import.py")),
    ("areal_core/_checks.py", ("tests/test_types.py", "tests/test_config.py")),
    ("areal_core/_context.py", _CLIENTS + _AGENTS),
    ("areal_core/_descriptors.py", _CLIENTS),
    ("areal_core/_field_docs.py", ("tests/test_field_docs.py",)),
    ("areal_core/_frames.py", ("tests/test_frames.py", "tests/test_loop_watch.py")),
    ("areal_core/_hiding.py", ("tests/test_hiding.py", "tests/test_security.py")),
    ("areal_core/_interruption.py", ("tests/test_interruption.py",)),
    ("areal_core/_json.py", _OBSERVING),
    ("areal_core/_lazy.py", ("tests/test_facade.py",)),
    ("areal_core/_record.py", _EXECUTOR),
    ("areal_core/_unique.py", _ENGINE),
    ("areal_core/agents.py", _AGENTS),
    ("areal_core/config.py", ("tests/test_config.py",)),
    ("areal_core/distributed.py", _DISTRIBUTED),
    ("areal_core/errors.py", (*_EXECUTOR, *_DISTRIBUTED)),
    ("areal_core/explain.py", ("tests/test_explain*.py",)),
    ("areal_core/logs.py", ("tests/test_logs.py",)),
    ("areal_core/metrics.py", _OBSERVING),
    ("areal_core/offload.py", ("tests/test_offload.py",)),
    ("areal_core/remote_inf_engine.py", _ENGINE),
    ("areal_core/simulation.py", _SIMULATION),
    ("areal_core/trajectory.py", ("tests/test_trajectory_*.py",)),
    ("areal_core/types.py", ("tests/test_types.py",)),
    ("areal_core/workflow_executor.py", _EXECUTOR),
)


def main() -> int:
    """Run what was asked for and return the exit status."""
    options = _options()
    if forgotten := _in_no_table():
        print(f"FAILED: {', '.join(forgotten)}: name the tests of these in TESTS or REST")
        return 1
    if options.fresh:
        OUTCOMES.unlink(missing_ok=True)
    STORE.mkdir(parents=True, exist_ok=True)
    total, untested = Tally(), []
    known = {what: why for what, why in reasons().items() if _wanted(what.file, options.module)}
    with ExitStack() as stack:
        lock = stack.enter_context((STORE / "lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two runs would write the same copies
        copies = [STORE / f"copy-{worker}" for worker in range(options.workers)]
        sandboxes = [stack.enter_context(Sandbox(copy)) for copy in copies]
        others = [] if options.this_python_only else _other_sandboxes(stack, options.workers)
        tried = f"what survives is tried on {OTHER_PYTHON} too" if others else "on no other"
        print(f"Python {THIS_PYTHON}; {tried}", flush=True)
        print(_row("module", "mutants", "by assertion", "by timeout", "survived", "", "seconds"), flush=True)
        modules = dict(_modules(REST if options.rest else TESTS, options.module))
        samples = _share(modules, options.rest) if options.rest else dict.fromkeys(modules, options.sample)
        for file, sample in samples.items():
            trial = Trial(
                file, modules[file], sandboxes, others, all_tests=options.all_tests, longest_s=options.quick
            )
            try:
                tally, seconds = trial.run(sample, lambda what: options.again or not known.get(what))
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
    parser.add_argument(
        "--sample", type=int, help="run so many of each module's mutants, the same ones each time"
    )
    parser.add_argument("--rest", type=int, metavar="N", help="instead, N mutants of all the other modules")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="how many at once")
    parser.add_argument("--again", action="store_true", help="run survivors again that have a reason, too")
    parser.add_argument(
        "--all-tests", action="store_true", help="try also tests that were not seen to reach the change"
    )
    parser.add_argument(
        "--quick",
        type=float,
        metavar="S",
        help="leave out tests that take longer; what survives without a reason waits on",
    )
    parser.add_argument("--fresh", action="store_true", help="forget all outcomes")
    parser.add_argument("--this-python-only", action="store_true", help=f"do without Python {OTHER_PYTHON}")
    return parser.parse_args()


def _modules(
    table: Sequence[tuple[str, tuple[str, ...]]], wanted: Sequence[str] | None
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the modules of *table*, each once; those of `TESTS` are in no other."""
    seen: set[str] = set()
    for pattern, tests in TESTS if table is TESTS else (*TESTS, *table):
        for file in sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)):
            if file not in seen and _wanted(file, wanted) and (pattern, tests) in table:
                yield file, tests
            seen.add(file)


def _in_no_table() -> list[str]:
    """Return the modules that no table has tests for: they would be left out without a word."""
    known = {file for table in (TESTS, REST) for file, _ in _modules(table, None)}
    return sorted({str(path.relative_to(ROOT)) for path in ROOT.glob("areal_core/**/*.py")} - known)


def _share(files: Iterable[str], count: int) -> dict[str, int]:
    """Return how many of *count* mutants, chosen from all of *files* alike, are each module's."""
    all_of_them = [file for file in files for _ in list_mutants(ROOT / file).specs]
    return Counter(random.Random(0).sample(all_of_them, min(count, len(all_of_them))))


def _wanted(file: str, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(part in file for part in wanted)


def _other_sandboxes(stack: ExitStack, count: int) -> list[Sandbox]:
    if THIS_PYTHON == OTHER_PYTHON:
        return []
    python, venv = find_python(OTHER_PYTHON), f".venv-{OTHER_PYTHON}"
    if python is None or run(
        ["make", f"PYTHON={python}", f"VENV={venv}", f"{venv}/.installed-test"], STORE / "setup.log"
    ):
        return []
    copies = [STORE / f"copy-other-{worker}" for worker in range(count)]
    python_there = str(ROOT / venv / "bin" / "python")
    return [stack.enter_context(Sandbox(copy, python_there, OTHER_PYTHON)) for copy in copies]


def _print_module(file: str, tally: Tally, known: dict[Change, str], seconds: float) -> None:
    progress("")
    print(_tally_row(file, tally, f"{seconds:.0f}"))
    for line, what in tally.survivors:
        print(f"    {_shown(line, what)}")
        print(f"        {known.get(what) or 'NO REASON'}")
    for line, what in tally.left:
        print(f"    waits: {_shown(line, what)}")
    sys.stdout.flush()


def _shown(line: int, what: Change) -> str:
    where = f"{what.file}:{line}" + (f" in {what.inside}" if what.inside else "")
    return f"{where}: {what.was}\n        -> {what.now}"


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
