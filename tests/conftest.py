"""Fixtures for all tests. Each closes what it made; none imports the library before a test needs it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import pytest
from hypothesis import settings

from children import Children, RunScript, StartScript
from logged import LogLines, LogLinesHandler

if TYPE_CHECKING:
    from areal_core._journal.store import Store
    from areal_core.async_task_runner import AsyncTaskRunner
    from areal_core.embedded import EmbeddedServer
    from areal_core.workflow_executor import WorkflowExecutor
    from exchanging import RunWithSession
    from reused_servers import ReusedServer
    from scripted import Play

LOOPS = ("asyncio", "uvloop")
_GOING_S = 1.0
"""How long what was called in a thread may be on its last lines when its test has ended."""
_GOING = {
    "areal-core-offload",
    "areal-dump",
    "areal-journal-close",
    "areal-journal-look",
    "areal-journal-open",
}
"""The threads that may be."""

# The same examples in every run: a failure is a change in the code. New ones are searched for with
# `pytest --hypothesis-profile=search`. No deadline per example: the machine may be busy.
settings.register_profile("repeat", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True, max_examples=2_000)
settings.load_profile("repeat")


class MakeRunner(Protocol):
    """The type of fixture ``make_runner``."""

    def __call__(
        self, max_queue_size: int = 100, *, logger: Any = None, leave: bool = False, **options: Any
    ) -> AsyncTaskRunner[Any]: ...


class MakeExecutor(Protocol):
    """The type of fixture ``make_executor``."""

    def __call__(
        self,
        engine: Any = None,
        *,
        manager: Any = None,
        logger: Any = None,
        parts: int | None = None,
        leave: bool = False,
        **config: Any,
    ) -> WorkflowExecutor: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=[*LOOPS, "both"], default="both", help="the event loops to test on")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run three tests at once on two processors, and so on: more than half of a test's time is waiting."""
    return min(8, 3 * (os.cpu_count() or 1) // 2)


def pytest_configure() -> None:
    """Take Ctrl-C, also where a shell has put the tests in the background and had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that needs a loop once per chosen loop."""
    if "loop_name" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("loop")
    loops = LOOPS if chosen == "both" else (chosen,)
    if metafunc.definition.get_closest_marker("any_loop"):
        loops = loops[:1]
    metafunc.parametrize("loop_name", loops)


@pytest.fixture
def loop_factory(loop_name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes a new event loop: asyncio's, then uvloop's."""
    module = importlib.import_module(loop_name)
    return cast(Callable[[], asyncio.AbstractEventLoop], module.new_event_loop)


@pytest.fixture
def make_runner(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[MakeRunner]:
    """Make initialized runners on *loop_factory*, destroy them all, and see that no thread is left.

    ``leave=True`` is for a test whose runner cannot end its thread: nothing is looked for then.
    """
    leaving = False
    with _no_thread_left(lambda: leaving), ExitStack() as made:

        def make(
            max_queue_size: int = 100, *, logger: Any = None, leave: bool = False, **options: Any
        ) -> AsyncTaskRunner[Any]:
            from areal_core.async_task_runner import AsyncTaskRunner

            nonlocal leaving
            leaving = leaving or leave
            runner = AsyncTaskRunner[Any](max_queue_size, **{"loop_factory": loop_factory, **options})
            made.callback(runner.destroy, timeout=0.5 if leave else 10.0)
            runner.initialize(logger)
            return runner

        yield make


@pytest.fixture
def make_executor(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[MakeExecutor]:
    """Make initialized executors on *loop_factory*, destroy them all, and see that no thread is left.

    The config has what is given by name. ``leave=True`` is as for ``make_runner``.
    """
    leaving = False
    with _no_thread_left(lambda: leaving), ExitStack() as made:

        def make(
            engine: Any = None,
            *,
            manager: Any = None,
            logger: Any = None,
            parts: int | None = None,
            leave: bool = False,
            resume_from: int | None = None,
            **config: Any,
        ) -> WorkflowExecutor:
            from areal_core.config import InferenceEngineConfig
            from areal_core.workflow_executor import WorkflowExecutor
            from executor_tools import Engine

            nonlocal leaving
            leaving = leaving or leave
            executor = WorkflowExecutor(
                InferenceEngineConfig(**config),
                Engine() if engine is None else engine,
                manager,
                resume_from=resume_from,
                loop_factory=loop_factory,
            )
            made.callback(executor.destroy, timeout=0.5 if leave else 10.0)
            executor.initialize(logger, parts)
            return executor

        yield make


@contextmanager
def _no_thread_left(except_when: Callable[[], bool]) -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        if thread.name in _GOING and thread.ident is not None and not except_when():
            thread.join(_GOING_S)
    left = [thread for thread in left if thread.is_alive()]
    if left and not except_when():
        pytest.fail("threads left alive:\n" + "\n".join(map(_where, left)))


def _where(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread!r}\n{''.join(traceback.format_stack(frame)) if frame else ''}"


@pytest.fixture
def _children(tmp_path: Path, loop_name: str) -> Iterator[Children]:
    children = Children(tmp_path, loop_name)
    yield children
    children.close()


@pytest.fixture
def run_script(_children: Children) -> RunScript:
    """Run a script as a child process, under ``-X dev -W error``, to its end."""
    return _children.run


@pytest.fixture
def start_script(_children: Children) -> StartScript:
    """Start a script as a child process, to talk with while it runs."""
    return _children.start


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """Collect what the library logs, debug lines included."""
    logger = logging.getLogger("areal_core")
    lines = LogLines()
    handler = LogLinesHandler(lines)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def _three_servers() -> Iterator[list[ReusedServer]]:
    from reused_servers import reused_servers

    with reused_servers(3, ms_per_token=2.0) as servers:
        yield servers


@pytest.fixture
def servers(_three_servers: list[ReusedServer], tmp_path: Path) -> list[ReusedServer]:
    """Give three embedded servers as if they had just started; tokens tell the version that made them."""
    from reused_servers import renewed

    return renewed(_three_servers, tmp_path)


@pytest.fixture(scope="session")
def _chatting_servers() -> Iterator[list[ReusedServer]]:
    from reused_servers import reused_servers

    with reused_servers(1, ms_per_token=1.0, log_tokens=True) as servers:
        yield servers


@pytest.fixture
def chatting_server(_chatting_servers: list[ReusedServer], tmp_path: Path) -> ReusedServer:
    """Give a server as if it had just started, in whose log are the tokens it read and sampled."""
    from reused_servers import renewed

    return renewed(_chatting_servers, tmp_path)[0]


@pytest.fixture
def weights_of(tmp_path: Path) -> Callable[[int], str]:
    """Give the path of the weights of a version."""
    from areal_core.embedded import write_weights

    def path(version: int) -> str:
        write_weights(tmp_path / f"weights-{version}", version)
        return str(tmp_path / f"weights-{version}")

    return path


@pytest.fixture(scope="module")  # the counts of its faults go on from test to test
def _faulty_server() -> Iterator[EmbeddedServer]:
    from areal_core.embedded import EmbeddedServer

    with EmbeddedServer(ms_per_token=0) as server:
        yield server


@pytest.fixture
def server(_faulty_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """Give a server that answers at once and has no faults at first."""
    yield _faulty_server
    _faulty_server.faults([])


@pytest.fixture
def play(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Play:
    """Run an act of an engine and a scripted server on one loop."""
    from scripted import play_on

    return lambda act: play_on(loop_factory, act)


@pytest.fixture
def use(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[RunWithSession]:
    """Run work with the session of a new loop; the HTTP configuration is the default again afterwards."""
    from areal_core.workflow_context import HttpConfig, configure_http
    from exchanging import run_with_session

    yield lambda work: run_with_session(loop_factory, work)
    configure_http(HttpConfig())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Name the directory of a journal, which is not there yet."""
    return tmp_path / "journal"


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Open a journal's tables in memory."""
    from areal_core._journal.schema import connect

    opened = connect(Path(":memory:"))
    yield opened
    opened.close()


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    """Open a new journal's file, and read it."""
    from areal_core._journal.store import Store

    with Store(directory) as opened:
        opened.read()
        yield opened
