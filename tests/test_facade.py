"""The facade: its names, and what importing it must not cost."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import areal_core
from children import RunScript

pytestmark = pytest.mark.any_loop


def test_all_is_sorted_and_every_name_in_it_resolves() -> None:
    assert areal_core.__all__ == sorted(areal_core.__all__)
    for name in areal_core.__all__:
        assert name in dir(areal_core)
        assert getattr(areal_core, name) is not None


def test_a_name_is_the_object_of_the_module_that_owns_it() -> None:
    from areal_core import async_task_runner, embedded, errors, loop_cleanup, workflow_context

    assert areal_core.AsyncTaskRunner is async_task_runner.AsyncTaskRunner
    assert areal_core.TimedResult is async_task_runner.TimedResult
    assert areal_core.TaskQueueFullError is async_task_runner.TaskQueueFullError
    assert areal_core.TaskQueueFullError is errors.TaskQueueFullError
    assert areal_core.RunnerStats is async_task_runner.RunnerStats
    assert areal_core.EmbeddedServer is embedded.EmbeddedServer
    assert areal_core.HttpConfig is workflow_context.HttpConfig
    assert areal_core.WorkflowContext is workflow_context.WorkflowContext
    assert areal_core.register_loop_cleanup is loop_cleanup.register_loop_cleanup
    assert areal_core.unregister_loop_cleanup is loop_cleanup.unregister_loop_cleanup
    assert areal_core.workflow_context is workflow_context


def test_a_misspelt_name_is_an_attribute_error_that_says_it() -> None:
    with pytest.raises(AttributeError, match=r"^module 'areal_core' has no attribute 'AsyncTaskRuner'$"):
        areal_core.AsyncTaskRuner  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_stands_in_the_facade() -> None:
    from areal_core import errors

    assert set(errors.__all__) <= set(areal_core.__all__)


def test_the_version_is_the_one_of_the_distribution() -> None:
    assert areal_core.__version__ == version("areal-core")


@pytest.mark.parametrize(
    "statement",
    [
        "import areal_core",
        "from areal_core import AsyncTaskRunner",
        "from areal_core import *",
    ],
)
def test_importing_brings_in_nothing_heavy(run_script: RunScript, statement: str) -> None:
    heavy = ["aiohttp", "httpx", "httpx_aiohttp", "uvloop", "numpy", "torch", "ray"]
    script = run_script(f"""
        {statement}
        import sys
        print([name for name in {heavy} if name in sys.modules])
    """)
    assert (script.returncode, script.stdout, script.stderr) == (0, "[]\n", "")
