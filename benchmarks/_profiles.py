"""Where the time or the memory of two figures goes, side by side: what stands in the way of an aim."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _children import MeasurementError, forked, in_child
from _table import BYTES, Absent, Figure, Line, Results, Row, medians

SECONDS = 3
RATE = 500
SHOWN = 14

COLLECTOR = "the collector of garbage"


def explain(row: Row, line: Line, results: Results) -> str:
    """Return where the figures of a reading spend what they do, as a table; or why that is not known.

    The second of the two is 100 in all, and the first as much more as it was measured to be.
    """
    if line.reading.compares is None:
        return f"  no profile: {line.reading.label} compares nothing"
    names = [name.partition(": ")[0] for name in line.reading.compares]
    figures = [row.profiles.get(name, row.figures[name]) for name in names]
    look = _allocated if row.unit is BYTES else _sampled
    try:
        found = [look(figure) for figure in figures if not isinstance(figure, Absent)]
    except MeasurementError as error:
        return f"  no profile: {error}"
    return _side_by_side(
        names, [_scaled(found[0], 100 * _times(row, line, results)), _scaled(found[1], 100.0)]
    )


def _times(row: Row, line: Line, results: Results) -> float:
    """Return how many times what the second figure costs the first does."""
    assert line.reading.compares is not None
    first, second = line.reading.compares
    middle = medians(results)
    share = middle[first] / middle[second]
    return 1 / share if row.unit_of(first).is_rate else share


def _scaled(found: Counter[str], total: float) -> dict[str, float]:
    return {place: total * count / found.total() for place, count in found.items()}


def _side_by_side(names: list[str], found: list[dict[str, float]]) -> str:
    first, second = found
    places = sorted(first | second, key=lambda place: -max(first.get(place, 0), second.get(place, 0)))
    shown, rest = places[:SHOWN], places[SHOWN:]
    lines = [f"  {'profile: where it goes':<72}{names[0]:>18}{names[1]:>18}"]
    lines += [_line(place, first.get(place, 0.0), second.get(place, 0.0)) for place in shown]
    lines.append(_line("all else", *(sum(side.get(place, 0.0) for place in rest) for side in found)))
    lines.append(_line("together", sum(first.values()), sum(second.values())))
    return "\n".join(lines)


def _line(place: str, first: float, second: float) -> str:
    return f"    {place[:68]:<70}{first:>18.1f}{second:>18.1f}"


def _sampled(figure: Figure) -> Counter[str]:
    """Return samples of a process that takes *figure* again and again, by place.

    They are of the thread that holds the interpreter's lock: py-spy takes others that wait for running ones.
    """
    command = shutil.which("py-spy", path=Path(sys.executable).parent) or shutil.which("py-spy")
    if command is None:
        raise MeasurementError("py-spy is not installed: pip install py-spy")
    with tempfile.TemporaryDirectory() as directory, forked(partial(_repeat, figure)) as child:
        time.sleep(0.3)  # for its imports and its first warm-up; the samples need no exact beginning
        stacks = Path(directory) / "stacks"
        arguments = ["--pid", str(child.pid), "--rate", str(RATE), "--duration", str(SECONDS)]
        arguments += ["--gil", "--native", "--format", "raw", "--output", str(stacks)]
        spy = subprocess.run([command, "record", *arguments], capture_output=True, text=True, check=False)
        if spy.returncode or not stacks.exists():
            raise MeasurementError(f"py-spy: {spy.stderr.strip()}")
        return _places(stacks.read_text())


def _repeat(figure: Callable[[], object]) -> None:
    end = time.monotonic() + 2 * SECONDS
    while time.monotonic() < end:
        figure()


def _places(stacks: str) -> Counter[str]:
    places: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        places[_place(stack.split(";"))] += int(count)
    return places


def _place(frames: list[str]) -> str:
    """Return the innermost Python function of a stack; what C does for it is on its account."""
    if any("gc_collect" in frame for frame in frames):
        return COLLECTOR
    functions = [frame for frame in frames if ".py:" in frame]
    return re.sub(r":\d+\)$", ")", functions[-1]) if functions else "outside of Python"


def _allocated(figure: Figure) -> Counter[str]:
    """Return the bytes that are there after *figure*, by the line that asked for them."""
    return Counter(in_child(partial(_trace, figure)))


def _trace(figure: Callable[[], object]) -> dict[str, int]:
    tracemalloc.start()
    figure()
    snapshot = tracemalloc.take_snapshot()
    return {
        f"{'/'.join(Path(one.traceback[0].filename).parts[-2:])}:{one.traceback[0].lineno}": one.size
        for one in snapshot.statistics("lineno")[:40]
    }
