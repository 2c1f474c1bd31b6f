"""From the text of a reply to its content and its tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Raw, Struct

from areal_core._checks import check_choice

__all__ = ["NameAndArguments", "ToolCallParser", "parser_named"]

NameAndArguments: TypeAlias = tuple[str, str]
"""What a tool call says: the tool's name, and its arguments as JSON."""


class ToolCallParser(Protocol):
    """How a model writes its tool calls. One object may serve several conversations at once."""

    @property
    def opening(self) -> str | None:
        """The text that a call begins with: what comes from it on is streamed when the reply is over.

        ``""``: stream nothing before; None: there are no calls.
        """

    def parse(self, text: str) -> tuple[str | None, Sequence[NameAndArguments]]:
        """Return the content of *text*, and its calls in their order. It raises nothing.

        Where there are calls, the content is what was said beside them, None when that is nothing; it begins
        as *text* does before the first `opening`, but for whitespace at the end of that. What is no
        well-formed call is content. Where there are none, it is *text*.
        """


class _Found(NamedTuple):
    begin: int
    end: int
    call: NameAndArguments


class _Written(Struct):
    name: str
    arguments: Raw


class HermesParser:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, as Qwen's and Hermes' models write them.

    Arguments are left as the model wrote them; where they are a JSON string, they are what is in it.
    """

    opening = "<tool_call>"
    # All up to the first "<" outside of a string, where JSON has none and each opening has one. Two openings
    # never agree on what is in a string, so that however many there are, no text is read for more than two.
    _whole = re.compile(r'\s*\{(?:[^"<\\]++|"(?:[^"\\]++|\\.)*+")*+</tool_call>', re.DOTALL)

    def parse(self, text: str) -> tuple[str | None, list[NameAndArguments]]:
        """Return the content and the calls of *text*. A call that is cut off is content."""
        found = self._all(text)
        if not found:
            return text, []
        # The content's beginning was streamed as it is, so that only what was held back is stripped.
        first = text[: found[0].begin].rstrip()
        between = [text[one.end : other.begin].strip() for one, other in pairwise(found)]
        content = "\n".join(filter(None, (first, *between, text[found[-1].end :].strip())))
        return content or None, [one.call for one in found]

    def _all(self, text: str) -> list[_Found]:
        found: list[_Found] = []
        at, last = text.find(self.opening), text.rfind("</tool_call>")
        while 0 <= at < last:
            one = self._at(text, at)
            if one is not None:
                found.append(one)
            at = text.find(self.opening, at + 1 if one is None else one.end)
        return found

    def _at(self, text: str, begin: int) -> _Found | None:
        """Return the call whose opening is at *begin*; None: it is none."""
        found = self._whole.match(text, begin + len(self.opening))
        call = found and _call(found[0].removesuffix("</tool_call>").strip())
        return _Found(begin, found.end(), call) if found and call else None


def _call(document: str) -> NameAndArguments | None:
    try:
        json.loads(document)  # which agents may do, and which takes less than msgspec does
        written = msgspec.json.decode(document, type=_Written)
        arguments = bytes(written.arguments).decode()
        if arguments.startswith('"'):
            arguments = msgspec.json.decode(arguments, type=str)
        elif not arguments.startswith("{"):
            return None
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    return (written.name, arguments) if written.name else None


class NoToolCalls:
    """For models that know no tools: all text is content."""

    opening = None

    def parse(self, text: str) -> tuple[str | None, list[NameAndArguments]]:
        """Return *text*, and no calls."""
        return text, []


_NAMED: dict[str, ToolCallParser] = {"hermes": HermesParser(), "none": NoToolCalls()}


def parser_named(tool_calls: str | ToolCallParser) -> ToolCallParser:
    """Return the parser with this name, or the one given.

    Raises ValueError for a name nobody knows, TypeError for what is no parser.
    """
    if isinstance(tool_calls, str):
        check_choice("tool_calls", tool_calls, tuple(_NAMED))
        return _NAMED[tool_calls]
    opening = getattr(tool_calls, "opening", 0)
    if not callable(getattr(tool_calls, "parse", None)) or not (opening is None or isinstance(opening, str)):
        raise TypeError(
            f"tool_calls is a {type(tool_calls).__name__}, which is no parser; give "
            f"{', '.join(map(repr, _NAMED))}, or an object with opening (a text) and parse(text)"
        )
    return tool_calls
