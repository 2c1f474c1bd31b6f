"""The first import of aiohttp and httpx takes 0.3 s, which no event loop may stand still for."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from areal_core._http.first_import import import_off_loop
from children import RunScript

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

SLOW_MODULE = """
import threading
import slow_gate
slow_gate.threads.append(threading.current_thread())
slow_gate.entered()
assert slow_gate.go.wait(10)
if slow_gate.failure is not None:
    raise slow_gate.failure
"""


class Gate(ModuleType):
    """What the module `slow` talks with while it is imported."""

    def __init__(self) -> None:
        super().__init__("slow_gate")
        self.threads: list[threading.Thread] = []
        """In which it was imported, once per import."""
        self.entered: Callable[[], object] = lambda: None
        self.go = threading.Event()
        self.failure: BaseException | None = None

    async def wait_for_import(self) -> None:
        """Wait until the module is being imported; the import then waits for `go`."""
        await self.arm().wait()

    def arm(self) -> asyncio.Event:
        """Return an event of the running loop that is set when the import begins."""
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        self.entered = lambda: loop.call_soon_threadsafe(begun.set)
        if self.threads:
            begun.set()
        return begun


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Put a module `slow` on the path that waits, while it is imported, for the gate."""
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("areal_core._http.first_import._imported", set())
    gate = Gate()
    monkeypatch.setitem(sys.modules, "slow_gate", gate)
    before = set(threading.enumerate())
    yield gate
    gate.go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    sys.modules.pop("slow", None)


@pytest.mark.any_loop
def test_importing_the_module_imports_neither_aiohttp_nor_httpx(run_script: RunScript) -> None:
    child = run_script(
        """
        import sys
        from areal_core import workflow_context
        workflow_context.configure_http(workflow_context.HttpConfig())
        workflow_context.ensure_descriptors(1)
        assert workflow_context.HttpClientManager.current() is None
        print(*({"aiohttp", "httpx", "uvloop", "yarl"} & set(sys.modules)))
        """
    )
    assert (child.stdout, child.stderr) == ("\n", "")


@pytest.mark.parametrize(
    "first", ["get_aiohttp_session", "get_httpx_client", "get_control_session", "get_openai_client"]
)
def test_the_first_client_imports_off_the_loop_and_a_hundred_callers_share_it(
    run_script: RunScript, first: str
) -> None:
    child = run_script(
        """
        import asyncio, importlib, os, sys, threading
        from areal_core import workflow_context
        from areal_core._agents import recording

        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("aiohttp", "httpx", "openai", "areal_core"):
                    imported_here.append(threading.current_thread() is threading.main_thread())

        class Engine:
            chat = object()

        async def main():
            async with workflow_context.record(Engine()):
                calls = (getattr(workflow_context, sys.argv[1])() for _ in range(100))
                client, *others = set(await asyncio.gather(*calls))
                print(1 + len(others))
                getattr(client, "chat", None)  # OpenAI's has more to import at its first call

        imported_here = []
        sys.meta_path.insert(0, Watch())
        make = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(main())
        print(set(imported_here))
        """,
        first,
    )
    assert (child.stdout, child.stderr) == ("1\n{False}\n", "")


def test_the_loop_goes_on_during_the_import(loop_factory: LoopFactory, gate: Gate) -> None:
    async def main() -> None:
        importing = asyncio.create_task(import_off_loop("slow"))
        await gate.wait_for_import()
        assert not importing.done()
        gate.go.set()
        await importing
        assert "slow" in sys.modules
        (thread,) = gate.threads
        assert (thread.name, thread.daemon) == ("import slow", False)
        assert thread is not threading.current_thread()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_the_interpreter_waits_for_the_import_of_a_daemon_thread(
    loop_factory: LoopFactory, gate: Gate
) -> None:
    """An extension module that is being initialized while everything is torn down crashes the process."""

    def on_another_loop() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(import_off_loop("slow"))

    gate.go.set()
    thread = threading.Thread(target=on_another_loop, daemon=True)
    thread.start()
    thread.join(10)
    assert [thread.daemon for thread in gate.threads] == [False]


def test_callers_at_the_same_time_share_one_import(loop_factory: LoopFactory, gate: Gate) -> None:
    async def main() -> None:
        importing = [asyncio.create_task(import_off_loop("slow")) for _ in range(50)]
        await gate.wait_for_import()
        assert [thread.name for thread in threading.enumerate()].count("import slow") == 1
        gate.go.set()
        await asyncio.gather(*importing)
        assert len(gate.threads) == 1

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_callers_on_two_loops_share_one_import(loop_factory: LoopFactory, gate: Gate) -> None:
    def on_another_loop() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(import_off_loop("slow"))

    async def main() -> None:
        importing = asyncio.create_task(import_off_loop("slow"))
        await gate.wait_for_import()
        other = asyncio.create_task(asyncio.to_thread(on_another_loop))
        gate.go.set()
        await asyncio.gather(importing, other)
        assert len(gate.threads) == 1

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_a_cancelled_caller_leaves_the_import_to_the_others(loop_factory: LoopFactory, gate: Gate) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        cancelled = asyncio.create_task(import_off_loop("slow"))
        await gate.wait_for_import()
        waiting = asyncio.create_task(import_off_loop("slow"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        gate.go.set()
        await waiting
        assert len(gate.threads) == 1

    complaints: list[Any] = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert complaints == []


def test_a_default_executor_that_is_gone_does_not_matter(loop_factory: LoopFactory, gate: Gate) -> None:
    async def main() -> None:
        await asyncio.to_thread(gate.go.set)
        await asyncio.get_running_loop().shutdown_default_executor()
        await import_off_loop("slow")
        assert "slow" in sys.modules

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_what_was_imported_once_costs_no_wait(loop_factory: LoopFactory, gate: Gate) -> None:
    async def main() -> None:
        gate.go.set()
        await import_off_loop("slow")
        del sys.modules["slow"]
        with pytest.raises(StopIteration):  # without having waited
            import_off_loop("slow").send(None)
        assert "slow" not in sys.modules

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("failure", [ImportError("broken"), SystemExit(3)])
def test_a_failed_import_is_raised_in_all_who_wait_and_tried_again(
    loop_factory: LoopFactory, gate: Gate, failure: BaseException
) -> None:
    async def attempt() -> BaseException | None:
        try:
            await import_off_loop("slow")
        except BaseException as error:
            return error
        return None

    async def main() -> None:
        gate.failure = failure
        gate.go.set()
        first, second = await asyncio.gather(attempt(), attempt())
        assert first is second is failure
        gate.failure = None
        assert await attempt() is None
        assert "slow" in sys.modules

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_without_a_thread_to_be_had_the_import_happens_all_the_same(
    loop_factory: LoopFactory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        gate.go.set()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        await import_off_loop("slow")
        assert gate.threads == [threading.current_thread()]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    monkeypatch.undo()


def test_a_loop_that_is_closed_during_the_import_is_left_in_peace(
    loop_factory: LoopFactory, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait_for_import() -> None:
        importing.append(asyncio.create_task(import_off_loop("slow")))
        await gate.wait_for_import()

    importing: list[asyncio.Task[None]] = []
    loop = loop_factory()
    loop.run_until_complete(wait_for_import())
    importing[0].cancel()
    loop.run_until_complete(asyncio.wait(importing))
    loop.close()
    with caplog.at_level(logging.DEBUG):
        gate.go.set()
        for thread in threading.enumerate():
            if thread.name == "import slow":
                thread.join(10)
    assert caplog.records == []


def test_a_child_forked_during_the_import_can_import_too(run_script: RunScript) -> None:
    child = run_script(
        """
        import asyncio, importlib, os, sys, threading, warnings
        from areal_core._http.first_import import import_off_loop

        warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # that is the point

        with open("slow.py", "w") as file:
            file.write("import os, script_gate\\nscript_gate.entered()\\nscript_gate.go.wait(10)")

        class Gate: pass
        sys.modules["script_gate"] = gate = Gate()
        gate.go = threading.Event()
        make = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

        async def main():
            loop, begun = asyncio.get_running_loop(), asyncio.Event()
            gate.entered = lambda: loop.call_soon_threadsafe(begun.set)
            importing = asyncio.create_task(import_off_loop("slow"))
            await begun.wait()
            threading.Timer(0.1, gate.go.set).start()
            if child := os.fork():
                await importing
                await import_off_loop("colorsys")
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                return
            gate.entered = lambda: None
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(import_off_loop("slow"))
                runner.run(import_off_loop("colorsys"))
            os._exit(0 if {"slow", "colorsys"} <= set(sys.modules) else 1)

        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(main())
        """
    )
    assert (child.stdout, child.stderr) == ("0\n", "")


def test_a_child_forked_before_the_import_began_can_import_too(run_script: RunScript) -> None:
    child = run_script(
        """
        import asyncio, importlib, os, sys, warnings
        from areal_core._http import first_import

        warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # that is the point
        make = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

        async def main():
            first_import._importing.acquire()  # the thread is there and must wait
            importing = asyncio.create_task(first_import.import_off_loop("colorsys"))
            await asyncio.sleep(0)
            child = os.fork()
            first_import._importing.release()
            if child:
                await importing
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                return
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(asyncio.wait_for(first_import.import_off_loop("colorsys"), 5))
            os._exit(0 if "colorsys" in sys.modules else 1)

        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(main())
        """
    )
    assert (child.stdout, child.stderr) == ("0\n", "")


@pytest.mark.any_loop
def test_a_system_that_cannot_fork_needs_no_hooks(run_script: RunScript) -> None:
    child = run_script(
        """
        import os
        del os.fork, os.register_at_fork  # random, imported by rich where there is one, looks for the first
        import areal_core.workflow_context
        """
    )
    assert (child.returncode, child.stderr) == (0, "")
