"""Look the installed packages up in a list of known vulnerabilities: ``make audit``.

    .venv-audit/bin/python benchmarks/audit.py --packages .venv --ignore PYSEC-2026-1

Ends with 0 when every package was looked up and none is listed, with 1 when some are, and with 2 when that
is not known: no source could be asked, or not about all packages. pip-audit alone ends with 0 where a source
knows no package at all, and with 1 for all else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

OSV = "https://api.osv.dev/v1/query"
_CLEAN, _LISTED, _UNKNOWN = 0, 1, 2
_OURS = "areal-core"
_TIMEOUT_S = 15


class Verdict(NamedTuple):
    """What came of it."""

    status: int
    lines: list[str]


def judge(report: Any) -> Verdict:
    """Judge what pip-audit has told as JSON."""
    packages = [one for one in report["dependencies"] if one["name"] != _OURS]
    skipped = [f"  {one['name']}: {one['skip_reason']}" for one in packages if "skip_reason" in one]
    listed = [_line(one, bad) for one in packages for bad in one.get("vulns", ())]
    if skipped or not packages:
        told = [f"{len(skipped)} of {len(packages)} packages could not be looked up:", *skipped, *listed]
        return Verdict(_UNKNOWN, told)
    if listed:
        return Verdict(_LISTED, [f"known vulnerabilities, {len(listed)} of them:", *listed])
    return Verdict(_CLEAN, [f"{len(packages)} packages were looked up, and none has a known vulnerability"])


def audit(source: str, packages: Path, ignored: list[str]) -> Verdict:
    """Ask *source* about what is installed in the environment *packages*."""
    found = sorted(packages.glob("lib/python3.*/site-packages"))
    if not found:
        return Verdict(_UNKNOWN, [f"{packages} is no environment; run `make lint` first, which makes one"])
    ran = subprocess.run(_command(source, found, ignored), capture_output=True, text=True, check=False)
    if "No module named pip_audit" in ran.stderr:
        return Verdict(_UNKNOWN, ["pip-audit is not installed here; run `make audit`"])
    try:
        return judge(json.loads(ran.stdout))
    except (ValueError, LookupError, TypeError):  # it ends with a traceback, and no report
        reason = next(filter(_says_why, reversed(ran.stderr.splitlines())), f"it ended with {ran.returncode}")
        return Verdict(_UNKNOWN, [f"no list of vulnerabilities could be asked at {source}:", f"  {reason}"])


def _says_why(line: str) -> bool:
    """Return whether *line*, of a traceback, is an error with words; the last ones may have none."""
    name, colon, words = line.partition(": ")
    return bool(colon and words) and not line.startswith(" ") and "Error" in name


def _command(source: str, found: list[Path], ignored: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--osv-url", source),
        *("--format", "json", "--progress-spinner", "off", "--timeout", str(_TIMEOUT_S)),
        *(part for path in found for part in ("--path", str(path))),
        *(part for one in ignored for part in ("--ignore-vuln", one)),
    ]


def _line(package: Any, bad: Any) -> str:
    fixed = ", ".join(bad["fix_versions"]) or "no version"
    names = " ".join([bad["id"], *bad.get("aliases", ())])
    return f"  {package['name']} {package['version']}: {names}, not in {fixed}"


def main() -> int:
    """Audit, and say what came of it."""
    parser = argparse.ArgumentParser(description="Look installed packages up among known vulnerabilities.")
    parser.add_argument("--packages", type=Path, default=Path(".venv"), help="environment that is audited")
    parser.add_argument("--source", default=OSV, help="where OSV's API is (default: %(default)s)")
    parser.add_argument("--ignore", action="append", default=[], metavar="ID", help="known, and no concern")
    given = parser.parse_args()
    verdict = audit(given.source, given.packages, given.ignore)
    print("\n".join(verdict.lines), file=sys.stdout if verdict.status == _CLEAN else sys.stderr)
    if verdict.status == _UNKNOWN:
        print("NOT AUDITED", file=sys.stderr)
    return verdict.status


if __name__ == "__main__":
    sys.exit(main())
