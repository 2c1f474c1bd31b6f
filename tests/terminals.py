"""A program in a terminal: what it writes is shown by an emulator, and what it does is said line by line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pyte

import areal_core

WAIT_S = 20.0
_ROWS = 10
_LATE_S = (
    1.0  # what was written is there a moment later, and then the end; unless others have the terminal too
)

# It takes Python on stdin, a line at a time, and says on another pipe when it has done it.
_PROGRAM = """
import fcntl, os, sys, termios

fcntl.ioctl(2, termios.TIOCSCTTY, 0)
done = int(sys.argv.pop(1))
for line in sys.stdin:
    exec(line.replace("\\x1f", "\\n"))
    os.write(done, b".")
"""


class TerminalChild:
    """A child process whose stdout and stderr are a terminal of *columns*."""

    def __init__(self, directory: Path, loop_name: str, columns: int) -> None:
        self.columns = columns
        self._screen = pyte.HistoryScreen(columns, _ROWS, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        """All that came so far."""
        self._master, slave = os.openpty()
        self._done, done = os.pipe()
        self._set_size()
        script = directory / "in_terminal.py"
        script.write_text(_PROGRAM)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "TQDM"))}
        root = Path(areal_core.__file__).parent.parent
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(done)],
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            pass_fds=[done],
            cwd=directory,
            env={**kept, "TERM": "xterm", "AREAL_TEST_LOOP": loop_name, "PYTHONPATH": str(root),
                 "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        os.close(done)

    def close(self) -> None:
        """Kill the child if it runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        os.close(self._master)
        os.close(self._done)

    # -- what it does ------------------------------------------------------------------------------

    def begin(self, source: str) -> None:
        """Have the child execute *source*, without waiting for that."""
        assert self.process.stdin is not None
        self.process.stdin.write(dedent(source).strip().replace("\n", "\x1f").encode() + b"\n")
        self.process.stdin.flush()

    def do(self, source: str) -> None:
        """Have the child execute *source*, and wait until it has."""
        self.begin(source)
        self.wait_until_done()

    def wait_until_done(self) -> None:
        """Wait until the child has executed what it was given."""
        self._show_until(lambda: bool(select.select([self._done], [], [], 0)[0]), "the child to do as told")
        assert os.read(self._done, 1) == b".", f"the child ended\n{self.text}"

    def end(self) -> int:
        """Let the child come to its end, and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        """Return the exit status, once the child has ended."""
        self._show_until(lambda: self.process.poll() is not None, "the child to end")
        self._show_all()
        return self.process.returncode

    def resize(self, columns: int) -> None:
        """Make the terminal *columns* wide."""
        self.columns = columns
        self._screen.resize(_ROWS, columns)
        self._set_size()

    def type(self, keys: bytes) -> None:
        """Type *keys* at the terminal."""
        os.write(self._master, keys)

    # -- what is seen ------------------------------------------------------------------------------

    @property
    def lines(self) -> list[str]:
        """All lines that were ever seen whole, and those that are seen now, but for empty ones."""
        past = ["".join(row[place].data for place in sorted(row)) for row in self._screen.history.top]
        return [line.rstrip() for line in [*past, *self._screen.display] if line.strip()]

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines)

    @property
    def last(self) -> str:
        """The last line that is not empty."""
        return self.lines[-1] if self.lines else ""

    def wait_for(self, seen: Callable[[], bool], what: str = "something to be seen") -> None:
        """Wait until *seen* is true of what the terminal shows."""
        self._show_until(seen, what)

    def wait_for_output(self) -> None:
        """Wait until anything more is written."""
        before = len(self.written)
        self._show_until(lambda: len(self.written) > before, "more to be written")

    def _show_until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline, f"waited in vain for {what}; the terminal shows\n{self.text}"
            self._show(0.02)

    def _show(self, timeout: float) -> bool:
        if not select.select([self._master], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # nobody has the other end any more
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)

    def _show_all(self) -> None:
        while self._show(_LATE_S):
            pass

    def _set_size(self) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, self.columns, 0, 0))
