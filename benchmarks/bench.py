"""Measure the library against its limits and against its peers, in one run.

Shows each row of the table as it is measured, then the whole table; writes it as JSON, and a picture of what
grows with the number in flight. Ends with 1 when something failed that must hold. What the rows mean:
README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _answering import answering_server
from _children import in_child
from _profiles import explain
from _report import Outcome, block, document, heading, summary, table, write
from _scale import FULL, QUICK, Scale
from _table import Line, Row, measure
from areal_core.workflow_context import ensure_descriptors

BUILD = Path(__file__).resolve().parent.parent / "build"
MODULES = {
    "runner": "_runner_rows",
    "clients": "_client_rows",
    "generation": "_generation_rows",
    "executor": "_executor_rows",
    "peers": "_peer_rows",
    "flight": "_flight_rows",
    "distributed": "_distributed_rows",
}
"""Each section's rows. A module is imported when its section begins: what it brings into memory costs the
collector time in every process forked later."""
SERVED = ("clients", "generation")
DESCRIPTORS = 4096
"""What the most connections at once need, in a client and in the server."""
VERSIONS = ("uvloop", "aiohttp", "httpx", "httpx2", "anyio", "aiojobs", "ray", "msgspec", "numpy")


@dataclass
class Run:
    """One run of the benchmark, as far as it has come."""

    scale: Scale
    chosen: frozenset[str]
    """Names of rows or sections; none: all."""
    most_rounds: int | None
    profiles_all: bool
    """Whether also rows that miss no aim are profiled."""
    begin: float = field(default_factory=time.perf_counter)
    outcomes: list[Outcome] = field(default_factory=list)

    def wants(self, section: str, row: Row) -> bool:
        """Return whether a row was asked for."""
        return not self.chosen or section in self.chosen or row.name in self.chosen

    def take(self, section: str, row: Row) -> None:
        """Measure and show one row."""
        print(f"\n[{self._elapsed()}] {row.name}: {row.title}", flush=True)
        begin = time.perf_counter()
        rounds = self.most_rounds or self.scale.rounds(row.rounds)
        results = measure(row, rounds, in_child, lambda count: _progress(count, rounds))
        _progress(rounds, rounds)
        outcome = Outcome(section, row, results, time.perf_counter() - begin)
        print("\n".join(block(outcome)), flush=True)
        for profile in dict.fromkeys(explain(row, line, results) for line in self._doubtful(outcome)):
            outcome.profiles.append(profile)
            print(profile, flush=True)
        self.outcomes.append(outcome)

    def _doubtful(self, outcome: Outcome) -> list[Line]:
        """Return the lines that a profile has to explain."""
        missed = list(outcome.missed())
        compared = [line for line in outcome.lines if line.reading.compares is not None]
        return missed or (compared[:1] if self.profiles_all else [])

    def _elapsed(self) -> str:
        minutes, seconds = divmod(round(time.perf_counter() - self.begin), 60)
        return f"{minutes}:{seconds:02}"


def main() -> int:
    """Measure what was asked for and return the exit status."""
    options = _options()
    chosen = frozenset(name for name in options.rows.split(",") if name)
    known = in_child(_known)  # in a child: this process is to stay small
    unknown = chosen - known.keys() - {name for names in known.values() for name in names}
    if unknown:
        print(f"there are no rows {', '.join(sorted(unknown))}; there are\n{_listed(known)}", file=sys.stderr)
        return 2
    ensure_descriptors(DESCRIPTORS)  # before the server starts, which inherits the limit
    run = Run(QUICK if options.quick else FULL, chosen, options.rounds, options.profile)
    about = _about(run)
    print(_heading(about), flush=True)
    for section in MODULES:
        if not chosen or chosen & {section, *known[section]}:
            _take_section(run, section)
    return _finish(run, about, options.json, options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and fewer tasks, only for a look")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these rows or sections")
    parser.add_argument("--rounds", type=int, help="how many of each row (default: as many as it needs)")
    parser.add_argument("--profile", action="store_true", help="profile rows that miss no aim, too")
    parser.add_argument("--json", type=Path, default=BUILD / "bench.json", metavar="PATH")
    parser.add_argument("--plot", type=Path, default=BUILD / "bench.png", metavar="PATH")
    return parser.parse_args()


def _rows(section: str, scale: Scale, url: str) -> Iterator[Row]:
    rows: Callable[[Scale, str], Iterator[Row]] = importlib.import_module(MODULES[section]).rows
    return rows(scale, url)


def _known() -> dict[str, list[str]]:
    return {section: [row.name for row in _rows(section, QUICK, "")] for section in MODULES}


def _listed(known: dict[str, list[str]]) -> str:
    return "\n".join(f"  {section}: {', '.join(names)}" for section, names in known.items())


def _take_section(run: Run, section: str) -> None:
    print(f"\n== {section}\n{heading()}", flush=True)
    with answering_server() if section in SERVED else nullcontext("") as url:
        for row in _rows(section, run.scale, url):
            if run.wants(section, row):
                run.take(section, row)


def _finish(run: Run, about: dict[str, Any], json_path: Path, plot_path: Path) -> int:
    about["seconds"] = round(time.perf_counter() - run.begin)
    about["load_after"] = os.getloadavg()[0]
    found = document(about, run.outcomes)
    write(json_path, found)
    print("\n== all\n" + "\n".join(table(run.outcomes)))
    print(f"\n{about['seconds']} s, load {about['load_after']:.1f}; {json_path}{_drawn(found, plot_path)}")
    print("\n".join(summary(run.outcomes)))
    failures = [failure for outcome in run.outcomes for failure in outcome.failures()]
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def _drawn(found: dict[str, Any], path: Path) -> str:
    if not found["curves"]:
        return ""
    try:
        from _plot import draw
    except ModuleNotFoundError as error:
        return f"; no picture: {error}"
    draw(found, path)
    return f", {path}"


def _about(run: Run) -> dict[str, Any]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: _version(name) for name in VERSIONS},
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "quick": run.scale is QUICK,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _heading(about: dict[str, Any]) -> str:
    there = ", ".join(f"{name} {found}" for name, found in about["versions"].items() if found)
    missing = ", ".join(name for name, found in about["versions"].items() if not found)
    text = f"{about['python']}, {about['cores']} cores, load {about['load_before']:.1f}; {there}"
    if missing:
        text += f"\nnot installed: {missing}"
    text += "\nMedians of alternating rounds; raw is create_task and await on one uvloop, by hand."
    if about["quick"]:
        text += "\nQUICK: few rounds and few tasks, so these are not the numbers of the table."
    return text


def _progress(count: int, rounds: int) -> None:
    """Show on a terminal which round it is; nothing elsewhere, and nothing once all are done."""
    if sys.stdout.isatty():
        words = f"  round {count + 1} of {rounds}" if count < rounds else ""
        print(f"\r{words:<40}\r", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
