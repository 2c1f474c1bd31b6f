"""Run pytest again and again, each time in a child forked from here, where the heavy imports are done.

`_sandbox` starts it with the library's copy as working directory and on PYTHONPATH, and talks with it in
lines of JSON. It never imports areal_core: a child imports whatever stands in the copy when it is forked.
"""

from __future__ import annotations

import os
import sys
import traceback
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
        if request["reached"]:
            reporter.begin()
        files = dict.fromkeys(test.partition("::")[0] for test in request["tests"])
        status = pytest.main(
            [*OPTIONS, *([] if request["go_on"] else ["-x"]), *files],
            plugins=[AsFound(), reporter],
        )
        import areal_core

        assert Path(areal_core.__file__).is_relative_to(Path.cwd()), areal_core.__file__
        reporter.report("done", int(status))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout, _run_in_child)
