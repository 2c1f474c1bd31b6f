"""Runs each request in a child forked from here, follows what it reports, and kills whatever it leaves."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

_PR_SET_CHILD_SUBREAPER = 36
_SLICE_S = 1.0
_OUTPUT = Path("output.txt").resolve()


def serve(requests: TextIO, answers: TextIO, run_in_child: Callable[[dict[str, Any], int], None]) -> None:
    """Answer each line of *requests* with a line: what a child that ran it reported down a pipe."""
    # A shell that puts us in the background has SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whoever loses its parent becomes our child, so that no process a mutant leaves behind escapes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in requests:
        answer = _answer(json.loads(line), requests.fileno(), run_in_child)
        print(json.dumps(answer), file=answers, flush=True)


def _answer(
    request: dict[str, Any], asker: int, run_in_child: Callable[[dict[str, Any], int], None]
) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with contextlib.suppress(BaseException):
            run_in_child(request, writer)
        os._exit(0)
    os.close(writer)
    try:
        return _follow(reader, asker, request)
    finally:
        os.close(reader)
        _kill_descendants()


def _follow(reader: int, asker: int, request: dict[str, Any]) -> dict[str, Any]:
    """Read what the child reports until it ends, or a test takes longer than it may."""
    seconds: dict[str, float] = {}
    failed: list[str] = []
    started: dict[str, int] = {}
    so_far: dict[str, Any] = {"seconds": seconds, "failed": failed, "started": started}
    current = "collection"
    deadline = _Deadline(request["collection_s"])
    for report in _reports(reader, asker, deadline):
        match report:
            case None:
                return {"outcome": "timeout", "test": current, **so_far}
            case ["start", test]:
                current = test
                deadline.set(request["limits"].get(test, request["limit_s"]))
            case ["end", test, took]:
                seconds[test] = took
                current = f"after {test}"
                deadline.set(request["collection_s"])
            case ["went wrong", test]:
                failed.append(test)
            case ["started", test, count]:
                started[test] = count
            case ["failed", test, why]:
                return {"outcome": "failed", "test": test, "why": why, **so_far}
            case ["import"]:
                return {"outcome": "import", **so_far}
            case ["done", status]:
                why = f"pytest ended with status {status}"
                return {"outcome": "failed" if status else "passed", "why": why, **so_far}
    return {"outcome": "failed", "test": current, "why": "the process died", **so_far}


class _Deadline:
    """Seconds that are left. Those in which all of this was stopped, by a SIGSTOP or a lid, do not count."""

    def __init__(self, seconds: float) -> None:
        self.set(seconds)

    def set(self, seconds: float) -> None:
        self.left = seconds

    def wait(self, *descriptors: int) -> list[int]:
        """Return those that can be read; none when no more is left."""
        while self.left > 0:
            began = time.monotonic()
            ready, _, _ = select.select(descriptors, [], [], min(_SLICE_S, self.left))
            self.left -= min(_SLICE_S, time.monotonic() - began)
            if ready:
                return ready
        return []


def _reports(reader: int, asker: int, deadline: _Deadline) -> Iterator[Any]:
    """Yield each report; None when the deadline passes. Ends at the end of the child."""
    unread = b""
    while True:
        ready = deadline.wait(reader, asker)
        if asker in ready and not os.read(asker, 1):  # whoever asks has gone
            _kill_descendants()
            os._exit(0)
        if reader not in ready:
            yield None
            return
        read = os.read(reader, 2**16)
        if not read:
            return
        *lines, unread = (unread + read).split(b"\n")
        yield from map(json.loads, lines)


def _kill_descendants() -> None:
    """Kill all that descends from here, in whatever session, until nothing is left."""
    while True:
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _descendants() -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            parents[int(pid)] = int(rest.rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for one in found:
        found += [pid for pid, parent in parents.items() if parent == one]
    return found[1:]


def redirect() -> None:
    """Let this process read nothing, and print into a file, from its beginning."""
    nothing = os.open(os.devnull, os.O_RDWR)
    output = os.open(_OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
