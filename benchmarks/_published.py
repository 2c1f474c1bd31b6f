"""Get the published areal wheel, and load its runner and its dispatcher without the trainer around them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

RELEASE = "areal==1.0.4"
SHA256 = "7d7cfab10d9ec0990d9263290a9472366827783b9ad5fce22f56a1add416bdd9"
CACHE = Path(__file__).resolve().parent.parent / "build" / "areal"

RUNNER = "areal.infra.async_task_runner"
DISPATCHER = "areal.infra.workflow_executor"
MANAGER = "areal.infra.staleness_manager"
LOADED = (RUNNER, DISPATCHER, MANAGER)

TRAINER = ("areal", "torch", "torchdata", "aiofiles", "requests")
"""Packages that the dispatcher's module imports and the dispatcher itself does not use."""


class WheelError(Exception):
    """The published wheel cannot be had, or is not the one the figures are about."""


@dataclass(frozen=True)
class Dispatching:
    """What of the wheel decides which rollouts start, and collects them."""

    BatchTaskDispatcher: Any
    StalenessManager: Any


@cache
def published_runner() -> Any:
    """Return the class ``AsyncTaskRunner`` of the published wheel, fetched with pip where it is not cached.

    Its file imports the standard library and uvloop, and nothing of its package. Raises WheelError.
    """
    source = _extract(_fetch(), RUNNER)
    spec = importlib.util.spec_from_file_location("published_async_task_runner", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise WheelError(f"{source} cannot be imported: {error}") from error
    return module.AsyncTaskRunner


@cache
def published_dispatching() -> Dispatching:
    """Return the wheel's dispatcher and its staleness manager, each from its own file as it is.

    Its module imports a whole trainer for what stands beside the dispatcher; in the place of that are modules
    that do nothing. Raises WheelError.
    """
    wheel = _fetch()
    with _stand_ins({name: _extract(wheel, name) for name in LOADED}):
        try:
            dispatcher = importlib.import_module(DISPATCHER)
            manager = importlib.import_module(MANAGER)
        except (ImportError, AttributeError, TypeError) as error:
            raise WheelError(f"{DISPATCHER} cannot be imported: {error}") from error
    return Dispatching(dispatcher.BatchTaskDispatcher, manager.StalenessManager)


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
    # The wheel asks for Python < 3.13 on account of its trainer; the files we load run there too.
    command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    command += ["--dest", str(CACHE), RELEASE]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        raise WheelError(f"{' '.join(command)} ended with {pip.returncode}:\n{pip.stderr.strip()}")


def _extract(wheel: Path, name: str) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(name.replace(".", "/") + ".py", CACHE))


class _Nothing:
    """Whatever it is asked for it is again; as a decorator it changes nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _StandIn(types.ModuleType):
    """A module of the trainer's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: MutableSequence[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return RolloutStat if name == "RolloutStat" else _Nothing()


@dataclass
class RolloutStat:
    """The staleness manager's counters: the only one of the trainer's types that it makes."""

    enqueued: int = 0
    accepted: int = 0
    running: int = 0
    rejected: int = 0


class _Finder:
    """Finds the files of the wheel, and stand-ins for all else of the trainer."""

    def __init__(self, sources: dict[str, Path]) -> None:
        self._sources = sources

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in self._sources:
            return importlib.util.spec_from_file_location(name, self._sources[name])
        return ModuleSpec(name, self) if name.partition(".")[0] in TRAINER else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: a stand-in is complete as it is made."""


@contextmanager
def _stand_ins(sources: dict[str, Path]) -> Iterator[None]:
    """Let the trainer be imported for the block; the real modules of those names are there again after it."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_trainers(name)}
    finder: Any = _Finder(sources)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_trainers(name)]:
            del sys.modules[name]
        sys.modules |= kept


def _is_trainers(name: str) -> bool:
    return name.partition(".")[0] in TRAINER
