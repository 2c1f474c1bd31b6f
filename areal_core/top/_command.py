"""The command: which run is looked at, and how; and what its exit status says."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from areal_core._observe.runs import Run, State, find_runs, read_run, runtime_directories
from areal_core.top._frame import entry, frame

_STATUSES = {State.LIVE: 0, State.ENDED: 0, State.DIED: 3, State.SILENT: 4}
_EPILOG = """\
Where input or output is no terminal, it prints one frame as with --once. The exit status of --once:
0  the run lives, or has ended as it should; of several that live it prints a list
1  there is nothing to see; standard error says why
2  the arguments make no sense
3  the run has died: its process is gone without a word
4  the run is silent: its process is there, and has said nothing for ten seconds"""
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
    if options.once or not _is_on_terminal():
        live = [run for run in runs if run.is_live]
        return _print_list(live) if len(live) > 1 else _print(runs[0], frame)
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
        prog="python -m areal_core.top",
        description="Look at a run of areal_core from outside.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="PID | PATH",
        help="a process, or a status file (default: the live run, or a choice of them)",
    )
    parser.add_argument("--once", action="store_true", help="print one frame as plain text")
    return parser


def _is_on_terminal() -> bool:
    """Return whether somebody can look at the view, and press keys: textual reads one and writes another."""
    try:
        return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    except (AttributeError, ValueError):  # None, or closed
        return False


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


def _print_list(runs: list[Run]) -> int:
    """Say which runs there are, a line and its file for each; return the worst status of them."""
    print(f"{len(runs)} runs live; give a process id, or a status file, to see one", file=sys.stderr)
    return max(_print(run, entry) for run in runs)


def _print(run: Run, text: Callable[[Run, int, str], str]) -> int:
    columns = shutil.get_terminal_size((100, 24)).columns
    try:
        print(text(run, columns, sys.stdout.encoding or "ascii"), flush=True)
    except BrokenPipeError:  # whoever read it has seen enough; the interpreter flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _STATUSES[run.state]
