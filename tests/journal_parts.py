"""What tests of the parts of a journal have in common."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path


def opened(path: Path) -> int:
    """Return how often this process has *path* open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            found += entry.readlink() == path
    return found


class Clock:
    """Stands for the module ``time``: only sleeping makes it go on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert len(self.naps) < 9, "it goes on for ever"
        self.naps.append(seconds)
        self.now += seconds


def changed(path: Path, *statements: str) -> Path:
    """Execute *statements* in the file, which is made if there is none."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path
