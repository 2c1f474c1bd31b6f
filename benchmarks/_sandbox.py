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

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OLDEST_THAT_WATCHES = 12

COLLECTION_S = 60.0
"""How long importing the tests may take."""


@dataclass
class Run:
    """What one run of some tests showed."""

    outcome: str
    """passed, failed or timeout; or import, where only a run that imports anew can tell."""
    test: str = ""
    """The test that failed or hung."""
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each test took."""
    failed: list[str] = field(default_factory=list)
    """Those that failed, where it went on after failures."""
    started: dict[str, int] = field(default_factory=dict)
    """How many processes each started, where that was looked at."""


class Sandbox:
    """Runs tests on a private copy of the project. A context manager."""

    def __init__(self, directory: Path, python: str = sys.executable, version: str = "") -> None:
        self.directory = directory
        self.can_watch = float((version or THIS_PYTHON).partition(".")[2]) >= OLDEST_THAT_WATCHES
        """Whether its Python can tell which lines tests reach."""
        self._python = python
        self._stamp = 10**9
        self._collected: _Server | None = None
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, directory / name)
        # Where tests' own processes look for modules too.
        shutil.copy(Path(__file__).parent / "_reaching" / "sitecustomize.py", directory)
        self._importing = _Server(python, "_warm_pytest.py", [], directory)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._importing.close()
        if self._collected is not None:
            self._collected.close()

    def collect(self, files: Sequence[str]) -> None:
        """Import the library and the tests of *files* once, for `run_swapped`."""
        if self._collected is not None and self._collected.arguments == files:
            return
        if self._collected is not None:
            self._collected.close()
        self._collected = _Server(self._python, "_collected_pytest.py", files, self.directory)
        if self._collected.read() != "ready\n":
            raise RuntimeError(f"the tests were not collected:\n{self.output()[-3000:]}")

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
        reached: Path | None = None,
    ) -> Run:
        """Run *tests* (files or ids) in this order to the first failure; *limits* are seconds per test.

        The lines that each reaches are written into files of the directory *reached*, see `sitecustomize`.
        """
        return self._importing.ask(
            {
                "tests": list(tests),
                "limits": dict(limits or {}),
                "limit_s": limit_s,
                "collection_s": COLLECTION_S,
                "go_on": go_on,
                "reached": None if reached is None else str(reached),
            }
        )

    def run_swapped(
        self, tests: Sequence[str], limits: Mapping[str, float], swap: tuple[str, str, str] | None
    ) -> Run:
        """Run *tests* that were collected, the code of functions swapped: a module's file, old and new text.

        Outcome "import": something differs that runs at import, so that only `run` will do.
        """
        assert self._collected is not None
        return self._collected.ask(
            {
                "tests": list(tests),
                "limits": dict(limits),
                "limit_s": 120.0,
                "collection_s": COLLECTION_S,
                "go_on": False,
                "swap": swap,
            }
        )

    def output(self) -> str:
        """Return what pytest printed in the last run."""
        return (self.directory / "output.txt").read_text(errors="replace")


class _Server:
    """A program that answers lines with lines."""

    def __init__(self, python: str, program: str, arguments: Sequence[str], directory: Path) -> None:
        self.arguments = list(arguments)
        self._directory = directory
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(program)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=kept | {"PYTHONPATH": str(directory)},
            start_new_session=True,  # Ctrl-C is for us
        )

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def ask(self, request: dict[str, Any]) -> Run:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self.read()
        if not answer:
            raise RuntimeError(f"the warm pytest died; its last output is in {self._directory}/output.txt")
        return Run(**json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it kills what descends from it and ends
        self._process.wait()
