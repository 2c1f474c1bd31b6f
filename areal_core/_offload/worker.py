"""A worker process as its parent sees it. Everything here blocks, but `Worker.kill`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from areal_core.errors import WorkerDiedError

_SCRIPT = str(Path(__file__).with_name("child.py"))
_REAPED_S = 5.0  # a killed process ends in milliseconds, unless it hangs in the kernel


class Worker:
    """One process, started with the first exchange. It leads a process group of what its calls start."""

    def __init__(self) -> None:
        self.known: set[object] = set()
        """Which functions it has imported, as the owner of this object numbers them."""
        self.alive = True
        """False once it was killed or has died, and is good for nothing more."""
        self._process: subprocess.Popen[bytes] | None = None
        self._sentinels: list[int] = []
        self._lock = threading.Lock()  # held while it is started or reaped; then there is nothing to kill

    def is_running(self) -> bool:
        """Tell whether the process, started once, has not ended; not during an exchange."""
        return self._process is not None and self._process.poll() is None

    def load(self, name: str, function: Callable[..., object]) -> None:
        """Have *function* imported there; start the process where need be."""
        self._exchange(name, (function,))

    def call(
        self, name: str, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return what *function* returns there, or raise what it raises. *name* is for messages.

        Raises TypeError for what cannot be pickled, and WorkerDiedError.
        """
        return self._exchange(name, (function, args, kwargs))

    def kill(self) -> None:
        """End the process and what it has started; an exchange under way then raises. Never blocks."""
        self.alive = False
        if self._lock.acquire(blocking=False):
            try:
                self._kill_group()
            finally:
                self._lock.release()

    def reap(self) -> str:
        """Kill, wait for the end, release everything, and say how it ended; not during an exchange."""
        self.alive = False
        with self._lock:
            self._kill_group()
            for sentinel in self._sentinels:
                os.close(sentinel)
            self._sentinels = []
            if self._process is None:
                return "was not started"
            self._connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAPED_S)
            return _how_it_ended(self._process.returncode)

    def _exchange(self, name: str, request: tuple[Any, ...]) -> Any:
        pickled = _pickled(name, request)
        if self._process is None:
            self._start()
        reply = self._reply_to(pickled)
        if reply is None:
            raise WorkerDiedError(f"the worker process that ran {name} {self.reap()}")
        value, error, text = pickle.loads(reply)
        if error is None:
            return value
        error.add_note(f"In the worker process:\n{text}")
        raise error

    def _reply_to(self, request: bytes) -> bytes | None:
        """Return the reply; None when the process ends instead."""
        if not self.alive:  # it was killed while it was started
            return None
        try:
            self._connection.send_bytes(request)
            # Not the connection alone: what the process has forked holds the other end open.
            if self._connection in wait([self._connection, *self._sentinels]):
                return self._connection.recv_bytes()
        except (EOFError, OSError):
            pass
        except BaseException:  # no memory for the reply, whose rest would be the next one's beginning
            self.reap()
            raise
        return None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            self._connection = Connection(ours.detach())
            try:
                self._process = self._popen(theirs.fileno())
            except BaseException:  # no descriptors, or no process: the next call tries again
                self._connection.close()
                raise
            if sys.platform == "linux":
                with contextlib.suppress(OSError):  # an old kernel, or a sandbox that forbids it
                    self._sentinels = [os.pidfd_open(self._process.pid)]
        with contextlib.suppress(OSError):  # it has ended, which is noticed next
            self._connection.send_bytes(pickle.dumps(_surroundings()))

    def _popen(self, descriptor: int) -> subprocess.Popen[bytes]:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        return subprocess.Popen(
            [sys.executable, *flags, _SCRIPT, str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[descriptor],
            # A group to kill as one; and a Ctrl-C in the terminal is for the program, not for this.
            start_new_session=True,
        )

    def _kill_group(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def refuse_while_main_is_imported() -> None:
    """Raise RuntimeError in a process that is about to import the main module of the one that started it."""
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(
            "the program was started again in a worker process, to import a function from it; "
            'put what it does under `if __name__ == "__main__":`, or the function in a module of its own'
        )


def main_can_be_imported() -> bool:
    """Tell whether a worker can import what is defined in ``__main__``."""
    return bool(_main_module())


def _surroundings() -> dict[str, Any]:
    """Return what ``multiprocessing.spawn.prepare`` makes a process like this one of.

    Not ``spawn.get_preparation_data``: that settles the program's start method for good.
    """
    found = {
        "name": "areal-core-offload",
        "sys_path": [entry or str(Path.cwd()) for entry in sys.path],
        "sys_argv": sys.argv,
        "dir": str(Path.cwd()),
        "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]
        **_main_module(),
    }
    method = multiprocessing.get_start_method(allow_none=True)
    return {**found, "start_method": method} if method else found


def _main_module() -> dict[str, str]:
    main: Any = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        if name.rpartition(".")[2] == "__main__":  # multiprocessing takes it for one that cannot be run again
            return {}
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is None:
        return {}
    started_in = process.ORIGINAL_DIR or ""  # type: ignore[attr-defined]
    return {"init_main_from_path": os.path.normpath(Path(started_in, path))}


def _pickled(name: str, request: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(
            f"a call of {name} cannot be sent to a worker process: {error}; "
            "give it what can be pickled, or have it called in a thread"
        ) from error


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return f"did not end within {_REAPED_S:g} s of being killed"
    if status >= 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = ", perhaps for lack of memory" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
