"""The two runs, one after the other, and what is shown of them."""

from __future__ import annotations

import logging
import sys

from rich.console import Console

import report
from journal import Journal
from progress import Progress
from training import Plan, train


def compare(plan: Plan, max_staleness: int, plot: str | None) -> int:
    """Train twice, show how it went, and write the curves to the file *plot*, None for none.

    Return the exit status: 1 when what may not be happened.
    """
    # What it would warn of, that slow answers are hardly trained on, is in the table.
    logging.getLogger("areal_core").setLevel(logging.ERROR)
    # NumPy lets go of the interpreter lock in each call, and the rollouts' thread would keep it for 5 ms.
    sys.setswitchinterval(0.0005)
    console = Console()
    asynchronous, synchronous = Journal("asynchronous", max_staleness), Journal("synchronous", 0)
    try:
        with Progress(console, (asynchronous, synchronous), plan.steps) as progress:
            for journal in (asynchronous, synchronous):
                train(plan, journal, progress.stepped)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    report.show(console, asynchronous, synchronous)
    if plot is not None:
        from picture import draw  # matplotlib: only when something is to be drawn

        draw(asynchronous, synchronous, plot)
        console.print(f"\nThe curves are in {plot}.", highlight=False)
    return 0 if asynchronous.is_sound and synchronous.is_sound else 1
