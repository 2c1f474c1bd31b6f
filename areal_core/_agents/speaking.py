"""Tokens to text, as they come: `Speaker`, and `read_reply` for all at once.

::

    tokens -> _Reading -> text -> _Holding -> what an agent may be told now
                whole characters    what may yet become a stop string or a tool call waits
"""

from __future__ import annotations

from collections.abc import Sequence

from areal_core._agents.chat_format import ChatFormat
from areal_core._agents.tool_calls import NameAndArguments, ToolCallParser

__all__ = ["Speaker", "read_reply"]

_UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no character, or not yet."""


def read_reply(
    fmt: ChatFormat, tokens: Sequence[int], stop: Sequence[str] = (), *, tools: bool = True
) -> tuple[str | None, list[NameAndArguments]]:
    """Return what *tokens* say: the content, and the tool calls.

    The content ends before the first text of *stop*; it is None where there are tool calls and nothing
    besides. *tools*: whether the model was offered any; otherwise all is content.
    """
    return _parsed(fmt.decode(tokens), stop, fmt.parser if tools else None)


class Speaker:
    """Says a reply while its tokens come. In the end that is what `read_reply` returns for all of them.

    The arguments are those of `read_reply`. It takes time linear in the tokens. Only for bytes that are no
    text can the two differ, where a tokenizer decodes these otherwise with what comes behind (LLaMA 2's);
    an agent that was streamed to is recorded as having heard what it heard.
    """

    def __init__(self, fmt: ChatFormat, stop: Sequence[str] = (), *, tools: bool = True) -> None:
        self._stop = stop
        self._parser = fmt.parser if tools else None
        self._reading = _Reading(fmt)
        self._holding = _Holding(stop, None if self._parser is None else self._parser.opening)
        self._texts: list[str] = []
        self._said: list[str] = []

    def hear(self, tokens: Sequence[int]) -> str:
        """Return the content that can be told with *tokens*; ``""`` when that is nothing yet."""
        said = self._holding.hear(self._read(tokens))
        self._said.append(said)
        return said

    def end(self) -> tuple[str, str | None, list[NameAndArguments]]:
        """Return the content that is not told yet, all content, and the tool calls. It is the last call."""
        self._read((), last=True)
        content, calls = _parsed("".join(self._texts), self._stop, self._parser)
        said = "".join(self._said)
        if not (content or "").startswith(said):  # a parser took away what was told, which nobody can
            return "", said, calls
        return (content or "")[len(said) :], content, calls

    def _read(self, tokens: Sequence[int], *, last: bool = False) -> str:
        text = self._reading.read(tokens, last=last)
        self._texts.append(text)
        return text


class _Reading:
    """Tokens to text, in pieces that together are the text of all.

    A token's text depends on its neighbours: characters lie across tokens, and some tokenizers leave out the
    space before the first. So the new tokens are decoded behind the last ones whose text is known.
    """

    def __init__(self, fmt: ChatFormat) -> None:
        self._decode = fmt.decode
        self._window: list[int] = []
        self._begins = 0  # where in the window the tokens begin that have been read since it moved
        self._known = ""  # what was returned of the window's text
        self._heard = self._decoded = 0  # tokens

    def read(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Return the text that is new; with *last*, all there is."""
        self._window += tokens
        self._heard += len(tokens)
        # While no character gets finished the window grows: tried at every token, that is quadratic.
        if not last and self._decoded + len(self._window) > 8 * self._heard + 64:
            return ""
        text = self._text()
        sure = text if last else text.rstrip(_UNFINISHED)
        new = sure[len(self._known) :]
        self._known += new
        if new and sure == text:
            self._move()
        return new

    def _move(self) -> None:
        del self._window[: self._begins]
        self._begins = len(self._window)
        self._known = self._text()

    def _text(self) -> str:
        self._decoded += len(self._window)
        return self._decode(self._window)


class _Holding:
    """Text to what is content for certain: before any stop string, tool call, and blanks before that."""

    def __init__(self, stop: Sequence[str], opening: str | None) -> None:
        self._marks = [*stop] if opening is None else [*stop, opening]
        self._calls = opening is not None
        self._over = False  # a mark was found: the rest is for the end
        self._held = ""  # shorter than the longest mark
        self._blanks: list[str] = []

    def hear(self, text: str) -> str:
        """Return what of all the *text* so far can be said now."""
        if self._over:
            return ""
        self._held += text
        found = [at for mark in self._marks if (at := self._held.find(mark)) >= 0]
        self._over = bool(found)
        safe = min([*found, *(_begins_at(self._held, mark) for mark in self._marks)], default=len(self._held))
        said, self._held = self._held[:safe], self._held[safe:]
        return self._without_blanks_behind(said) if self._calls else said

    def _without_blanks_behind(self, text: str) -> str:
        said = text.rstrip()
        if not said:
            self._blanks.append(text)
            return ""
        before, self._blanks = "".join(self._blanks), [text[len(said) :]]
        return before + said


def _begins_at(text: str, mark: str) -> int:
    """Return where at the end of *text* the longest beginning of *mark* is; the text's length: nowhere."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return len(text) - length
    return len(text)


def _parsed(
    text: str, stop: Sequence[str], parser: ToolCallParser | None
) -> tuple[str | None, list[NameAndArguments]]:
    ends = [at for mark in stop if (at := text.find(mark)) >= 0]
    text = text[: min(ends, default=len(text))]
    if parser is None:
        return text, []
    content, calls = parser.parse(text)
    return content, list(calls)
