"""`make test-all`: which interpreters it takes, and what it says when there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import all_pythons

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def _write_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def _only(monkeypatch: pytest.MonkeyPatch, *path: Path, pyenv: Path) -> None:
    monkeypatch.setenv("PATH", ":".join(map(str, path)))
    monkeypatch.setenv("PYENV_ROOT", str(pyenv))


def test_a_shim_that_fails_is_passed_over_for_the_next_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_program(tmp_path / "shims" / f"python{VERSION}", "exit 127")
    real = _write_program(tmp_path / "bin" / f"python{VERSION}", f'exec "{sys.executable}" "$@"')
    _only(monkeypatch, tmp_path / "shims", tmp_path / "bin", pyenv=tmp_path / "none")
    assert all_pythons.find_python(VERSION) == str(real)


def test_pyenv_is_searched_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newest = (
        _write_program(
            tmp_path / "versions" / f"{VERSION}.{patch}" / "bin" / f"python{VERSION}",
            f'exec "{sys.executable}" "$@"',
        )
        for patch in (9, 10)
    )
    _only(monkeypatch, tmp_path / "empty", pyenv=tmp_path)
    assert all_pythons.find_python(VERSION) == str(newest)
    newest.write_text("#!/bin/sh\nexit 1\n")
    assert all_pythons.find_python(VERSION) == str(older)


def test_an_interpreter_of_another_version_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_program(tmp_path / "bin" / "python3.99", f'exec "{sys.executable}" "$@"')
    _only(monkeypatch, tmp_path / "bin", pyenv=tmp_path / "none")
    assert all_pythons.find_python("3.99") is None


def test_uv_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_program(tmp_path / "bin" / "uv", f'[ "$*" = "python find {VERSION}" ] && echo "{sys.executable}"')
    _only(monkeypatch, tmp_path / "bin", pyenv=tmp_path / "none")
    assert all_pythons.find_python(VERSION) == sys.executable


def test_a_missing_interpreter_is_a_failure_and_says_so(tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, all_pythons.__file__, "--python", "3.12"],
        env={"PATH": "", "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (script.returncode, script.stderr) == (1, "")
    assert script.stdout.splitlines()[:2] == [
        "3.12 asyncio: FAILED, no working Python 3.12 was found",
        "3.12 uvloop: FAILED, no working Python 3.12 was found",
    ]


@pytest.mark.parametrize(
    ("output", "status", "line"),
    [
        ("...\n310 passed in 40.61s\n", 0, "310 passed in 41 s"),
        (
            "== 1 failed, 3 passed, 1 skipped in 75.23s (0:01:15) ==\n",
            1,
            "FAILED (status 1), 1 failed, 3 passed, 1 skipped in 75 s",
        ),
        ("3 passed in 1.00s\nFatal Python error: Aborted\n", -6, "FAILED (status -6), 3 passed in 1 s"),
        ("Fatal Python error: Aborted\n", -6, "FAILED (status -6), no closing line"),
    ],
)
def test_the_line_of_a_pair_is_the_closing_line_of_pytest(output: str, status: int, line: str) -> None:
    assert all_pythons.summary(output, status) == line
