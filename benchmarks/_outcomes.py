"""What became of each mutant, kept in outcomes.json: who clones the project goes on where others stopped.

A function's mutants keep their outcomes until its text changes, whatever else changes in its module; what
stands outside of functions is one such unit of its own.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from cosmic_ray.work_item import MutationSpec

from _mutants import OPERATORS

FILE = Path(__file__).with_name("outcomes.json")
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Outcome(StrEnum):
    """A letter for each."""

    WAITING = "-"
    ASSERTED = "a"
    """A test failed."""
    HUNG = "t"
    """A test did not end."""
    SURVIVED = "s"
    SURVIVED_HERE = "h"
    """No other Python was there to try it on."""


class Outcomes:
    """The outcomes of one module's mutants, each by its place in *specs*."""

    def __init__(self, file: str, source: str, specs: Sequence[MutationSpec]) -> None:
        self._file = file
        units = _units(source)
        self._unit_of = [_unit_at(units, spec.start_pos[0]) for spec in specs]
        self._hashes = _hashes(source, units)
        kept = _read().get(file, {})
        letters: dict[str, Iterator[str]] = {}
        for unit in dict.fromkeys(self._unit_of):
            known, _, noted = kept.get(unit, "").partition(" ")
            fits = known == self._hashes[unit] and len(noted) == self._unit_of.count(unit)
            letters[unit] = iter(noted if fits else Outcome.WAITING * self._unit_of.count(unit))
        self._outcomes = [Outcome(next(letters[unit])) for unit in self._unit_of]

    def __getitem__(self, place: int) -> Outcome:
        return self._outcomes[place]

    def __setitem__(self, place: int, outcome: Outcome) -> None:
        self._outcomes[place] = outcome

    def save(self) -> None:
        """Write them down, beside those of other modules; of this one nothing else stays."""
        all_of_them = _read()
        letters: dict[str, str] = {}
        for unit, outcome in zip(self._unit_of, self._outcomes, strict=True):
            letters[unit] = letters.get(unit, "") + outcome
        all_of_them[self._file] = {unit: f"{self._hashes[unit]} {noted}" for unit, noted in letters.items()}
        text = json.dumps(all_of_them, indent=1, sort_keys=True)
        temporary = FILE.with_suffix(".new")
        temporary.write_text(f"{text}\n")
        temporary.replace(FILE)


def _read() -> dict[str, dict[str, str]]:
    known: dict[str, dict[str, str]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return known


def _units(source: str) -> list[tuple[str, int, int]]:
    """Return the name, the first and the last line of each function that is in no other."""

    def walk(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, int, int]]:
        for node in body:
            if isinstance(node, _DEFINITION):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield f"{prefix}{node.name}", first, node.end_lineno or node.lineno
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try):
                yield from walk([*node.body, *node.orelse], prefix)

    return list(walk(ast.parse(source).body, ""))


def _unit_at(units: Sequence[tuple[str, int, int]], line: int) -> str:
    return next((name for name, first, last in units if first <= line <= last), "")


def _hashes(source: str, units: Sequence[tuple[str, int, int]]) -> Mapping[str, str]:
    texts: dict[str, str] = {"": ""}
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        unit = _unit_at(units, number)
        texts[unit] = texts.get(unit, "") + line
    return {
        unit: hashlib.sha256(f"{OPERATORS}{text}".encode()).hexdigest()[:12] for unit, text in texts.items()
    }
