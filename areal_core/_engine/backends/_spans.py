"""Which version made which tokens, where a server tells."""

from __future__ import annotations

from msgspec import Struct

from areal_core._engine.backend import ReplyError
from areal_core._engine.wire.decoding import Label, integer_label


class Span(Struct, gc=False):
    """The version that made the tokens from start up to, not including, end."""

    start: int
    end: int
    version: Label = None


def versions_of(
    spans: list[Span] | None, seen: int, new: int, field: str, *, is_abort: bool
) -> list[int] | None:
    """Return the version of each *new* token after *seen* ones; None when one of them has none.

    Raises ReplyError, which names *field*, for spans that overlap or go on behind the last token: those of
    an abort, which may lack anything, tell no versions then.
    """
    if not spans or not new:
        return None
    try:
        return _versions(spans, seen, new, field)
    except ReplyError:
        if not is_abort:
            raise
    return None


def _versions(spans: list[Span], seen: int, new: int, field: str) -> list[int] | None:
    last = spans[-1].end
    if last > seen + new:
        raise ReplyError(f"{field} ends at token {last}, of {seen + new}")
    # An event counts from the beginning of the reply, or from that of its own tokens: both end at the last.
    first = 0 if last == new else seen
    versions: list[int] = []
    end = 0
    for span in spans:
        if not end <= span.start <= span.end <= last:
            raise ReplyError(f"{field} is not in order at {span.start} to {span.end}")
        end = span.end
        version = integer_label(span.version)
        if version is not None:
            versions += [version] * (end - max(span.start, first))
    return versions if len(versions) == new else None
