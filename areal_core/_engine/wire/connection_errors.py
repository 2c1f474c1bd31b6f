"""What an error of aiohttp's, or of who resolves names for it, says of the server and the way to it."""

from __future__ import annotations

import errno
import socket

import aiohttp
from aiohttp.http_exceptions import BadHttpMessage, ContentLengthError, TransferEncodingError

NOBODY_THERE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Numbers of errors that say that nobody listens at an address."""

_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# The same to c-ares, which aiohttp asks where aiodns is installed: its ENODATA, ENOTFOUND, and EBADNAME.
_NO_SUCH_NAME_TO_ARES = (1, 4, 8)


def is_no_such_name(error: OSError) -> bool:
    """Return whether *error*, of who resolves names, says that there is none; else it could not tell."""
    if error.errno is not None:
        return error.errno in _NO_SUCH_NAME
    cause = error.__cause__  # in which aiohttp leaves the error of aiodns, with its number
    return cause is not None and bool(cause.args) and cause.args[0] in _NO_SUCH_NAME_TO_ARES


def errno_of(error: Exception) -> int | None:
    """Return the number of *error*, which kept us from connecting; None: it has none."""
    number: int | None = getattr(error, "errno", None)
    if number is None and type(getattr(error, "os_error", None)) is OSError:
        # What aiohappyeyeballs makes of a host whose addresses fail for different reasons: none leads to it.
        return errno.EHOSTUNREACH
    return number


def is_garbage(error: Exception) -> bool:
    """Return whether the server did not speak HTTP, rather than break off."""
    cause = error.__cause__ if isinstance(error, aiohttp.ClientPayloadError) else error
    cut_off = isinstance(cause, ContentLengthError | TransferEncodingError)
    return isinstance(cause, aiohttp.ClientResponseError | BadHttpMessage) and not cut_off
