"""The command ``python -m areal_core.embedded`` as a child process that cannot outlive this one."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from areal_core.embedded._options import ServerOptions

# A server with nothing to flush ends in 0.1 s; one that was stopped by SIGSTOP never would.
_STOP_GRACE_S = 5.0
_STDERR_BYTES = 64 * 1024
_LOOK_UP_S = 0.25  # a Ctrl-C in the moment before a wait begins wakes nobody


class ServerProcess:
    """Start the command, wait for its address, stop it."""

    def __init__(self, options: ServerOptions, timeout: float) -> None:
        """Start a server; return when it listens.

        Raises RuntimeError with what it wrote to stderr if it ends instead, TimeoutError if it does
        neither in *timeout* seconds.
        """
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process, by _close()
        try:
            self._popen = self._launch(options)
        except BaseException:
            self._stderr.close()
            raise
        try:
            self.addr = self._read_addr(timeout)
        except BaseException:
            self._popen.kill()
            self._collect()
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def stop(self) -> None:
        """End the process, by force if it takes too long, and pass on what it wrote to stderr."""
        try:
            self._popen.terminate()
            self._popen.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._popen.kill()
            text = self._collect()
        if text:
            sys.stderr.write(text)

    def kill(self) -> None:
        """End the process as a crash would."""
        self._popen.kill()
        self._popen.wait()

    def abandon(self) -> None:
        """Let go of a process that is another's child: in a fork, the pipe's copy would keep it alive."""
        self._close()
        # It cannot be waited for from here, and need not be complained of.
        self._popen.returncode = 0

    def _launch(self, options: ServerOptions) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "areal_core.embedded", *options.arguments()]
        return subprocess.Popen(
            [*command, f"--parent={os.getpid()}"],
            bufsize=0,
            # The lifeline: nothing is ever written to it. Popen keeps our end from other programs.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": _import_path()},
            # Ctrl-C in a terminal goes to all of its foreground processes; the server is to outlast
            # what this process still has to do with it.
            start_new_session=True,
        )

    def _read_addr(self, timeout: float) -> str:
        line = self._read_line(timeout)
        if line.endswith(b"\n"):
            return str(json.loads(line)["addr"])
        status = self._popen.wait()
        raise RuntimeError(
            f"the embedded server ended with status {status} and said: {self._read_stderr().strip()}"
        )

    def _read_line(self, timeout: float) -> bytes:
        """Return the first line of stdout, without a newline if the process ended first."""
        assert self._popen.stdout is not None
        deadline = time.monotonic() + timeout
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._popen.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(
                        f"the embedded server did not listen within {timeout} s; "
                        f"raise start_timeout, or see what it said: {self._read_stderr().strip()}"
                    )
                if not selector.select(min(left, _LOOK_UP_S)):
                    continue
                piece = self._popen.stdout.read(4096)
                if not piece:
                    break
                line += piece
        return line

    def _read_stderr(self) -> str:
        # By position: the offset is shared with the child, which may still write.
        return os.pread(self._stderr.fileno(), _STDERR_BYTES, 0).decode("utf-8", "replace")

    def _collect(self) -> str:
        """Wait for the end, release everything, return what the process wrote to stderr, but once."""
        self._popen.wait()
        text = "" if self._stderr.closed else self._read_stderr()
        self._close()
        return text

    def _close(self) -> None:
        for stream in (self._popen.stdin, self._popen.stdout, self._stderr):
            if stream is not None:
                stream.close()


def _import_path() -> str:
    """Return this process's import path, so that the child runs the same code, wherever we found it."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
