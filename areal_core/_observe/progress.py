"""Progress on stderr: `ProgressBar`, or where that is no terminal a line now and then, `PlainLines`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import std

from areal_core._executor.snapshot import Snapshot, Wait
from areal_core._observe.rates import Rates
from areal_core._observe.terminal import Terminal, leave_screen, screen_of

_tqdm: Any = std.tqdm  # what a subclass of it needs is not in its stubs

_WIDEST_BAR = 40
_NARROWEST_BAR = 4
_FREE_COLUMNS = 3
"""At the end of the line, for the ``^C`` of who types one: a line that wraps could not be cleared."""
_PLAIN_S = 10.0


# -- what it says ----------------------------------------------------------------------------------


def progress_line(snapshot: Snapshot, rates: Rates, columns: int, is_unicode: bool = True) -> str:
    """Return what goes on, in *columns* characters at most, with a bar where there is room for one."""
    wait = _most_wanted(snapshot)
    there, count = (snapshot.units_waiting, snapshot.batch) if wait is None else (wait.there, wait.count)
    for label, parts in _wordings(snapshot, rates, wait):
        begin, text = f"v{snapshot.version} {label}{there}/{count}", "  ".join(filter(None, parts))
        room = columns - len(begin) - len(text) - 4
        if room >= _NARROWEST_BAR:
            bar = _bar(there / max(1, count), min(room, _WIDEST_BAR), is_unicode)
            return f"{begin} |{bar}| {text}".rstrip()
    return f"v{snapshot.version} {there}/{count}"[:columns]


def _most_wanted(snapshot: Snapshot) -> Wait | None:
    """Return what a trainer would want to know of, when several wait."""
    order = [wait for wait in snapshot.waits if wait.want == "batch"] or list(snapshot.waits)
    return order[0] if order else None


def _bar(share: float, columns: int, is_unicode: bool) -> str:
    made: Any = std
    charset = made.Bar.UTF if is_unicode else made.Bar.ASCII
    return format(made.Bar(min(1.0, share), charset=charset), str(columns))


def _labels(snapshot: Snapshot, wait: Wait | None) -> tuple[str, str]:
    """Return what is waited for, and the same in one word or none."""
    if snapshot.is_paused:
        return "PAUSED ", "PAUSED "
    if wait is None:
        return "next batch ", "next "
    if wait.is_held:
        return "waits for stragglers ", "held "
    if wait.want == "batch":
        return "batch ", ""
    return ("evaluation ", "eval ") if wait.is_eval else ("rollouts ", "")


def _wordings(snapshot: Snapshot, rates: Rates, wait: Wait | None) -> Iterator[tuple[str, list[str]]]:
    """Give what comes before the counts and after the bar, in fewer and fewer words."""
    left_s = None if wait is None else rates.left_s(wait)
    done, running = snapshot.training, snapshot.training.running + snapshot.evaluation.running
    bad, speed = done.failed + done.timed_out, rates.tokens_per_s
    stale = f"{snapshot.staleness.staleness_mean:.1f}"
    tokens = "" if speed is None else _tqdm.format_sizeof(speed)
    left = "" if left_s is None else _tqdm.format_interval(left_s)
    label, word = _labels(snapshot, wait)
    yield (
        label,
        [
            f"{left} left" if left else "",
            f"{done.accepted} accepted, {done.rejected} rejected, {bad} failed",
            f"{running} in flight",
            f"staleness {stale}",
            f"{tokens} tokens/s" if tokens else "",
        ],
    )
    ends = f"{done.accepted} ok {done.rejected} rej {bad} bad"
    short = [left, ends, f"{running} run", f"stale {stale}", f"{tokens} tok/s" if tokens else ""]
    # What is said of the past goes first.
    for places in ((0, 1, 2, 3, 4), (0, 1, 2, 4), (0, 1, 2), (0, 1), (0,), ()):
        yield word, [short[place] for place in places]


# -- where it says it ------------------------------------------------------------------------------


def open_progress() -> ProgressBar | PlainLines:
    """Begin to show progress on stderr, as that allows. Raises OSError where there is none."""
    stream = sys.stderr
    if stream is None:
        raise OSError("there is no standard error")
    try:
        return ProgressBar(Terminal(stream))
    except (AttributeError, OSError, ValueError):  # a file, a notebook, closed
        return PlainLines(stream)


class PlainLines:
    """Writes a line now and then, for files and notebooks."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._said_at: float | None = None

    def show(self, snapshot: Snapshot, rates: Rates) -> None:
        """Write what goes on, unless that was done a moment ago. Raises OSError and ValueError."""
        if self._said_at is None or snapshot.uptime_s - self._said_at >= _PLAIN_S:
            self._said_at = snapshot.uptime_s
            self._stream.write(f"{progress_line(snapshot, rates, 120, is_unicode=False)}\n")
            self._stream.flush()

    def close(self) -> None:
        """Write no more."""


class ProgressBar:
    """A bar on *terminal*, which it closes. It goes as if it had never been there."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._screen = screen_of(terminal)
        with _lock_of_others():
            self._line = _Line(terminal)

    def show(self, snapshot: Snapshot, rates: Rates) -> None:
        """Draw what goes on, unless the terminal is somebody else's now. Raises OSError and ValueError."""
        if self._terminal.is_closed:
            raise ValueError("standard error was closed")
        columns, _ = self._terminal.size
        room = max(1, columns - _FREE_COLUMNS)
        self._line.text = progress_line(snapshot, rates, room, self._terminal.is_unicode)
        if self._screen.is_mid_line or not self._terminal.is_free():
            return
        self._screen.is_drawn = True  # before looking again whether a line was begun
        if not self._screen.is_mid_line:
            was_cleared, self._screen.is_cleared = self._screen.is_cleared, False
            self._line.draw(with_others=was_cleared)

    def close(self) -> None:
        """Clear the bar. Raises OSError."""
        try:
            if not self._terminal.is_closed and self._terminal.is_free():
                self._screen.clear(self._line.clear)
        finally:
            leave_screen(self._screen)
            with _lock_of_others():
                self._line.close()
            self._terminal.close()


class _Line(_tqdm):  # type: ignore[misc]
    """A line that tqdm finds a place for among the program's own bars."""

    monitor_interval = 0  # no thread of tqdm's: ours draws
    # Its own would settle how `multiprocessing` starts processes, which is the program's to say.
    _lock = threading.RLock()

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.text = ""
        self.pos = 0
        self.disable: bool | None = True
        super().__init__(total=1, file=terminal.stream, leave=False, delay=1e-9)

    def draw(self, *, with_others: bool) -> None:
        """Draw the line, and *with_others* all other bars too: a print has cleared them."""
        with _lock_of_others():
            others = [one for one in _tqdm._instances if one is not self and hasattr(one, "start_t")]
            self._go_to(self._get_free_pos(self))
            for other in others if with_others else ():
                other.refresh(nolock=True)
            self.display()

    def _go_to(self, place: int) -> None:
        """Be *place* lines below the first of the program's own bars, if there is room nearer to it."""
        if place < self.pos:
            self.clear()
            self.pos = place

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show *msg*, None: the line, in its place, at one stroke."""
        place = abs(self.pos if pos is None else pos)
        if self.disable or place >= self._terminal.size[1] - 1:
            return False
        text = self.text if msg is None else msg
        self._terminal.write("\n" * place + "\r" + text + "\x1b[K" + "\x1b[A" * place)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Show nothing."""
        if self.display(""):
            self._terminal.write("\r")

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool:
        """Show the line, for others who have written to the terminal."""
        return self.display()

    def close(self) -> None:
        """Leave the place to others. Clears nothing."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)

    def __del__(self) -> None:
        """Write nothing: a forked child has the object too, and no bar."""


@contextmanager
def _lock_of_others() -> Iterator[None]:
    """Hold the lock of the program's own bars, if it has any, and it is to be had.

    A Ctrl-C in one of them may have left it held for good. Its ``acquire`` does not say whether it was.
    """
    lock = vars(_tqdm).get("_lock")
    parts = [] if lock is None else getattr(lock, "locks", [lock])
    held = [part for part in parts if part.acquire(True, _LOCK_S)]
    try:
        yield
    finally:
        for part in reversed(held):
            part.release()


_LOCK_S = 0.2
