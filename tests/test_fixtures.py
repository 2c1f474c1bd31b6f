"""The fixtures: what the other tests take for granted."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

import areal_core
from children import RunScript, StartScript, without_slow_callbacks
from conftest import MakeRunner
from logged import LogLine, LogLines


def test_the_loop_is_of_the_kind_its_name_says(
    loop_name: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    loop = loop_factory()
    loop.close()
    assert type(loop).__module__.split(".")[0] == loop_name


def test_a_script_knows_its_loop_and_is_strict(run_script: RunScript, loop_name: str) -> None:
    script = run_script(
        """
        import importlib, os, sys, warnings
        loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop()
        print(type(loop).__module__.split(".")[0], sys.flags.dev_mode, sys.argv[1:])
        loop.close()
        warnings.warn("this is an error")
        """,
        "one",
    )
    assert (script.returncode, script.stdout) == (1, f"{loop_name} True ['one']\n")
    assert script.stderr.endswith("UserWarning: this is an error\n")


@pytest.mark.any_loop
def test_a_script_runs_the_code_under_test_and_knows_nothing_of_pytest(
    run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    script = run_script("""
        import os, areal_core
        print(areal_core.__file__)
        print(os.environ["PYTHONPATH"])  # also where areal_core is not the installed one
        print([name for name in os.environ if name.startswith("PYTEST") or name == "PYTHONWARNINGS"])
    """)
    root = Path(areal_core.__file__).parent.parent
    assert (script.returncode, script.stderr) == (0, "")
    assert script.stdout.splitlines() == [areal_core.__file__, str(root), "[]"]


@pytest.mark.any_loop
def test_a_script_that_hangs_fails_the_test_with_its_stacks(run_script: RunScript) -> None:
    hangs = """
        import threading
        def never():
            print("begun", flush=True)
            threading.Event().wait()
        never()
    """
    with pytest.raises(pytest.fail.Exception, match=r"(?s)did not end within 0.5 s.*begun.*in never\n"):
        run_script(hangs, timeout=0.5)


@pytest.mark.any_loop
def test_what_a_script_started_ends_with_the_test(
    start_script: StartScript, request: pytest.FixtureRequest
) -> None:
    child = start_script("""
        import os, signal
        os.fork()
        print("here", flush=True)
        signal.pause()
    """)
    assert child.stdout is not None
    assert [child.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
    stdout = os.dup(child.stdout.fileno())
    request.getfixturevalue("_children").close()
    assert os.read(stdout, 1) == b""  # the end, which comes when nobody can write any more
    os.close(stdout)


def test_slow_callbacks_are_left_out_of_what_a_script_said() -> None:
    slow = "Executing <Handle <TaskStepMethWrapper object at 0x7f>() created at a.py:1> took 0.104 seconds\n"
    assert without_slow_callbacks(f"first\n{slow}WARNING:asyncio:{slow}last\n") == "first\nlast\n"


def test_log_lines_of_another_thread_can_be_waited_for(log_lines: LogLines) -> None:
    def log() -> None:
        logger = logging.getLogger("areal_core")
        logger.debug("begun n=%d", 1)
        logger.error("failed", exc_info=ValueError("three"))

    threading.Thread(target=log).start()
    level, message, error = log_lines.wait_for("fail")
    assert (level, message, repr(error)) == ("error", "failed", "ValueError('three')")
    assert log_lines[0] == LogLine("debug", "begun n=1", None)
    assert log_lines.of("error") == ["failed"]


def test_a_made_runner_runs_on_the_chosen_loop(make_runner: MakeRunner, loop_name: str) -> None:
    async def kind_of_loop() -> str:
        return type(asyncio.get_running_loop()).__module__.split(".")[0]

    assert make_runner().run(kind_of_loop) == loop_name


@pytest.mark.any_loop
def test_a_made_runner_is_destroyed_and_a_thread_left_behind_fails_its_test(
    run_script: RunScript, tmp_path: Path
) -> None:
    (tmp_path / "test_threads.py").write_text(
        dedent("""
            import threading

            made = []

            def leave_one() -> None:
                threading.Thread(target=threading.Event().wait, daemon=True).start()

            def test_that_leaves_one(make_runner):
                made.append(make_runner())
                leave_one()

            def test_that_says_so(make_runner):
                made.append(make_runner(leave=True))
                leave_one()

            def test_that_both_were_destroyed():
                assert made.pop().exiting.is_set()
                assert made.pop().exiting.is_set()
        """)
    )
    here = Path(__file__).parent
    script = run_script(f"""
        import sys, pytest
        sys.path.insert(0, {str(here)!r})
        sys.exit(pytest.main([
            "-c", {str(here.parent / "pyproject.toml")!r}, "--rootdir=.", "-p", "conftest",
            "-p", "no:cacheprovider", "--loop=asyncio", "test_threads.py",
        ]))
    """)
    assert (script.returncode, script.stderr) == (1, "")
    assert "ERROR at teardown of test_that_leaves_one[asyncio]" in script.stdout
    assert "Failed: threads left alive:" in script.stdout
    assert ", in wait\n" in script.stdout  # the stack that says where it hangs
    assert "= 3 passed, 1 error in" in script.stdout
