"""Cycle after cycle of runners, loops, threads and clients leaves nothing behind: the short form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from children import RunScript

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

LEAKS = f"""
import runpy, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path({str(BENCHMARKS / "leaks.py")!r}, run_name="__main__")
"""

COUNT = f"""
import os, sys, threading
sys.path.insert(0, {str(BENCHMARKS)!r})
from _census import complaints, cycle_twice

class Leaked: pass
kinds = [type("Kind" + str(number), (), {{}}) for number in range(11)]

kept, stop = [], threading.Event()
start = lambda: threading.Thread(target=stop.wait, daemon=True).start()
cycles = {{
    "nothing": lambda: Leaked(),
    "object": lambda: kept.append(Leaked()),
    "several": lambda: kept.extend(kind() for kind in kinds),
    "descriptor": lambda: kept.append(os.dup(0)),
    "thread": start,
}}
before, after = cycle_twice(cycles[sys.argv[1]], 1, int(sys.argv[2]))
print(*complaints(before, after), sep="\\n", end="")
stop.set()
"""


def test_cycles_of_runners_loops_threads_and_clients_leave_nothing_behind(
    run_script: RunScript, loop_name: str
) -> None:
    leaks = run_script(LEAKS, "--cycles", "20", "60", "--loop", loop_name)
    assert (leaks.stderr, leaks.returncode) == ("", 0), leaks.stdout
    assert leaks.stdout.endswith("\nnothing grew by more than may be\n")


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("leak", "cycles", "said"),
    [
        ("nothing", 60, ""),
        ("object", 6, ""),
        ("object", 7, r"__main__\.Leaked grew by 6; at most 5 of a type are allowed"),
        ("several", 5, ""),
        ("several", 6, r"objects grew by \d+; at most 50 are allowed"),
        ("descriptor", 2, r"descriptors went from \d+ to \d+; they must be equal"),
        ("thread", 2, "threads went from 2 to 3; they must be equal"),
    ],
)
def test_the_count_says_what_was_left_behind(
    run_script: RunScript, leak: str, cycles: int, said: str
) -> None:
    count = run_script(COUNT, leak, str(cycles))
    assert (count.stderr, count.returncode) == ("", 0)
    assert re.fullmatch(said, count.stdout), count.stdout
