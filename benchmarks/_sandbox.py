"""A copy of the project in which mutants live, and a warm pytest on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "areal_core",
    "tests",
    "benchmarks",
    "examples",
    "pyproject.toml",
    "README.md",
    "Makefile",
    "docs",
    "mkdocs.yml",
)

COLLECTION_S = 60.0
"""How long importing the tests may take."""


@dataclass
class Run:
    """What one run of some tests showed."""

    outcome: str
    """passed, failed or timeout."""
    test: str = ""
    """The test that failed or hung."""
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each test took."""
    elsewhere: list[str] = field(default_factory=list)
    """The tests of which coverage cannot tell which lines they reach."""


class Sandbox:
    """Runs tests on a private copy of the project. A context manager."""

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self._python = python
        self._stamp = 10**9
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, directory / name)
        self._warm = self._start()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._warm.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._warm.stdin.close()  # it kills what descends from it and ends
        self._warm.wait()

    def _start(self) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
        return subprocess.Popen(
            [self._python, str(Path(__file__).with_name("_warm_pytest.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=kept | {"PYTHONPATH": str(self.directory)},
            start_new_session=True,  # Ctrl-C is for us
        )

    def write(self, file: str, code: str) -> None:
        """Replace a module, with a time stamp no compiled file of it has."""
        path = self.directory / file
        path.write_text(code)
        self._stamp += 1
        os.utime(path, (self._stamp, self._stamp))

    def read(self, file: str) -> str:
        """Return the text of a module as it stands in the copy."""
        return (self.directory / file).read_text()

    def files(self, pattern: str) -> list[str]:
        """Return the files of the copy that match *pattern*, relative to it."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.glob(pattern))

    def run(
        self,
        tests: Sequence[str],
        limits: Mapping[str, float] | None = None,
        limit_s: float = 120.0,
        go_on: bool = False,
        coverage: Mapping[str, object] | None = None,
    ) -> Run:
        """Run *tests* (files or ids) in this order to the first failure; *limits* are seconds per test."""
        request: dict[str, Any] = {
            "tests": list(tests),
            "limits": dict(limits or {}),
            "limit_s": limit_s,
            "collection_s": COLLECTION_S,
            "go_on": go_on,
            "coverage": coverage,
        }
        assert self._warm.stdin is not None and self._warm.stdout is not None
        self._warm.stdin.write(json.dumps(request) + "\n")
        self._warm.stdin.flush()
        answer = self._warm.stdout.readline()
        if not answer:
            raise RuntimeError("the warm pytest died; its last output is in output.txt")
        return Run(**json.loads(answer))

    def output(self) -> str:
        """Return what pytest printed in the last run."""
        return (self.directory / "output.txt").read_text(errors="replace")
