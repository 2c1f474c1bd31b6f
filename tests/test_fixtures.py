"""The fixtures: what the other tests take for granted."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import areal_core
from children import RunScript, StartScript, without_slow_callbacks
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
