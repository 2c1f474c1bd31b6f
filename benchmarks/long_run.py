"""Run ten million tasks through one runner, in pieces, and see whether the last cost what the first did.

After every tenth piece the raw loop runs some such pieces in a process of its own: the ups and downs of the
machine are in both. Ends with 1 when the time or the memory of a task was not flat. What is shown:
README.md beside this file.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from _children import in_child
from _contenders import OURS, RAW, Contender
from _figures import bursts_of, nothing, resident_bytes
from _report import write
from _table import Aim, Spread, number

BUILD = Path(__file__).resolve().parent.parent / "build"
STRETCHES = 100
PIECES = 10
"""Of a stretch."""
RAW_S = 0.1

COST = Aim(1.1, must=1.25)
MEMORY = Aim(2.0, must=8.0)
"""In megabytes, in which Python asks for it: two of them, that is, or eight."""
BLOCKS = Aim(1_000, must=10_000)
MIB = 2**20


@dataclass(frozen=True)
class Stretch:
    """Some pieces: so many tasks each, submitted, run and collected."""

    tasks: int
    """So far, in all."""
    us: float
    """Microseconds a task took: the median of the pieces."""
    raw_us: float
    """What the raw loop took beside it."""
    resident_bytes: int
    blocks: int
    """How many pieces of memory Python holds, after a collection."""


def main() -> int:
    """Measure and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000_000, help="how many in all (default: 10 000 000)")
    parser.add_argument("--json", type=Path, default=BUILD / "bench-long.json", metavar="PATH")
    options = parser.parse_args()
    begin = time.perf_counter()
    stretches = list(_stretches(OURS, max(100, options.tasks // (STRETCHES * PIECES))))
    write(options.json, {"stretches": [asdict(one) for one in stretches]})
    print(f"{time.perf_counter() - begin:.0f} s; {options.json}")
    return _judge(stretches)


def _stretches(contender: Contender, piece: int) -> Iterator[Stretch]:
    contender.start()
    _take(contender, piece)  # the heap has its size then
    for count in range(1, STRETCHES + 1):
        us = [_take(contender, piece) for _ in range(PIECES)]
        raw_us = 1e6 * in_child(partial(bursts_of, RAW, piece, RAW_S))["burst"]
        gc.collect()
        blocks = sys.getallocatedblocks()
        stretch = Stretch(count * PIECES * piece, statistics.median(us), raw_us, resident_bytes(), blocks)
        if count % (STRETCHES // 20) == 0:
            _show(stretch)
        yield stretch
    contender.stop()


def _take(contender: Contender, piece: int) -> float:
    begin = time.perf_counter()
    contender.launch(nothing, piece)
    ended = len(contender.collect(piece))
    if ended != piece:
        raise AssertionError(f"{piece - ended} of {piece} tasks are missing")
    return 1e6 * (time.perf_counter() - begin) / piece


def _show(stretch: Stretch) -> None:
    print(
        f"{stretch.tasks:>12,} tasks: {stretch.us:6.2f} us a task, raw {stretch.raw_us:5.2f} us, "
        f"{stretch.resident_bytes / MIB:6.1f} MB resident, {stretch.blocks:,} blocks",
        flush=True,
    )


def _judge(stretches: Sequence[Stretch]) -> int:
    """Compare the last tenth with the first, print it, and return the exit status."""
    tenth = len(stretches) // 10
    first, last = stretches[:tenth], stretches[-tenth:]
    ratios = Spread.of([one.us / one.raw_us for one in stretches])
    print(f"ours / raw: {number(ratios.median)}, quartiles {'-'.join(map(number, ratios.quartiles))}")
    cost = _median_ratio(last) / _median_ratio(first)
    memory = (_median_memory(last) - _median_memory(first)) / MIB
    blocks = last[-1].blocks - first[-1].blocks
    judged = (
        ("cost of a task against raw, last tenth / first", cost, COST),
        ("memory grown from the first tenth to the last, MB", memory, MEMORY),
        ("blocks grown from the first tenth to the last", float(blocks), BLOCKS),
    )
    for words, value, aim in judged:
        print(f"{words}: {number(value)}, {aim}: {aim.verdict(value)}")
    return 1 if any(aim.verdict(value) == "FAILED" for _, value, aim in judged) else 0


def _median_ratio(stretches: Sequence[Stretch]) -> float:
    return statistics.median(one.us / one.raw_us for one in stretches)


def _median_memory(stretches: Sequence[Stretch]) -> float:
    return statistics.median(one.resident_bytes for one in stretches)


if __name__ == "__main__":
    sys.exit(main())
