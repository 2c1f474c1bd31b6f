"""What a server that misbehaves sends: replies spoilt in one way each, and replies without end."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from areal_core.embedded._fault_script import Malformed

# Where the dialects have token ids, or log-probabilities that may name them.
_ID_KEYS = frozenset({"output_ids", "token_ids", "output_token_logprobs", "logprobs"})
# Where they have one log-probability per token.
_LOGPROB_LISTS = frozenset({"output_token_logprobs", "token_logprobs", "content"})
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?')
_DEPTH = 100_000
_BLOCK = 2**20


def spoil(body: bytes, how: Malformed) -> bytes:
    """Return the JSON *body* spoilt; what is no JSON object or list comes back as it was."""
    if how in _OF_BYTES:
        return _OF_BYTES[how](body)
    if how is Malformed.CONTENT_TYPE:
        return body
    try:
        value = json.loads(body)
    except ValueError:
        return body
    return json.dumps(_OF_VALUES[how](value)).encode()


def spoil_events(events: bytes, how: Malformed) -> bytes:
    """Return whole server-sent *events* with the data of each spoilt, but for ``[DONE]``."""
    spoilt = []
    for event in events.split(b"\n\n"):
        prefix, data = event[:6], event[6:]
        usable = prefix == b"data: " and data != b"[DONE]"
        spoilt.append(prefix + spoil(data, how) if usable else event)
    return b"\n\n".join(spoilt)


def endless_text(size: int, opening: bytes) -> Iterator[bytes]:
    """Yield *size* bytes of one JSON object, which is closed properly, after *opening*."""
    yield from _blocks(size, opening + b'{"text": "', b'"}')


def bomb(size: int, opening: bytes) -> Iterator[bytes]:
    """Yield gzip's compression of `endless_text`, a thousandth of its size; piece by piece."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for block in endless_text(size, opening):
        piece = squeeze.compress(block)
        # An empty one too: between two pieces the loop serves others.
        yield piece
    yield squeeze.flush()


def _blocks(size: int, opening: bytes, closing: bytes) -> Iterator[bytes]:
    yield opening
    block = b"x" * _BLOCK
    left = max(0, size - len(opening) - len(closing))
    while left:
        yield block[:left]
        left -= min(left, _BLOCK)
    yield closing


def _not_utf8(string: re.Match[bytes]) -> bytes:
    """Begin a text with a byte that is no UTF-8; the name of a field stays, or nobody would read it."""
    return string[0] if string[2] else b'"\xff' + string[1] + b'"'


def _types(value: Any) -> Any:
    """Turn each number into a string."""
    if isinstance(value, int | float):
        return str(value)
    return _inside(value, _types)


def _ids(value: Any) -> Any:
    """Leave the token ids out."""
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if key not in _ID_KEYS}
    return _inside(value, _ids)


def _uneven(value: Any) -> Any:
    """Leave the last log-probability out."""
    if isinstance(value, dict):
        value = {
            key: one[:-1] if key in _LOGPROB_LISTS and isinstance(one, list) else one
            for key, one in value.items()
        }
    return _inside(value, _uneven)


def _nan(value: Any) -> Any:
    """Turn each float into NaN."""
    return math.nan if isinstance(value, float) else _inside(value, _nan)


def _inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(one) for key, one in value.items()}
    if isinstance(value, list):
        return [change(one) for one in value]
    return value


_OF_BYTES: Mapping[Malformed, Callable[[bytes], bytes]] = {
    Malformed.NOT_JSON: lambda _: b"<html><body>Bad Gateway</body></html>",
    Malformed.TRUNCATED: lambda body: body[: len(body) // 2],
    Malformed.EMPTY: lambda _: b"",
    Malformed.DEEP: lambda _: b"[" * _DEPTH + b"]" * _DEPTH,
    Malformed.NOT_UTF8: lambda body: _STRING.sub(_not_utf8, body),
}
_OF_VALUES: Mapping[Malformed, Callable[[Any], Any]] = {
    Malformed.WRONG_TYPES: _types,
    Malformed.MISSING_IDS: _ids,
    Malformed.UNEVEN: _uneven,
    Malformed.NAN: _nan,
}
