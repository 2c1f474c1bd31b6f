"""Engines and workflows that are pickled by name: workers import this module too."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from areal_core import workflow_context
from areal_core.distributed import worker_engine
from areal_core.types import InferenceEngine, RolloutWorkflow
from executor_tools import Engine, trajectory_of


class FarEngine(Engine):
    """An engine of a worker, which is told the version, and whether to generate."""

    held = False

    def set_version(self, version: int) -> None:
        self.version = version

    def hold_generation(self, held: bool) -> None:
        self.held = held


class Acting(RolloutWorkflow):
    """Does what its data says: a pair of the name of a method and what goes with it."""

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        name, with_it = data
        return await getattr(self, f"_{name}")(engine, with_it)

    async def _answer(self, engine: InferenceEngine, value: int) -> Any:
        return trajectory_of(value, versions=engine.get_version())

    async def _sleep(self, engine: InferenceEngine, seconds: float) -> Any:
        await asyncio.sleep(seconds)
        return trajectory_of(os.getpid())

    async def _reject(self, engine: InferenceEngine, _: object) -> None:
        return None

    async def _fail(self, engine: InferenceEngine, error: Exception | None) -> None:
        raise OddError(1, 2) if error is None else error

    async def _ask(self, engine: InferenceEngine, text: str) -> Any:
        raise ApiError(text)

    async def _name(self, engine: InferenceEngine, name: str) -> Any:
        return {**trajectory_of(1), LoneKey(name): trajectory_of(1)["input_ids"]}

    async def _member(self, engine: InferenceEngine, number: int) -> Any:
        return trajectory_of(1000 * number + (workflow_context.get().sample_idx or 0))

    async def _die(self, engine: InferenceEngine, _: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def _die_after(self, engine: InferenceEngine, seconds: float) -> None:
        await asyncio.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    async def _die_once(self, engine: InferenceEngine, path: str) -> Any:
        if first_time(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return trajectory_of(7)

    async def _block_once(self, engine: InferenceEngine, path: str) -> Any:
        if first_time(path):
            time.sleep(3600)
        return trajectory_of(8)

    async def _wait_for(self, engine: InferenceEngine, path: str) -> Any:
        Path(f"{path}.begun").touch()
        while not Path(path).exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
        return trajectory_of(9)


class DeafEngine(FarEngine):
    """Does not return from the first ``set_version`` of all."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def set_version(self, version: int) -> None:
        if first_time(self.path):
            time.sleep(3600)
        super().set_version(version)


class StayingEngine(FarEngine):
    """Ends when it may: when there is a file *go*, after it has made a file *asked*."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = Path(directory)

    def destroy(self) -> None:
        (self.directory / "asked").touch()
        while not (self.directory / "go").exists():
            time.sleep(0.02)


def first_time(path: str) -> bool:
    """Return whether nobody was here before, in any process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Unsendable(RolloutWorkflow):
    """Has something that belongs to its process."""

    def __init__(self) -> None:
        self.lock = __import__("threading").Lock()

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        return trajectory_of(data)


class OddError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Mute:
    """Cannot be pickled, and does not say why."""

    def __reduce__(self) -> Any:
        raise MuteError


class Leaving:
    """Ends the program that pickles it, if that lets it."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


class ApiError(Exception):
    """Has what was answered as its attributes, and nothing else: not the notes that others ask for."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class LoneKey(str):
    """A name that cannot be pickled."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise MuteError


class StayingThere:
    """Does not return from being unpickled."""

    def __reduce__(self) -> Any:
        return time.sleep, (3600,)


class MuteThere:
    """Cannot be made again from what was pickled, and does not say why."""

    def __reduce__(self) -> Any:
        return raise_mute, ()


def raise_mute() -> None:
    raise MuteError


def odd_engine() -> Any:
    raise OddError(1, 2)


def blocking_engine() -> Any:
    """Return an engine, unless a loop runs in this thread."""
    asyncio.run(asyncio.sleep(0))
    return FarEngine()


def no_engine() -> Any:
    raise LookupError("there are no servers today")


def dies() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def noted_engine(path: str) -> Any:
    """Return an engine, and note when."""
    with Path(path).open("a") as file:
        print(time.monotonic(), file=file)
    return FarEngine()


async def pid() -> int:
    return os.getpid()


async def state() -> tuple[int, bool]:
    engine = worker_engine()
    return engine.version, engine.held


async def stays_unless_first(path: str) -> int:
    if not first_time(path):
        await asyncio.sleep(3600)
    return os.getpid()


async def fails_if_first(path: str) -> None:
    """Fail at one worker, and stay at the others."""
    if first_time(path):
        raise ValueError("the first")
    await asyncio.sleep(3600)


async def says_so_and_stays(path: str) -> None:
    Path(path).touch()
    await asyncio.sleep(3600)


async def dies_at_work() -> None:
    dies()


async def unsendable() -> Any:
    raise OddError(1, 2)


async def asks(text: str) -> None:
    raise ApiError(text)


async def fails(text: str) -> None:
    raise ValueError(text)
