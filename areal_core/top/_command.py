"""The command: which run is looked at, and how."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from areal_core._observe.runs import Run, find_runs, read_run, runtime_directories

_NEEDS = "the view needs textual: pip install 'areal-core[top]'; --once prints one frame without it"


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments *argv* (None: this process's); return its exit status."""
    options = _parser().parse_args(argv)
    try:
        runs = _chosen(options.run)
    except (OSError, ValueError) as error:
        return _refuse(f"{options.run}: {error}")
    if not runs:
        return _refuse(_nothing(options.run))
    if options.once:
        return _print_one(runs)
    try:
        from areal_core.top._app import watch
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        return _refuse(_NEEDS)
    watch(runs, only=options.run is not None)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m areal_core.top", description="Look at a run of areal_core from outside."
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="PID | PATH",
        help="a process, or a status file (default: the live run, or a choice of them)",
    )
    parser.add_argument("--once", action="store_true", help="print one frame as plain text")
    return parser


def _chosen(argument: str | None) -> list[Run]:
    """Return the runs to look at, the first of them first. Raises OSError and ValueError."""
    if argument is None:
        runs = find_runs()
        return [run for run in runs if run.is_live] or runs[:1]
    if argument.isdecimal():
        # Who has had that id before is dead, so that those that live come first.
        found = [run for run in find_runs() if run.status.snapshot.pid == int(argument)]
        return sorted(found, key=lambda run: not run.is_live)
    return [read_run(Path(argument))]


def _nothing(argument: str | None) -> str:
    places = ", ".join(map(str, runtime_directories()))
    whose = "no run" if argument is None else f"no run of process {argument}"
    return f"{whose} has a status file in {places}; set status_file in its configuration, or give its path"


def _refuse(words: str) -> int:
    print(words, file=sys.stderr)
    return 1


def _print_one(runs: list[Run]) -> int:
    from areal_core.top._frame import frame

    first, *others = runs
    columns = shutil.get_terminal_size((100, 24)).columns
    try:
        print(frame(first, columns, sys.stdout.encoding or "ascii"), flush=True)
    except BrokenPipeError:  # whoever read it has seen enough; the interpreter flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    for run in others:
        print(f"another run: {run.status.snapshot.program}, pid {run.status.snapshot.pid}", file=sys.stderr)
    return 0
