"""What a server says when it refuses: its own words, without the request they may repeat. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

MOST_BYTES = 4 * 2**20
"""Of a body worth reading: a server that repeats a prompt of 100 000 tokens a few times is within it."""

_WORDS_BYTES = 1200  # an error has the server and the call in it too, and stays under 2 kB
_READ_CHARACTERS = 2**16
# The longest that is waited on one word of a server: proxies say an hour for what is over in a minute, and
# nobody tells that it is. Who comes back too early is told again.
_MOST_WAIT_S = 60.0

_WORDS = ("error", "errors", "message", "detail", "msg", "reason", "title")
_LIST, _DEPTH = 10, 6  # how many complaints of a list are read, and how deep they may lie

# Tokens, repeated in the middle of words: a text that explains has no 16 numbers in a row. Each run is
# looked at once, from its beginning.
_NUMBER = r"-?\d[\d.eE+-]*+"
_NUMBERS = re.compile(rf"(?<![\w.+-]){_NUMBER}(?:\s*+,\s*+{_NUMBER}){{15,}}+")


def words_of(body: bytes) -> str:
    """Return what *body*, of an error status, says in words; cut by `shortened`, nothing is left to hide.

    Of JSON only the fields that hold words are read: a server that rejects a request may repeat it.
    """
    if len(body) > MOST_BYTES:
        return f"more than {MOST_BYTES} bytes, which were not read"
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
    words = _said(document, 0)
    if words or not isinstance(document, dict):
        return words
    return f"JSON with no message but {', '.join(list(document)[:_LIST])}"


def shortened(words: str) -> str:
    """Return *words* on one line, without long rows of numbers, cut to 1200 bytes."""
    words = _NUMBERS.sub("[numbers]", words[:_READ_CHARACTERS])
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    encoded = words.encode("utf-8", "replace")
    if len(encoded) <= _WORDS_BYTES:
        return encoded.decode()
    return encoded[:_WORDS_BYTES].decode("utf-8", "ignore") + "..."


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a reply asks to be left alone for, a minute at most; None: it does not say.

    ``Retry-After`` is a number of seconds or a date, which is compared with the server's own clock.
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), _MOST_WAIT_S)
    until = _timestamp(value)
    if until is None:
        return None
    now = _timestamp(headers.get("Date", ""))
    return min(max(until - (time.time() if now is None else now), 0.0), _MOST_WAIT_S)


def _timestamp(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _said(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return value
    if depth == _DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_said(entry, depth + 1) for entry in value[:_LIST])))
    if not isinstance(value, dict):
        return ""
    parts = [_said(value[field], depth + 1) for field in _WORDS if field in value]
    words = "; ".join(dict.fromkeys(filter(None, parts)))
    place = _place(value.get("loc"))
    return f"{place}: {words}" if place and words else words


def _place(loc: Any) -> str:
    """Return where in the request a fault lies: ``body.input_ids.3``."""
    steps = loc[:_LIST] if isinstance(loc, list) else []
    return ".".join(str(step) for step in steps if isinstance(step, str | int))
