"""Run pytest again and again, each time in a child forked from here, where the heavy imports are done.

`_sandbox` starts it with the library's copy as working directory and on PYTHONPATH, and talks with it in
lines of JSON. It never imports areal_core: a child imports whatever stands in the copy when it is forked.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import aiohttp  # noqa: F401 - imported for the children
import hypothesis.stateful  # noqa: F401
import pytest
import uvloop  # noqa: F401
from hypothesis import Phase, settings

OUTPUT = Path("output.txt").resolve()

_ELSEWHERE = {
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "sys.settrace", "sys.setprofile"
}  # fmt: skip
_PR_SET_CHILD_SUBREAPER = 36
_SLICE_S = 1.0


def main() -> None:
    """Answer each line of stdin with a line on stdout."""
    # A shell that puts us in the background has SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whoever loses its parent becomes our child, so that no process a mutant leaves behind escapes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _run_in_child(request, writer)
    os.close(writer)
    try:
        return _follow(reader, request)
    finally:
        os.close(reader)
        _kill_descendants()


def _follow(reader: int, request: dict[str, Any]) -> dict[str, Any]:
    """Read what the child reports until it ends, or a test takes longer than it may."""
    seconds: dict[str, float] = {}
    elsewhere: list[str] = []
    current = "collection"
    deadline = _Deadline(request["collection_s"])
    for report in _reports(reader, deadline):
        match report:
            case None:
                return {"outcome": "timeout", "test": current, "seconds": seconds}
            case ["start", test]:
                current = test
                deadline.set(request["limits"].get(test, request["limit_s"]))
            case ["end", test, took]:
                seconds[test] = took
                current = f"after {test}"
                deadline.set(request["collection_s"])
            case ["elsewhere", test]:
                elsewhere.append(test)
            case ["failed", test, why]:
                return {"outcome": "failed", "test": test, "why": why, "seconds": seconds}
            case ["done", status]:
                why = f"pytest ended with status {status}"
                last = {"outcome": "failed" if status else "passed", "why": why}
                return last | {"seconds": seconds, "elsewhere": elsewhere}
    return {"outcome": "failed", "test": current, "why": "the process died", "seconds": seconds}


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


def _reports(reader: int, deadline: _Deadline) -> Iterator[Any]:
    """Yield each report; None when the deadline passes. Ends at the end of the child."""
    unread = b""
    while True:
        ready = deadline.wait(reader, 0)
        if 0 in ready and not os.read(0, 1):  # whoever asks has gone
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


def _run_in_child(request: dict[str, Any], writer: int) -> None:
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        reporter = _Reporter(request, writer)
        measured = request.get("coverage")
        if measured:
            import coverage

            reporter.coverage = coverage.Coverage(
                data_file=measured["data"], include=measured["files"], config_file=False, messages=False
            )
            reporter.coverage.set_option("run:core", "ctrace")
            reporter.coverage.start()
            _trace_bare_threads()
        else:
            sys.addaudithook(reporter.audit)
        files = dict.fromkeys(test.partition("::")[0] for test in request["tests"])
        status = pytest.main(
            [
                *(
                    "-q",
                    "--tb=short",
                    "-p",
                    "no:cacheprovider",
                    "-o",
                    "timeout=0",
                    "-o",
                    "faulthandler_timeout=0",
                ),
                *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),  # hypothesis
                *([] if request["go_on"] else ["-x"]),
                *files,
            ],
            plugins=[reporter],
        )
        import areal_core

        assert Path(areal_core.__file__).is_relative_to(Path.cwd()), areal_core.__file__
        if reporter.coverage is not None:
            assert sys.gettrace() is not None, "a test took off coverage's trace function"
            reporter.coverage.stop()
            reporter.coverage.save()
        reporter.report("done", int(status))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _trace_bare_threads() -> None:
    """Have threads that `_thread` starts traced like others, for coverage to see what they reach."""
    start = _thread.start_new_thread

    def start_traced(function: Callable[..., object], args: tuple[Any, ...], *kwargs: Any) -> int:
        trace = threading.gettrace()

        def run(*args: Any, **kwargs: Any) -> None:
            sys.settrace(trace)
            function(*args, **kwargs)

        return start(run, args, *kwargs)

    _thread.start_new_thread = start_traced


class _Reporter:
    """Choose and order the tests, and tell how each went."""

    def __init__(self, request: dict[str, Any], writer: int) -> None:
        self._tests = {test: place for place, test in enumerate(request["tests"])}
        self._go_on = request["go_on"]
        self._writer = writer
        self._current = ""
        self._elsewhere: set[str] = set()
        self.coverage: Any = None

    def report(self, *what: object) -> None:
        """Tell the parent."""
        os.write(self._writer, json.dumps(what).encode() + b"\n")

    def audit(self, event: str, _arguments: object) -> None:
        """Note a test that works where coverage does not see it."""
        if event in _ELSEWHERE and self._current and self._current not in self._elsewhere:
            self._elsewhere.add(self._current)
            self.report("elsewhere", self._current)

    def pytest_collection(self) -> None:
        """Leave counterexamples as large as they are found. This is after conftest, so that it counts."""
        settings.register_profile("mutants", settings(), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the tests asked for, in that order; all tests of a file that is asked for as such."""
        chosen = [item for item in items if self._place(item) is not None]
        items[:] = sorted(chosen, key=lambda item: self._place(item) or 0)

    def _place(self, item: pytest.Item) -> int | None:
        return self._tests.get(item.nodeid, self._tests.get(item.nodeid.partition("::")[0]))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell when a test starts and ends."""
        self.report("start", item.nodeid)
        self._current = item.nodeid
        if self.coverage is not None:
            self.coverage.switch_context(item.nodeid)
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self.report("end", item.nodeid, time.monotonic() - began)
            if self.coverage is not None:
                self.coverage.switch_context("")
            self._current = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell of a failure."""
        if report.failed and self._go_on:
            self.report("elsewhere", report.nodeid)
        elif report.failed:
            self.report("failed", report.nodeid, _last_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell of a module that cannot be imported."""
        if report.failed and not self._go_on:
            self.report("failed", report.nodeid, _last_line(report))


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr).strip().rpartition("\n")[2]
    return str(text)[:500]


if __name__ == "__main__":
    main()
