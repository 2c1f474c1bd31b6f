"""Collect tests once, and run some of them again and again, each time in a child forked from here.

`_sandbox` starts it as it starts `_warm_pytest`, with the tests' files as arguments. A request brings the
text of a module as it was here and as it shall be: the child swaps the code of functions. Where that is not
enough it answers "import", and `_warm_pytest` is to be asked.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from _forked import redirect, serve
from _reporting import OPTIONS, AsFound, Reporter
from _swapping import Functions, functions_below, swaps


class _Serving:
    """Serves where pytest would run the tests."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        _import_all()
        functions = functions_below(Path.cwd() / "areal_core")
        gc.collect()
        gc.freeze()  # what children share stays shared
        print("ready", file=ANSWERS, flush=True)
        serve(REQUESTS, ANSWERS, lambda request, writer: _run(session, items, functions, request, writer))
        return True


def _import_all() -> None:
    """Import every module that can be: what is imported already cannot differ from what is swapped."""
    for path in sorted(Path("areal_core").rglob("*.py")):
        if path.stem != "__main__":
            try:
                importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
            except ImportError:  # of an extra that is not here
                pass


def _run(
    session: pytest.Session,
    items: dict[str, pytest.Item],
    functions: Functions,
    request: dict[str, Any],
    writer: int,
) -> None:
    os.setsid()
    redirect()
    reporter = Reporter(request, writer)
    if request.get("swap"):
        file, old, new = request["swap"]
        found = swaps(functions, Path.cwd() / file, old, new)
        if found is None:
            reporter.report("import")
            return
        for function, code in found:
            function.__code__ = code
    session.config.pluginmanager.register(reporter)
    chosen = [items[test] for test in request["tests"]]
    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if reporter.failed:
            return
    reporter.report("done", 0)


if __name__ == "__main__":
    REQUESTS, ANSWERS = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    redirect()
    pytest.main([*OPTIONS, *sys.argv[1:]], plugins=[AsFound(), _Serving()])
