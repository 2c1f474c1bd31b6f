"""Run the tests on each supported Python and each event loop, and print one line per pair.

``make test-all`` runs this; it needs nothing but the standard library. Each Python has a virtual
environment of its own, ``.venv-3.12`` and so on, which the Makefile sets up. What pytest printed is in
``build/test-all/``. What this script does not know it hands on to pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PYTHONS = ("3.11", "3.12", "3.13")
LOOPS = ("asyncio", "uvloop")
ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test-all"

_probe = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
_closing = re.compile(r"^(?:=+ )?(?P<counts>\d+ .+) in (?P<seconds>[\d.]+)s\b.*$", re.MULTILINE)


class Pair(NamedTuple):
    """How the tests went on one Python and one loop."""

    line: str
    failed: bool
    log: Path | None
    """Where pytest's output is; None when it did not get that far."""


def main() -> int:
    """Run all pairs; return 1 if any of them failed or could not run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", choices=PYTHONS, action="append", help="only this one; may be repeated")
    chosen, for_pytest = parser.parse_known_args()
    failed = []
    for version in chosen.python or PYTHONS:
        for pair in pairs(version, for_pytest):
            print(pair.line, flush=True)
            if pair.failed:
                failed.append(pair)
    for pair in failed:
        print(f"\n--- {pair.line}")
        if pair.log is not None:
            print(pair.log.read_text(errors="replace"))
    return 1 if failed else 0


def pairs(version: str, for_pytest: list[str]) -> Iterator[Pair]:
    """Run the tests on Python *version*, one loop after the other."""
    python = find_python(version)
    if python is None:
        for loop in LOOPS:
            yield Pair(f"{version} {loop}: FAILED, no working Python {version} was found", True, None)
        return
    venv = f".venv-{version}"
    setup = LOGS / f"{version}-setup.log"
    make = ["make", f"PYTHON={python}", f"VENV={venv}"]
    if run([*make, f"{venv}/.installed-test"], setup):
        for loop in LOOPS:
            yield Pair(f"{version} {loop}: FAILED, {venv} could not be set up", True, setup)
        return
    for loop in LOOPS:
        log = LOGS / f"{version}-{loop}.log"
        arguments = shlex.join(["--loop", loop, *for_pytest])
        status = run([*make, "test", f"ARGS={arguments}"], log)
        yield Pair(f"{version} {loop}: {summary(log.read_text(errors='replace'), status)}", bool(status), log)


def run(command: list[str], log: Path) -> int:
    """Run *command* in the project's directory, its output into *log*; return its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def summary(output: str, status: int) -> str:
    """Say what pytest's closing line says, seconds rounded: "310 passed in 41 s"."""
    closing = list(_closing.finditer(output))
    if not closing:
        return f"FAILED (status {status}), no closing line"
    counts, seconds = closing[-1]["counts"], float(closing[-1]["seconds"])
    return f"{f'FAILED (status {status}), ' if status else ''}{counts} in {seconds:.0f} s"


def find_python(version: str) -> str | None:
    """Return the first interpreter that really runs, is that *version*, and can make a venv; else None."""
    return next((path for path in _candidates(version) if _runs(path, version)), None)


def _candidates(version: str) -> Iterator[str]:
    """Look on PATH, then where pyenv keeps its versions, then ask uv.

    All of PATH, because its first ``python3.12`` may be a shim that fails when it is called.
    """
    name = f"python{version}"
    for directory in os.get_exec_path():
        path = shutil.which(name, path=directory)
        if path is not None:
            yield path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = pyenv.glob(f"versions/{version}.*/bin/{name}")
    yield from map(str, sorted(installed, key=_numbers, reverse=True))
    uv = shutil.which("uv")
    if uv is not None:
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        yield found.stdout.strip()


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path.parent.parent.name)]


def _runs(path: str, version: str) -> bool:
    try:
        probe = subprocess.run([path, "-c", _probe], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return probe.returncode == 0 and probe.stdout.strip() == version


if __name__ == "__main__":
    sys.exit(main())
