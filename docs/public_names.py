"""Make docstrings as good to read on a page as they are in an editor, for `mkdocs.yml`.

Names of public things in backticks become links, and so do the names of errors. A
lone ``::``, which announces a block of code, goes: the indentation says it in Markdown.
A tree that stands among the text becomes a block of code.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import griffe

_NAME = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?![`\]])")
_ERROR = re.compile(r"(?<![`.\w\[])([A-Z]\w+Error)\b(?![`\]\w])")
_ANNOUNCED = re.compile(r"^::\n\n|^(.*)::$", re.MULTILINE)
_TREE = re.compile(
    r"^(?=.*[├└])(?:.+\n)+|(?:^.+\n)(?:^[├└│].*\n|^ +[├└].*\n)+", re.MULTILINE
)
_CODE = re.compile(r"(^```[\s\S]*?^```$|^    .*$|``.*?``)", re.MULTILINE)


class PublicNames(griffe.Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_package(
        self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any
    ) -> None:
        """Look the public names up in *pkg*, and link them in its docstrings."""
        places = Places(pkg)
        for thing in _all_of(pkg):
            if thing.docstring is not None:
                thing.docstring.value = _readable(
                    thing.docstring.value, thing, places
                )


class Places:
    """Where in the reference the public things of *package* are."""

    def __init__(self, package: griffe.Module) -> None:
        self._by_name: dict[str, list[str]] = {}
        for name, path in _exports(package):
            self._by_name.setdefault(name, []).append(path)
        self._methods: dict[str, list[str]] = {}
        for path in {path for paths in self._by_name.values() for path in paths}:
            for name in _methods(package.modules_collection[path]):
                self._methods.setdefault(name, []).append(f"{path}.{name}")

    def of(self, name: str, thing: griffe.Object) -> str:
        """Return the path under which *name* is shown, as *thing* means it; empty where it is not."""
        for owner in (thing, thing.parent):
            if (
                owner is not None
                and owner.is_class
                and _is_shown(owner, name)
                and owner.name in self._by_name
            ):
                return f"{self._nearest(owner.name, thing)}.{name}"
        if name in self._by_name:
            return self._nearest(name, thing)
        first, _, rest = name.rpartition(".")
        if first in self._by_name:
            return f"{self._nearest(first, thing)}.{rest}"
        methods = self._methods.get(name, [])
        return methods[0] if len(methods) == 1 else ""

    def _nearest(self, name: str, thing: griffe.Object) -> str:
        """Of several that have the same name, return the one that is nearest to *thing*."""
        return max(self._by_name[name], key=lambda path: _shared(path, thing.path))


def _shared(one: str, other: str) -> int:
    """Count the parts with which both paths begin."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _exports(package: griffe.Module) -> Iterator[tuple[str, str]]:
    """Give each public module, class and function with its path, by the names that docstrings have for it."""
    for module in _public_modules(package):
        yield module.name, module.path
        yield module.path, module.path
        for export in module.exports or ():
            yield str(export), f"{module.path}.{export}"
            yield f"{module.name}.{export}", f"{module.path}.{export}"


def _public_modules(module: griffe.Module) -> Iterator[griffe.Module]:
    for name, inner in module.members.items():
        if not name.startswith("_") and not inner.is_alias and inner.is_module:
            yield inner  # type: ignore[misc]
            yield from _public_modules(inner)  # type: ignore[arg-type]


def _methods(thing: griffe.Object | griffe.Alias) -> Iterator[str]:
    if thing.is_class:
        for name, member in thing.all_members.items():
            if name[0] != "_" and member.is_function and member.docstring is not None:
                yield name


def _is_shown(owner: griffe.Object, name: str) -> bool:
    member = owner.all_members.get(name)
    return member is not None and name[0] != "_" and member.docstring is not None


def _all_of(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for inner in thing.members.values():
        if not inner.is_alias:
            yield from _all_of(inner)  # type: ignore[arg-type]


def _readable(text: str, thing: griffe.Object, places: Places) -> str:
    text = _ANNOUNCED.sub(lambda found: f"{found[1]}:" if found[1] else "", text)
    text = _TREE.sub(lambda found: f"\n```text\n{found[0]}```\n", text)
    pieces = _CODE.split(text)
    pieces[::2] = [_linked(piece, thing, places) for piece in pieces[::2]]
    return "".join(pieces)


def _linked(text: str, thing: griffe.Object, places: Places) -> str:
    def code(found: re.Match[str]) -> str:
        path = places.of(found[1], thing)
        return f"[`{found[1]}`][{path}]" if path else found[0]

    def error(found: re.Match[str]) -> str:
        path = places.of(found[1], thing)
        return f"[{found[1]}][{path}]" if path else found[0]

    return _ERROR.sub(error, _NAME.sub(code, text))
