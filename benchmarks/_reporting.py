"""The pytest plugin that tells whoever started it how each test goes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import Phase, settings

from _reaching import sitecustomize as reaching

OPTIONS = (
    *("-q", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=0", "-o", "faulthandler_timeout=0"),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),  # hypothesis
)
_STARTS = ("subprocess.Popen", "os.posix_spawn")


class AsFound:
    """Leaves counterexamples of Hypothesis as large as they are found: nobody reads them."""

    def pytest_collection(self) -> None:
        """Choose the profile. This is after conftest, so that it counts."""
        settings.register_profile("mutants", settings(), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")


class Reporter:
    """Choose and order the tests, and tell how each went."""

    def __init__(self, request: dict[str, Any], writer: int) -> None:
        self._tests = {test: place for place, test in enumerate(request["tests"])}
        self._go_on = request["go_on"]
        self._writer = writer
        self.failed = False
        self._reached = request.get("reached")
        self._started = 0

    def report(self, *what: object) -> None:
        """Tell the parent."""
        os.write(self._writer, json.dumps(what).encode() + b"\n")

    def begin(self) -> None:
        """Have noted from now on what each test reaches, also in processes that it starts."""
        sys.addaudithook(self._audit)
        self._note_for("import")

    def _audit(self, event: str, _arguments: object) -> None:
        self._started += event in _STARTS

    def _note_for(self, what: str) -> None:
        reaching.begin(f"{self._reached}/{what}")

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
        if self._reached:
            self._started = 0
            self._note_for(str(self._place(item)))
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self.report("end", item.nodeid, time.monotonic() - began)
            if self._reached:
                self.report("started", item.nodeid, self._started)
                self._note_for("import")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell of a failure."""
        if report.failed and self._go_on:
            self.report("went wrong", report.nodeid)
        elif report.failed and not self.failed:
            self.failed = True
            self.report("failed", report.nodeid, _last_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell of a module that cannot be imported."""
        if report.failed and not self._go_on:
            self.report("failed", report.nodeid, _last_line(report))


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr).strip().rpartition("\n")[2]
    return str(text)[:500]
