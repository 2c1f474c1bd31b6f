"""Get the published areal wheel and load its task runner, without the trainer around it."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

RELEASE = "areal==1.0.4"
SHA256 = "7d7cfab10d9ec0990d9263290a9472366827783b9ad5fce22f56a1add416bdd9"
MEMBER = "areal/infra/async_task_runner.py"
CACHE = Path(__file__).resolve().parent.parent / "build" / "areal"


class WheelError(Exception):
    """The published wheel cannot be had, or is not the one the figures are about."""


def published_runner() -> Any:
    """Return the class ``AsyncTaskRunner`` of the published wheel, fetched with pip where it is not cached.

    Raises WheelError.
    """
    return _load(_extract(_fetch())).AsyncTaskRunner


def _fetch() -> Path:
    wheel = CACHE / "areal-1.0.4-py3-none-any.whl"
    if not wheel.exists():
        _download()
    try:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise WheelError(f"pip brought no {wheel.name} to {CACHE}") from None
    if digest != SHA256:
        raise WheelError(f"{wheel} has sha256 {digest}, expected {SHA256}; delete it and try again")
    return wheel


def _download() -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # The wheel asks for Python < 3.13 on account of its trainer; the one file we load runs there too.
    command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    command += ["--dest", str(CACHE), RELEASE]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        raise WheelError(f"{' '.join(command)} ended with {pip.returncode}:\n{pip.stderr.strip()}")


def _extract(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, CACHE))


def _load(source: Path) -> Any:
    """Import *source* by its path: it imports the standard library and uvloop, and nothing of its package."""
    name = "published_async_task_runner"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise WheelError(f"{source} cannot be imported: {error}") from error
    return module
