"""The audit of what is installed: its words and its status, with a list of vulnerabilities on this machine.

pip-audit is in an environment of its own, which ``make audit`` makes; what needs it is skipped without that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parent.parent
SCRIPT = HOME / "benchmarks" / "audit.py"
PYTHON = HOME / ".venv-audit" / "bin" / "python"

with_pip_audit = pytest.mark.skipif(not PYTHON.exists(), reason="`make audit` was never run here")

BAD = {
    "id": "PYSEC-2026-7",
    "aliases": ["CVE-2026-77"],
    "summary": "it leaks",
    "details": "it leaks",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.6"}]}],
            "versions": ["1.5"],
        }
    ],
}


def audit(
    source: str, packages: Path, *options: str, python: str | Path = PYTHON
) -> subprocess.CompletedProcess[str]:
    command = [str(python), str(SCRIPT), "--source", source, "--packages", str(packages), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


@contextmanager
def a_list(status: int = 200, knows: Any = None, body: bytes | None = None) -> Iterator[str]:
    """Serve OSV's API, which knows something about ``leaky`` alone; give its URL."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_known = knows is not None and asked["package"]["name"] == "leaky"
            said = json.dumps({"vulns": [knows]} if is_known else {}).encode() if body is None else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Make an environment with two packages, and the project itself."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, version in (("leaky", "1.5"), ("sound", "2.0"), ("areal-core", "0.1")):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return tmp_path


@with_pip_audit
def test_where_nothing_is_known_against_any_package_it_says_how_many_were_asked_for(packages: Path) -> None:
    with a_list() as source:
        told = audit(source, packages)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "2 packages were looked up, and none has a known vulnerability\n"


@with_pip_audit
def test_what_is_known_is_told_with_the_version_that_is_free_of_it(packages: Path) -> None:
    with a_list(knows=BAD) as source:
        told = audit(source, packages)
        ignoring = audit(source, packages, "--ignore", "PYSEC-2026-7")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == (
        "known vulnerabilities, 1 of them:\n  leaky 1.5: PYSEC-2026-7 CVE-2026-77, not in 1.6\n"
    )
    assert ignoring.returncode == 0


@with_pip_audit
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"status": 404}, "404"),
        ({"status": 503}, "503"),
        ({"body": b"<html>log in</html>"}, "JSONDecodeError"),
    ],
    ids=["not found", "down", "something else"],
)
def test_a_source_that_gives_no_list_is_not_taken_for_one_that_knows_nothing(
    packages: Path, answer: Any, why: str
) -> None:
    with a_list(**answer) as source:
        told = audit(source, packages)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"no list of vulnerabilities could be asked at {source}:\n")
    assert why in told.stderr
    assert told.stderr.endswith("NOT AUDITED\n")


@with_pip_audit
def test_a_source_that_cannot_be_reached_is_said_to_be(packages: Path) -> None:
    with a_list() as source:
        pass
    told = audit(source, packages)
    assert (told.returncode, told.stdout) == (2, "")
    assert "Connection refused" in told.stderr
    assert told.stderr.endswith("NOT AUDITED\n")


def test_without_an_environment_nothing_is_said_to_be_sound(tmp_path: Path) -> None:
    told = audit("http://nowhere.invalid/", tmp_path, python=sys.executable)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"{tmp_path} is no environment; ")
    assert told.stderr.endswith("NOT AUDITED\n")


@pytest.mark.skipif(find_spec("pip_audit") is not None, reason="here it is installed")
def test_without_pip_audit_nothing_is_said_to_be_sound(packages: Path) -> None:
    told = audit("http://nowhere.invalid/", packages, python=sys.executable)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "pip-audit is not installed here; run `make audit`\nNOT AUDITED\n"


@pytest.mark.parametrize(
    ("dependencies", "status", "says"),
    [
        ([], 2, "0 of 0 packages could not be looked up"),
        ([{"name": "areal-core", "skip_reason": "not on PyPI"}], 2, "0 of 0"),
        (
            [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}],
            2,
            "b: not",
        ),
        (
            [
                {"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]},
                {"name": "b", "skip_reason": "no"},
            ],
            2,
            "a 1: X, not in no version",
        ),
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages were looked up"),
    ],
    ids=["none", "the project alone", "one was left out", "left out and listed", "all"],
)
def test_only_what_was_looked_up_whole_is_sound(
    dependencies: list[Any], status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from audit import judge

    verdict = judge({"dependencies": dependencies})
    assert verdict.status == status
    assert says in "\n".join(verdict.lines)
