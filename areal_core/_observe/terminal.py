r"""The terminal that a progress bar shares with the program's own prints and log lines.

::

    the program                                the bar's thread
    write("loss 0.3\n")                         is somebody in the middle of a line?  then not now
      a bar was drawn?  clear it with the      note that a bar is drawn
      same write                               is somebody ... now?  then not now
      note: in the middle of a line, or not    draw, by one write of its own

Nobody waits for anybody: a lock that a Ctrl-C leaves held would stop every print of the program. What is
written goes through `sys.stdout` and `sys.stderr` as the program knows them, whoever holds them: a log
handler that was made before, too. Their ``write`` is ours as long as there is a bar. What C code or other
processes write to the terminal is not seen.
"""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Callable
from types import FrameType
from typing import Any

from areal_core import _process
from areal_core._runner.gate import Gate

_CLEAR = "\r\x1b[J"
"""To the first column, and all away from there on: other bars below too."""

_CLEARS_S = 0.05  # at most, that a print waits for a bar to go

_DEPTH = 3  # between a write and the method of tqdm's that wants it


class Terminal:
    """A terminal, by a descriptor of its own: the program may close its, and another file gets the number.

    Raises OSError where *stream* has no terminal.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._file = os.dup(stream.fileno())
        try:
            self.device = os.fstat(self._file).st_rdev
            termios.tcgetattr(self._file)
        except (OSError, termios.error) as error:
            os.close(self._file)
            raise OSError(f"standard error is no terminal: {error}") from None
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLOUT)
        self._encoding = getattr(stream, "encoding", None) or "ascii"

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._file)

    @property
    def is_closed(self) -> bool:
        """Whether the program has closed its end."""
        return bool(getattr(self.stream, "closed", False))

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows, as they are now."""
        found = os.get_terminal_size(self._file)
        return found.columns or 80, found.lines or 24

    @property
    def is_unicode(self) -> bool:
        """Whether it shows blocks."""
        try:
            "█▏".encode(self._encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def is_free(self) -> bool:
        """Return whether it can be written to now, without waiting, and nobody else has it to himself.

        Somebody has while lines are not read whole: a debugger's prompt, a pager, an editor; and the shell
        has while this program is in the background.
        """
        if not self._poll.poll(0):
            return False  # stopped by Ctrl-S, or slow
        return bool(termios.tcgetattr(self._file)[3] & termios.ICANON) and self._is_foreground()

    def _is_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._file) == os.getpgrp()
        except OSError:  # not the one that controls this process: there is no background
            return True

    def write(self, text: str) -> None:
        """Write *text*, at one stroke. Raises OSError."""
        os.write(self._file, text.encode(self._encoding, "replace"))


class Screen:
    """What is known of a terminal's last line. All bars of one process share it."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.is_drawn = False
        """Whether a bar may be there."""
        self.is_cleared = False
        """Whether a print has cleared it, and bars of others with it."""
        self.clearing = Gate()
        """Opened when nobody is about to clear it."""
        self.clearing.open()
        self._users = 1
        self._guards = [
            _Guard(stream, self)
            for stream in {id(one): one for one in (sys.stdout, sys.stderr)}.values()
            if _is_on(stream, device)
        ]

    @property
    def is_mid_line(self) -> bool:
        """Whether the program has begun a line, and not ended it."""
        return any(guard.is_mid_line for guard in self._guards)

    def clear(self, clear: Callable[[], object]) -> None:
        """Call *clear*, unless the program has begun a line; one that it is about to begin waits for that."""
        self.clearing = gate = Gate()  # before looking
        try:
            if not self.is_mid_line:
                clear()
        finally:
            gate.open()

    def enter(self) -> None:
        """Have one more bar drawn on it."""
        self._users += 1

    def leave(self) -> bool:
        """Have one bar less drawn on it; return whether it was the last."""
        self._users -= 1
        if not self._users:
            for guard in self._guards:
                guard.remove()
        return not self._users


class _Guard:
    """Stands in for the ``write`` of one stream."""

    def __init__(self, stream: Any, screen: Screen) -> None:
        self._stream = stream
        self._screen = screen
        self._home = _process.home()
        self._is_active = True
        self._write: Callable[[str], int] = stream.write
        self.is_mid_line = False
        stream.write = self.write

    def remove(self) -> None:
        """Let the stream be what it was. Whoever has kept our ``write`` may go on using it."""
        self._is_active = False
        if vars(self._stream).get("write") == self.write:
            del self._stream.write

    def write(self, text: str) -> int:
        """Write *text* where no bar is."""
        # For a traceback the interpreter calls with no frame below this one.
        caller = sys._getframe().f_back
        if not (text and self._is_active and self._home is _process.home()) or _is_of_tqdm(caller):
            return self._write(text)
        begins, self.is_mid_line = not self.is_mid_line, True  # before looking whether a bar is drawn
        if begins and not self._screen.clearing.is_open:
            self._screen.clearing.wait(_CLEARS_S)
        try:
            if begins and self._screen.is_drawn:
                self._screen.is_drawn, self._screen.is_cleared = False, True
                self._write(_CLEAR + text)
            else:
                self._write(text)
        finally:
            self.is_mid_line = text[-1:] != "\n"
        return len(text)


def _is_on(stream: Any, device: int) -> bool:
    """Return whether *stream* writes to the terminal *device*, and its ``write`` can be replaced."""
    try:
        found = os.fstat(stream.fileno())
        return stream.isatty() and found.st_rdev == device and "write" not in vars(stream)
    except (AttributeError, OSError, TypeError, ValueError):  # None, closed, or of a kind of its own
        return False


def _is_of_tqdm(frame: FrameType | None) -> bool:
    """Return whether a bar writes, of the program's own: it knows about ours."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").startswith("tqdm."):
            return True
        frame = frame.f_back
    return False


_screens: dict[int, Screen] = {}


def screen_of(terminal: Terminal) -> Screen:
    """Return what all bars on *terminal* share; `leave_screen` when yours is gone."""
    screen = _screens.get(terminal.device)
    if screen is None:
        screen = _screens[terminal.device] = Screen(terminal.device)
    else:
        screen.enter()
    return screen


def leave_screen(screen: Screen) -> None:
    """Give back what `screen_of` returned."""
    if screen.leave():
        del _screens[screen.device]
