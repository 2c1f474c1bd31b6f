"""Run pytest again and again, each time in a child forked from here, where the heavy imports are done.

`_sandbox` starts it with the library's copy as working directory and on PYTHONPATH, and talks with it in
lines of JSON. It never imports areal_core: a child imports whatever stands in the copy when it is forked.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp  # noqa: F401 - imported for the children
import hypothesis.stateful  # noqa: F401
import pytest
import uvloop  # noqa: F401

from _forked import redirect, serve
from _reporting import OPTIONS, AsFound, Reporter


def _run_in_child(request: dict[str, Any], writer: int) -> None:
    try:
        os.setsid()
        redirect()
        reporter = Reporter(request, writer)
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
            [*OPTIONS, *([] if request["go_on"] else ["-x"]), *files],
            plugins=[AsFound(), reporter],
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


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout, _run_in_child)
