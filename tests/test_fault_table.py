"""The table of faults in README.md: every row names tests, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _rows() -> list[tuple[str, str]]:
    """Return fault and tests of each row of the tables below the heading."""
    _, found, tables = (HERE / "README.md").read_text().partition("## Which test proves")
    assert found
    rows = re.findall(r"^\| (.+) \| (.+) \|$", tables, re.MULTILINE)
    return [row for row in rows if row[0] != "Fault"]


@cache
def _tests_in(file: str) -> set[str]:
    """Return the names pytest collects at the top of *file*: functions, classes and ``TestX = ...``."""
    names = set[str]()
    for node in ast.parse((HERE / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return {name for name in names if name.lower().startswith("test")}


@pytest.mark.parametrize(("fault", "tests"), _rows(), ids=[fault[:50] for fault, _ in _rows()])
def test_every_fault_names_tests_that_exist(fault: str, tests: str) -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
    assert named, f"no test is named for: {fault}"
    assert ", ".join(f"`{file}::{name}`" for file, name in named) == tests
    missing = [(file, name) for file, name in named if name not in _tests_in(file)]
    assert not missing, fault


def test_the_table_was_read_whole() -> None:
    lines = (HERE / "README.md").read_text().partition("## Which test proves")[2].splitlines()
    heads_and_rules = 2 * sum(line.startswith("### ") for line in lines)
    assert len(_rows()) == sum(line.startswith("|") for line in lines) - heads_and_rules
