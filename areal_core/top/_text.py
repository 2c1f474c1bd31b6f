"""Lines of styled text, and small pictures made of characters. Nothing of it knows how they are shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = " ▁▂▃▄▅▆▇█"
FILLS = "█▓▒░"
"""One for each part of a bar, so that it can be read without colours."""


class Piece(NamedTuple):
    """Text of one style: a name such as ``"bad"``; "": that of the rest."""

    text: str
    style: str = ""


Line = list[Piece]


def width_of(text: str) -> int:
    """Return how many columns *text* takes."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def length_of(line: Iterable[Piece]) -> int:
    """Return how many columns *line* takes."""
    return sum(width_of(piece.text) for piece in line)


def shown(text: str) -> str:
    """Return *text* in characters that move no cursor: it may come from data."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else "·" for one in text)


def cut(text: str, columns: int) -> str:
    """Return *text* in *columns* at most; where that cuts it, it says so."""
    text = shown(text)
    if width_of(text) <= columns:
        return text
    while text and width_of(text) > columns - 1:
        text = text[:-1]
    return f"{text}…" if columns > 0 else ""


def cut_middle(text: str, columns: int) -> str:
    """Return *text* in *columns* at most, its beginning and its end: of an address both may tell."""
    text = shown(text)
    if len(text) <= columns:
        return text
    end = columns // 2
    return f"{text[: columns - end - 1]}…{text[-end:]}"


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """Return *text* in exactly *columns*, at their *right* end or at their left."""
    text = cut(text, columns)
    space = " " * (columns - width_of(text))
    return space + text if right else text + space


def clip(line: Line, columns: int) -> Line:
    """Return *line* in *columns* at most."""
    clipped: Line = []
    left = columns
    for piece in line:
        text = cut(piece.text, left)
        left -= width_of(text)
        clipped.append(Piece(text, piece.style))
        if left <= 0:
            break
    return clipped


def fitting(line: Line, columns: int) -> Line:
    """Return *line* in *columns* at most: without its last pieces where that helps, but for the first."""
    while len(line) > 1 and length_of(line) > columns:
        line = line[:-1]
    return clip(line, columns)


def plain(line: Iterable[Piece]) -> str:
    """Return what *line* says without its styles."""
    return "".join(piece.text for piece in line).rstrip()


def wrapped(words: str, columns: int, indent: str = "  ") -> list[str]:
    """Return *words* in lines of *columns* at most, those after the first indented."""
    line = ""
    lines: list[str] = []
    for word in shown(words).split():
        start = indent if lines else ""
        longer = f"{line} {word}" if line else start + word
        if line and width_of(longer) > columns:
            lines.append(line)
            longer = indent + word
        line = longer
    return [cut(one, columns) for one in [*lines, line]]


def bar(share: float, columns: int) -> str:
    """Return a bar whose *share*, 0 to 1, is full."""
    eighths = round(max(0.0, min(1.0, share)) * columns * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(columns)


def stacked(parts: Sequence[tuple[int, str]], most: int, columns: int) -> Line:
    """Return a bar of *parts*, counts with their styles, where *most* fills *columns*.

    What is there can be seen: a part that is not 0 has a column at least.
    """
    line: Line = []
    left = columns
    for place, (count, style) in enumerate(parts):
        if count:
            length = min(left, max(1, round(count / max(1, most) * columns)))
            left -= length
            line.append(Piece(FILLS[place % len(FILLS)] * length, style))
    return line


def chart(values: Sequence[float], columns: int, rows: int) -> list[str]:
    """Return *rows* lines that show the last *columns* of *values*, the greatest as high as it gets."""
    recent = values[-columns:] if columns > 0 else []
    most = max(recent, default=0.0)
    # What is there at all can be seen, in the lowest row.
    heights = [max(1, round(value / most * rows * 8)) if most > 0 else 1 for value in recent]
    lines = []
    for row in reversed(range(rows)):
        levels = [min(8, max(0, height - row * 8)) for height in heights]
        lines.append("".join(LEVELS[level] for level in levels))
    return lines


def number(value: float | None) -> str:
    """Return *value* in five characters or so."""
    if value is None:
        return "?"
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.0f}{unit}" if value >= 100 or value == int(value) else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.0f}T"


def size(count: int) -> str:
    """Return a *count* of bytes in words."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def seconds(value: float | None) -> str:
    """Return a time in a few characters: ``0.3 s``, ``41 s``, ``3:05``, ``2:03:05``, ``4 d 03 h``."""
    if value is None:
        return "?"
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 86400:
        minutes, rest = divmod(whole, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    days, rest = divmod(whole, 86400)
    return f"{days} d {rest // 3600:02} h"


def milliseconds(value: float | None) -> str:
    """Return a short time in milliseconds."""
    return "?" if value is None else f"{value * 1000:.0f} ms" if value < 9.95 else seconds(value)
