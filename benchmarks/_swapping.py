"""Gives the functions of an imported module the code of a mutant, which spares importing everything anew."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType

Functions = Mapping[CodeType, list[FunctionType]]

_OWN = (
    "co_code",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_flags",
    "co_exceptiontable",
)


def functions_below(directory: Path) -> Functions:
    """Return the functions there are of modules in *directory*, by their code."""
    found: dict[CodeType, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and Path(thing.__code__.co_filename).is_relative_to(directory):
            found.setdefault(thing.__code__, []).append(thing)
    return found


def swaps(functions: Functions, file: Path, old: str, new: str) -> list[tuple[FunctionType, CodeType]] | None:
    """Return which functions get which code for *new* instead of *old*.

    None where that is not enough: something differs that runs when the module is imported.
    """
    codes = [compile(text, str(file), "exec", dont_inherit=True) for text in (old, new)]
    found = list(_differing(*codes))
    result: list[tuple[FunctionType, CodeType]] = []
    reached: set[CodeType] = set()
    for was, now, within in found:
        mine = functions.get(was, [])
        if any(function.__closure__ and was.co_freevars != now.co_freevars for function in mine):
            return None
        result += [(function, now) for function in mine]
        if mine or within in reached:
            reached.add(was)
        elif _itself_differs(was, now):
            return None
    return result


def _differing(
    was: CodeType, now: CodeType, within: CodeType | None = None
) -> Iterator[tuple[CodeType, CodeType, CodeType | None]]:
    """Yield each pair of codes that differ in themselves or in what they contain, the outer ones first."""
    inner = [
        pair
        for one, other in zip(was.co_consts, now.co_consts, strict=False)
        if isinstance(one, CodeType) and isinstance(other, CodeType)
        for pair in _differing(one, other, was)
    ]
    if inner or _itself_differs(was, now):
        yield was, now, within
        yield from inner


def _itself_differs(was: CodeType, now: CodeType) -> bool:
    return any(getattr(was, name) != getattr(now, name) for name in _OWN) or [
        *map(_constant, was.co_consts)
    ] != [*map(_constant, now.co_consts)]


def _constant(value: object) -> tuple[type, str]:
    return type(value), "" if isinstance(value, CodeType) else repr(value)
