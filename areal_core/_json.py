r"""JSON of whatever there is, with texts that UTF-8 has no bytes for: `json_of`, `writable`.

``json.loads('"\ud83d"')`` is half of a surrogate pair, and so is a byte of a file's name that is no UTF-8.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["json_of", "writable"]

_encoder = msgspec.json.Encoder()


def writable(text: str) -> str:
    """Return *text* as UTF-8 can have it, with "?" for halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def json_of(value: Any) -> bytes:
    """Return *value* as JSON; its texts, keys too, are made `writable`."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_all_writable(msgspec.to_builtins(value)))


def _all_writable(value: Any) -> Any:
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, dict):
        return {_all_writable(key): _all_writable(one) for key, one in value.items()}
    return [_all_writable(one) for one in value] if isinstance(value, list | tuple) else value
