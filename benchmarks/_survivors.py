"""The mutants that no test can kill, and why: survivors.toml, matched by text, not by line number."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("survivors.toml")


class Change(NamedTuple):
    """What a mutant changed. Two changes with the same text in the same function count as one."""

    file: str
    inside: str
    """The function or class; empty at the top level of the module."""
    was: str
    now: str


def change(file: str, inside: str | None, original: str, code: str) -> Change:
    """Describe the difference between two texts of a module."""
    lines = list(difflib.ndiff(original.splitlines(), code.splitlines()))
    was, now = (_flat(line[2:] for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))
    return Change(file, inside or "", was, now)


def _flat(lines: Iterable[str]) -> str:
    return " ".join(" ".join(lines).split())


def reasons() -> dict[Change, str]:
    """Read why each known survivor survives."""
    known = tomllib.loads(FILE.read_text()) if FILE.exists() else {}
    return {
        Change(entry["file"], entry["inside"], entry["was"], entry["now"]): entry["why"].strip()
        for entry in known.get("survivor", [])
    }


def as_toml(survivor: Change) -> str:
    """Return the entry for *survivor*, its reason left to be written."""
    pairs = "".join(f"{name} = {_quoted(value)}\n" for name, value in survivor._asdict().items())
    return f'[[survivor]]\n{pairs}why = ""\n'


def _quoted(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
