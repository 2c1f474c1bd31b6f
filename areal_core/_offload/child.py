"""A worker process: ``python child.py DESCRIPTOR PARENT``. Takes calls from a socket, one at a time.

It imports the standard library alone: a worker holds what its calls need, and no more. The program's main
module is run again, under the name ``__mp_main__``, only when a call refers to something in it.
"""

from __future__ import annotations

import inspect
import io
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from multiprocessing import process, spawn
from multiprocessing.connection import Connection
from typing import Any, NoReturn


def main(descriptor: int, parent: int) -> None:
    """Answer requests from *descriptor* until the process *parent* is gone, or kills this one."""
    os.set_inheritable(descriptor, False)  # what a call starts is not to keep the socket open
    threading.Thread(target=_end_with, args=(parent, descriptor), daemon=True).start()
    connection = Connection(descriptor)
    surroundings = pickle.loads(connection.recv_bytes())
    program = {key: surroundings.pop(key) for key in tuple(surroundings) if key.startswith("init_main")}
    spawn.prepare(surroundings)
    try:
        while True:
            answer = _answer(connection.recv_bytes(), program)
            _flush()
            connection.send_bytes(answer)
    except (EOFError, OSError):  # the thread sees it too; whoever is first
        _end()


def _end_with(parent: int, descriptor: int) -> NoReturn:
    """Kill this process, and what its calls have started, when *parent* is gone: busy or not."""
    poll = select.poll()
    poll.register(descriptor, 0)  # that the other end is closed is told in any case
    if sys.platform == "linux":
        try:  # a process forked from the parent has a copy of the other end, and holds it open
            poll.register(os.pidfd_open(parent), select.POLLIN)
        except OSError:
            pass  # the parent is gone, which comes next; or an old kernel, or a sandbox that forbids it
    if os.getppid() == parent:
        poll.poll()
    _end()


def _end() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a process outlived a SIGKILL")


def _answer(request: bytes, program: dict[str, Any]) -> bytes:
    """Return the pickled value, error and traceback of the error of a pickled (function, args, kwargs).

    A request of (function,) only has it imported, with all that it needs.
    """
    try:
        function, *call = _Unpickler(io.BytesIO(request), program).load()
        value = _call(function, *call) if call else None
    except BaseException as error:
        return _pickled_error(error)
    try:
        return pickle.dumps((value, None, ""), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        kind = type(value).__qualname__
        return _pickled_error(TypeError(f"what was returned, a {kind}, cannot be pickled: {error}"))


def _flush() -> None:
    """Let out what a call has printed: this process is killed in the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # a call may have closed or replaced it


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = function(*args, **kwargs)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(
            "a coroutine was returned, which only an event loop can run; have it called on the loop"
        )
    return value


def _pickled_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps((None, error, text), pickle.HIGHEST_PROTOCOL)
        pickle.loads(pickled)  # an error whose __init__ takes other arguments than Exception's fails here
    except Exception:
        stand_in = RuntimeError(f"{type(error).__qualname__}: {error}")
        return pickle.dumps((None, stand_in, text), pickle.HIGHEST_PROTOCOL)
    return pickled


class _Unpickler(pickle.Unpickler):
    """Runs the program's main module when the first thing in it is looked for."""

    def __init__(self, file: io.BytesIO, program: dict[str, Any]) -> None:
        super().__init__(file)
        self._program = program

    def find_class(self, module: str, name: str) -> Any:
        if self._program and module in ("__main__", "__mp_main__"):
            _run_main_again(self._program)
        return super().find_class(module, name)


def _run_main_again(program: dict[str, Any]) -> None:
    # A script without ``if __name__ == "__main__":`` may start workers from here, and they others: with this
    # set, multiprocessing and the library refuse.
    process.current_process()._inheriting = True  # type: ignore[attr-defined]
    try:
        spawn.prepare(program)
    finally:
        del process.current_process()._inheriting  # type: ignore[attr-defined]
    program.clear()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
