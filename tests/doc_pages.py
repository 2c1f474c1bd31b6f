"""The pages of the documentation as its reader has them: programs, what they print, links and places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r'^```(?P<language>[\w-]*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)(?:\{[^}]*\})?")
_NAME = re.compile(r"\[`[^`\]]+`\]\[([\w.]+)\]")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_INCLUDED = re.compile(r'^--8<-- "([^":]+)(?::(\d+):)?"$', re.MULTILINE)

CONTINUED = "continued"
"""The title of a block that goes on where the one before it on the page ended."""


class Block(NamedTuple):
    """A piece of a program, and what it prints and logs."""

    code: str
    printed: str
    logged: str


@dataclass
class Program:
    """What a reader of one page types into one file, and the files beside it."""

    name: str
    """Page and line."""
    files: dict[str, str]
    """Texts by name: those that the page showed before."""
    blocks: list[Block] = field(default_factory=list)


def pages() -> list[Path]:
    """Return all pages."""
    return sorted(DOCS.rglob("*.md"))


def named(page: Path) -> str:
    """Return what messages call *page*."""
    return str(page.relative_to(DOCS))


def text_of(page: Path) -> str:
    """Return the text of *page* with all that it includes."""
    return _INCLUDED.sub(_included, page.read_text())


def _included(found: re.Match[str]) -> str:
    """Return the lines that are included: of a whole file, or from a line on, counted from 1."""
    lines = (ROOT / found[1]).read_text().splitlines(keepends=True)
    return "".join(lines[int(found[2] or 1) - 1 :])


def programs(page: Path) -> list[Program]:
    """Return the programs on *page*, in their order. Raises ValueError for a block that belongs to none."""
    text = page.read_text()
    found: list[Program] = []
    files: dict[str, str] = {}
    fences = list(_FENCE.finditer(text))
    for place, fence in enumerate(fences):
        if fence["language"] != "python":
            continue
        where = f"{named(page)}:{text.count(chr(10), 0, fence.start()) + 1}"
        title = fence["title"] or ""
        if title.endswith(".py"):
            files[title] = fence["text"]
        if title.endswith(".py") and not title.startswith("test_"):
            continue
        if title == CONTINUED:
            if not found:
                raise ValueError(f"{where} continues nothing")
        elif title and not title.startswith("test_"):
            raise ValueError(f"{where} has the title {title!r}, which means nothing")
        else:
            found.append(Program(where, dict(files)))
        code = _TESTS.format(title) if title.startswith("test_") else fence["text"]
        found[-1].blocks.append(_block(code, text, fences[place : place + 3]))
    return found


def count_of_blocks(page: Path) -> int:
    """Return how many blocks of Python *page* has, wherever they stand."""
    return len(re.findall(r"^[ >]*(?:```+|~~~+) *\{? *\.?(?:python|py)\b", page.read_text(), re.MULTILINE))


def count_of_read_blocks(page: Path) -> int:
    """Return how many of them `programs` sees."""
    return sum(fence["language"] == "python" for fence in _FENCE.finditer(page.read_text()))


_TESTS = """\
import sys
import pytest

sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "{}"]))
"""


def _block(code: str, text: str, fences: list[re.Match[str]]) -> Block:
    """Return the block that is the first of *fences*; what it prints and logs follows at once."""
    printed = logged = ""
    end = fences[0].end()
    for fence in fences[1:]:
        if fence["language"] != "text" or text[end : fence.start()].strip():
            break
        if fence["title"] == "log":
            logged = fence["text"]
        elif fence["title"] is None:
            printed = fence["text"]
        end = fence.end()
    return Block(code, printed, logged)


def pattern_of(printed: str) -> str:
    """Return a regular expression for what a page says is printed, where ``…`` stands for anything.

    On a line of its own it stands for any number of lines, or none.
    """
    return ".*?".join(map(re.escape, re.split(r"(?m)^…\n|…", printed)))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Give the file and the anchor, "" for none, of each link of *page* that leads to a place here."""
    for target in _LINK.findall(_without_code(text_of(page))):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def names(page: Path) -> list[str]:
    """Return the dotted names that *page* links to the reference."""
    return _NAME.findall(_FENCE.sub("", text_of(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of *page* make, as Python-Markdown makes them."""
    made: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text_of(page))):
        words = re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", heading)).strip().lower()
        slug, count = re.sub(r"[-\s]+", "-", words), 1
        anchor = slug
        while anchor in made:
            anchor, count = f"{slug}_{count}", count + 1
        made.add(anchor)
    return made


def places(page: Path) -> list[str]:
    """Return the files and directories of the project that *page* names in code."""
    code = _CODE.findall(_FENCE.sub("", page.read_text()))
    return [one for one in code if re.match(r"(areal_core|benchmarks|docs|examples|tests)/", one)]


def _without_code(text: str) -> str:
    return _CODE.sub("``", _FENCE.sub("", text))
