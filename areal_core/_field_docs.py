"""Texts under the fields of a dataclass, for `help()`, which does not know them: `documented`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from itertools import pairwise
from textwrap import dedent, indent
from typing import Any, TypeVar

T = TypeVar("T")


def documented(cls: type[T]) -> type[T]:
    """Have the docstring of the dataclass *cls* end with its fields, and with the texts under these.

    They are read from the source when somebody asks, and not before; without it the docstring stays as it is.
    """
    type.__setattr__(cls, "__doc__", _Docstring(cls.__doc__ or ""))
    return cls


class _Docstring:
    """Stands in a class for its docstring, which is made at first sight."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._is_made = False

    def __get__(self, _: object, cls: type[Any]) -> str:
        if not self._is_made:
            self._text, self._is_made = "\n\n".join([inspect.cleandoc(self._text), *_fields(cls)]), True
        return self._text


def _fields(cls: type[Any]) -> Iterator[str]:
    try:
        tree = ast.parse(dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):  # there is no source
        return
    assert isinstance(tree, ast.ClassDef)
    texts = dict(_texts(tree))
    for one in dataclasses.fields(cls):
        if one.name in texts:
            yield f"{one.name}: {one.type}{_default(one)}\n{indent(texts[one.name], '    ')}"


def _texts(tree: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield field.target.id, inspect.cleandoc(text)


def _default(one: dataclasses.Field[Any]) -> str:
    return "" if one.default is dataclasses.MISSING else f" = {one.default!r}"
