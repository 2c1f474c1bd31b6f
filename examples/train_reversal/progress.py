"""What is shown while it runs: on a terminal a picture that moves, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from journal import Journal

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-=+*%#"
_LINE_EVERY_S = 5.0


class Progress:
    """Shows the runs of *journals*, of *steps* steps each, for as long as a ``with`` block."""

    def __init__(self, console: Console, journals: Sequence[Journal], steps: int) -> None:
        self._console = console
        self._journals = journals
        self._steps = steps
        # Drawn by nobody but the trainer: a thread that draws would take its time from the rollouts.
        self._live = Live(get_renderable=self._picture, console=console, auto_refresh=False)
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def stepped(self, journal: Journal) -> None:
        """Show that *journal* has one more step."""
        done = len(journal.steps)
        if self._console.is_terminal:
            self._live.refresh()
        elif time.monotonic() - self._said_at > _LINE_EVERY_S or done in (1, self._steps):
            self._said_at = time.monotonic()
            head = f"{journal.name:<12} {done:>3}/{self._steps}  {journal.seconds:5.1f} s"
            print(f"{head}  {figures(journal)}", flush=True)

    def _picture(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        bars = _ASCII_BARS if self._console.options.ascii_only else _BARS
        for journal in self._journals:
            done, rewards = len(journal.steps), [step.reward for step in journal.steps]
            line = Text(bar(rewards, bars), "green").append("." * (self._steps - done), "dim")
            grid.add_row(
                Text(journal.name, "bold" if done else "dim"),
                line,
                f"{done}/{self._steps}",
                f"{journal.seconds:.1f} s",
            )
        running = [journal for journal in self._journals if journal.steps]
        whole = Table.grid()
        whole.add_row(grid)
        whole.add_row(Text(figures(running[-1]) if running else "starting the server", "dim"))
        return whole


def bar(rewards: Sequence[float], bars: str = _BARS) -> str:
    """Return a letter for each reward, the higher the better."""
    return "".join(bars[min(int(reward * len(bars)), len(bars) - 1)] for reward in rewards)


def figures(journal: Journal) -> str:
    """Return what there is to say of the last step."""
    last = journal.steps[-1]
    return (
        f"reward {last.reward:.2f}, staleness {last.mean_staleness:.1f}, max {last.max_staleness}, "
        f"{journal.tokens / journal.seconds:,.0f} tokens/s, "
        f"{journal.running} groups run, {journal.resumed:,} resumed"
    )
