"""Scripts run as real child processes: fixtures ``run_script`` and ``start_script``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Protocol

import pytest

STRICT = ("-X", "dev", "-W", "error")

_slow_callback = re.compile(r"^.*Executing <.*> took \d+\.\d{3} seconds\n", re.MULTILINE)


class RunScript(Protocol):
    """The type of fixture ``run_script``; see `Children.run`."""

    def __call__(
        self,
        source: str,
        *arguments: str,
        timeout: float = 30.0,
        flags: Sequence[str] = STRICT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]: ...


class StartScript(Protocol):
    """The type of fixture ``start_script``; see `Children.start`."""

    def __call__(
        self,
        source: str,
        *arguments: str,
        flags: Sequence[str] = STRICT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]: ...


class Children:
    """The child processes of one test. Each runs a script of its own, in a session of its own."""

    def __init__(self, directory: Path, loop_name: str) -> None:
        self._directory = directory
        self._loop_name = loop_name
        self._started: list[subprocess.Popen[str]] = []

    def run(
        self,
        source: str,
        *arguments: str,
        timeout: float = 30.0,
        flags: Sequence[str] = STRICT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *source* to its end and return its ``returncode``, ``stdout`` and ``stderr``.

        After *timeout* seconds the test fails, with the stacks of the child's threads.
        """
        child = self.start(source, *arguments, flags=flags, env=env)
        try:
            stdout, stderr = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the script did not end within {timeout} s\n{_last_words(child)}")
        return subprocess.CompletedProcess(
            child.args, child.returncode, stdout, without_slow_callbacks(stderr)
        )

    def start(
        self,
        source: str,
        *arguments: str,
        flags: Sequence[str] = STRICT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start *source* and return the process, with pipes for stdin, stdout and stderr.

        The script finds the loop it should use in the environment:
        ``importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop``.
        What still runs when the test ends is killed, and what it started too.
        """
        script = self._directory / f"script{len(self._started) or ''}.py"
        script.write_text(dedent(source))
        child = subprocess.Popen(
            [sys.executable, *flags, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._directory,
            env=self._environment() | dict(env or {}),
            start_new_session=True,
        )
        self._started.append(child)
        return child

    def close(self) -> None:
        """Kill what still runs and close the pipes."""
        for child in self._started:
            _kill(child)
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # what was written and never read
                        pipe.close()
            child.wait()

    def _environment(self) -> dict[str, str]:
        """Return this process's environment, without what steers this pytest and this interpreter."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
        return kept | {"AREAL_TEST_LOOP": self._loop_name, "PYTHONPATH": _import_root()}


def say_that_no_more_come(child: subprocess.Popen[str]) -> None:
    """Tell *child*, which waits for a byte of its stdin, that it is sent no signal from here on."""
    assert child.stdin is not None
    child.stdin.write(".")
    child.stdin.flush()


def without_slow_callbacks(stderr: str) -> str:
    """Leave out what asyncio's debug mode says about slow callbacks: it tells of the machine, not of us."""
    return _slow_callback.sub("", stderr)


def _import_root() -> str:
    """Return the directory areal_core is imported from here, so that children run the same code."""
    spec = find_spec("areal_core")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent.parent)


def _last_words(child: subprocess.Popen[str]) -> str:
    """End *child* by the signal on which faulthandler (part of ``-X dev``) prints every stack."""
    child.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=5.0)
    _kill(child)
    stdout, stderr = child.communicate()
    return f"--- stdout\n{stdout}--- stderr\n{stderr}"


def _kill(child: subprocess.Popen[str]) -> None:
    """Kill *child* and what it started: those hold its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
