"""The README tells the truth: its code runs and prints what it says, what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from children import RunScript

pytestmark = pytest.mark.any_loop

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

# Code, and what it prints.
BLOCKS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# The README says that tasks without a value are logged; the last program has two.
FAILED = r"task_failed task=2 nap .*\nTraceback \(most recent call last\):\n(?:  .*\n)+ValueError: .*\n"
TIMED_OUT = r"task_timed_out task=3 nap .*\n"
LOGGED = ["", "", FAILED + TIMED_OUT]


def test_all_code_in_the_readme_says_what_it_prints() -> None:
    assert README.count("```python\n") == len(BLOCKS) == len(LOGGED)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_in_the_readme_prints_what_the_readme_says(run_script: RunScript, number: int) -> None:
    code, printed = BLOCKS[number]
    done = run_script(code)

    assert re.fullmatch(LOGGED[number], done.stderr)
    assert done.stdout == printed
    assert done.returncode == 0


def test_every_place_in_the_readme_exists() -> None:
    table = README.partition("## Where does X live?")[2].partition("\n## ")[0]
    places = re.findall(r"`([\w./]+/[\w./]*)`", table)
    assert len(places) > 10
    linked = re.findall(r"\]\(([\w./]+)\)", README)
    assert linked
    assert [place for place in (*places, *linked) if not (ROOT / place).exists()] == []


def test_every_part_of_the_library_has_a_place_in_the_readme() -> None:
    package = ROOT / "areal_core"
    public = {path.name for path in package.iterdir() if re.fullmatch(r"[a-z]\w*(\.py)?", path.name)}
    assert [name for name in sorted(public) if f"`areal_core/{name}" not in README] == []


def test_every_make_target_is_in_the_readme_and_every_one_in_the_readme_exists() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert targets
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE)) == set(targets[1].split())


def test_every_dependency_has_its_reason_in_the_readme() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    required = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    table = README.partition("## What it depends on")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \|", table, re.MULTILINE)
    assert rows[1:] == re.findall(r'^ +"([\w-]+)', required, re.MULTILINE)
