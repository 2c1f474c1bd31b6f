"""The fixtures that users get by installing the library."""

from __future__ import annotations

import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from children import RunScript

pytestmark = pytest.mark.any_loop

# No configuration, warnings are errors. pytest-asyncio would be one: it warns where nobody configures it.
PYTEST = """
    import pytest
    raise SystemExit(pytest.main(["-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio"]))
"""


def run_tests(run_script: RunScript, directory: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_workflow.py").write_text(dedent(tests))
    (directory / "pytest.ini").write_text("[pytest]\n")
    return run_script(PYTEST)


def test_a_users_test_gets_servers_that_end_with_it(run_script: RunScript, tmp_path: Path) -> None:
    script = run_tests(
        run_script,
        tmp_path,
        """
        import json, urllib.error, urllib.request
        import pytest

        servers = []

        def post(server):
            request = urllib.request.Request(f"{server.url}/generate", b'{"input_ids": [21]}')
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)["text"]

        def test_one(embedded_server):
            servers.append(embedded_server)
            assert post(embedded_server) == "kpxmrntalg"
            assert embedded_server.stats().generations == 1

        def test_a_new_one(embedded_server):
            assert not servers[0].running
            assert embedded_server.stats().generations == 0

        def test_many_with_options(embedded_server, make_embedded_server):
            made = [make_embedded_server(seed=1), make_embedded_server(fault=["status=503"])]
            servers.extend(made)
            assert len({server.url for server in [embedded_server, *made]}) == 3
            assert (made[0].options.seed, made[0].options.ms_per_token) == (1, 0)
            assert post(made[0]) == "kpxmrntalg"
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(made[1])
            assert refused.value.code == 503
            refused.value.close()
            made[0].kill()
            raise ZeroDivisionError

        def test_that_all_have_ended():
            assert [server.running for server in servers] == [False] * 3
        """,
    )
    assert (script.returncode, script.stderr) == (1, "")
    assert "FAILED test_workflow.py::test_many_with_options - ZeroDivisionError" in script.stdout
    assert "= 1 failed, 3 passed in " in script.stdout


def test_a_run_that_needs_no_server_imports_next_to_nothing(run_script: RunScript, tmp_path: Path) -> None:
    script = run_tests(
        run_script,
        tmp_path,
        """
        import sys

        def test_it(request):
            loaded = {name for name in sys.modules if name.startswith("areal_core")}
            plugin = "areal_core.embedded.pytest_plugin"
            assert loaded == {
                "areal_core",
                "areal_core._lazy",
                "areal_core.embedded",
                "areal_core.errors",
                plugin,
            }
            assert request.config.pluginmanager.get_plugin("areal_core").__name__ == plugin
        """,
    )
    assert (script.returncode, script.stderr) == (0, "")
