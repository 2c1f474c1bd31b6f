"""What the system gave a thread of this process. Linux tells; elsewhere nothing is known."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ProcessorTime(NamedTuple):
    """Seconds since the thread began."""

    running: float
    """On a processor."""
    waiting: float
    """Ready to run, with all processors busy."""


def processor_time(native_id: int | None) -> ProcessorTime | None:
    """Return the times of the thread that the system calls *native_id*; None where it does not tell."""
    try:
        text = Path(f"/proc/self/task/{native_id}/schedstat").read_text()
        running, waiting, _ = map(int, text.split())
    except (OSError, ValueError):
        return None
    return ProcessorTime(running / 1e9, waiting / 1e9)
