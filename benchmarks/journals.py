"""Measure what makes the journal's records durable: SQLite beside LMDB and beside a plain file.

Appends records of 2 and of 64 kB in batches of 1, 16 and 256, each batch durable before the next, and prints
how long one record takes and how that compares with the journal's own store. Then: what `put` costs its
caller, and what packing a trajectory at once costs beside a copy of its arrays.

Durable is what the disk under --directory says it is: give one on the disk that the journal will be on.
LMDB is measured where py-lmdb is installed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from areal_core._journal.packing import pack
from areal_core._journal.records import Ended
from areal_core._journal.store import Store
from areal_core._journal.writer import Writer
from areal_core._trajectory.arrays import copy_of

SIZES = (2_000, 64_000)
BATCHES = (1, 16, 256)

Append = Callable[[Sequence[bytes]], object]
Measure = Callable[[Path, Sequence[Sequence[bytes]]], float]


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000, help="how many to append, of each size")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--directory", help="where to write; by default where temporary files are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        _compare(Path(directory), options.records, options.rounds)
        _measure_put(Path(directory), options.records, options.rounds)
    return 0


def by_sqlite(directory: Path, batches: Sequence[Sequence[bytes]]) -> float:
    """Return the seconds that the journal's store takes."""
    with Store(directory) as store:
        store.read()
        return _seconds(lambda batch: store.append([Ended("0:1", "accepted", one) for one in batch]), batches)


def by_lmdb(directory: Path, batches: Sequence[Sequence[bytes]]) -> float:
    """Return the seconds that LMDB takes, one durable transaction per batch."""
    environment: Any = importlib.import_module("lmdb").open(str(directory), map_size=2**32)
    row = iter(range(sys.maxsize))

    def append(batch: Sequence[bytes]) -> None:
        with environment.begin(write=True) as transaction:
            for one in batch:
                transaction.put(next(row).to_bytes(8, "big"), one, append=True)

    with environment:
        return _seconds(append, batches)


def by_file(directory: Path, batches: Sequence[Sequence[bytes]]) -> float:
    """Return the seconds that a file takes to which size, CRC-32 and bytes are appended, and fdatasync."""
    directory.mkdir()
    file = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def append(batch: Sequence[bytes]) -> None:
        heads = [len(one).to_bytes(8, "big") + zlib.crc32(one).to_bytes(4, "big") for one in batch]
        os.write(file, b"".join(part for pair in zip(heads, batch, strict=True) for part in pair))
        os.fdatasync(file)

    try:
        return _seconds(append, batches)
    finally:
        os.close(file)


CONTENDERS: dict[str, Measure] = {"SQLite": by_sqlite, "LMDB": by_lmdb, "file": by_file}


def _compare(directory: Path, records: int, rounds: int) -> None:
    contenders = dict(CONTENDERS)
    try:
        importlib.import_module("lmdb")
    except ImportError:
        print("LMDB is not measured: py-lmdb is not installed")
        del contenders["LMDB"]
    print(f"{'record':>8} {'batch':>6}" + "".join(f"{name + ' us':>12} {'ratio':>6}" for name in contenders))
    for size in SIZES:
        data = [os.urandom(size) for _ in range(records)]
        for at_once in BATCHES:
            batches = [data[start : start + at_once] for start in range(0, records, at_once)]
            taken = _in_turns(directory, contenders, batches, rounds)
            cells = [
                f"{seconds / records * 1e6:12.1f} {seconds / taken['SQLite']:6.2f}"
                for seconds in taken.values()
            ]
            print(f"{size:8} {at_once:6}" + "".join(cells), flush=True)


def _in_turns(
    directory: Path, contenders: dict[str, Measure], batches: Sequence[Sequence[bytes]], rounds: int
) -> dict[str, float]:
    """Return the median of each. They take turns: what the disk is at meanwhile meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            with tempfile.TemporaryDirectory(dir=directory) as own:
                taken[name].append(measure(Path(own) / "it", batches))
    return {name: statistics.median(some) for name, some in taken.items()}


def _seconds(append: Append, batches: Sequence[Sequence[bytes]]) -> float:
    begun = time.perf_counter()
    for batch in batches:
        append(batch)
    return time.perf_counter() - begun


def _measure_put(directory: Path, records: int, rounds: int) -> None:
    with Store(directory / "put") as store:
        store.read()
        with Writer(store) as writer:
            record = Ended("0:1", "rejected")
            taken = _best(partial(_put_all, writer, record, records), rounds) / records
            print(f"\nput of a record without bytes: {taken * 1e6:.2f} us")
    print(f"{'trajectory':>12} {'copy us':>10} {'pack us':>10} {'ratio':>6}")
    for tokens in (200, 2_000, 32_000, 3_000_000):
        trajectory = _trajectory(tokens)
        size = sum(array.nbytes for array in trajectory.values())
        copied = _best(partial(_copy_all, trajectory), rounds)
        packed = _best(partial(pack, trajectory), rounds)
        print(f"{size:12} {copied * 1e6:10.1f} {packed * 1e6:10.1f} {packed / copied:6.2f}")


def _put_all(writer: Writer, record: Ended, records: int) -> None:
    for _ in range(records):
        writer.put(record)


def _copy_all(trajectory: dict[str, Any]) -> list[Any]:
    return [copy_of(array) for array in trajectory.values()]


def _best(act: Callable[[], object], rounds: int) -> float:
    """Return the least of the seconds that *act* takes: the rest is the machine's."""
    taken = []
    for _ in range(max(5, rounds)):
        begun = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _trajectory(tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    shape = (1, tokens)
    kinds = {"input_ids": np.int64, "logprobs": np.float32, "versions": np.int32}
    kinds |= {"attention_mask": np.int32, "loss_mask": np.int32}
    return {name: np.ones(shape, kind) for name, kind in kinds.items()}


if __name__ == "__main__":
    sys.exit(main())
