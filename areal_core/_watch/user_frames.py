"""Which of a thread's frames are the user's code, and how to name them."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

from areal_core._frames import with_callers

Origin = Literal["stdlib", "installed", "ours", "user"]

_OURS = str(Path(__file__).parent.parent) + "/"  # all of areal_core
_ABOVE_OURS = str(Path(__file__).parent.parent.parent) + "/"
_CLIENTS = frozenset(("aiohttp", "anyio", "httpcore", "httpx", "openai", "opentelemetry", "ray", "uvloop"))
"""Packages whose callbacks are the library's work: nobody can take them elsewhere."""
_INSTALLED = ("/site-packages/", "/dist-packages/")
_STDLIB = tuple({f"{sysconfig.get_paths()[kind]}/" for kind in ("stdlib", "platstdlib")})


def frames_of_callback(frame: FrameType | None, base: int) -> list[FrameType]:
    """Return *frame* and its callers, innermost first, without the outermost *base* that run the loop."""
    frames = with_callers(frame)
    return frames[: max(0, len(frames) - base)]


def depth(frame: FrameType | None) -> int:
    """Return how many frames *frame* and its callers are."""
    return len(with_callers(frame))


def users(frames: Sequence[FrameType]) -> list[FrameType]:
    """Return those of *frames* (innermost first) that are the user's code, or the nearest there is to it.

    That is what is neither the standard library's, nor ours, nor installed; a package whose workflow is at
    the bottom is the user's also when it is installed. Where there is nothing of these, all are returned.
    """
    origins = [_origin(frame.f_code.co_filename) for frame in frames]
    foreign = [one for one, origin in zip(frames, origins, strict=True) if origin in ("installed", "user")]
    if not foreign:
        return list(frames)
    package = _package(foreign[-1])
    return [one for one in foreign if _origin(one.f_code.co_filename) == "user" or _package(one) == package]


def name(frame: FrameType) -> str:
    """Return module and qualified name of the function of *frame*."""
    module = frame.f_globals.get("__name__")
    return f"{module}.{frame.f_code.co_qualname}" if module else frame.f_code.co_qualname


def where(frame: FrameType) -> str:
    """Return file and line of *frame*."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def short_place(frame: FrameType) -> str:
    """Return file, line and function of *frame*; of a library's file only what comes after its directory."""
    code = frame.f_code
    return f"{_short(code.co_filename)}:{frame.f_lineno} {code.co_qualname}"


def is_users(frame: FrameType) -> bool:
    """Return whether *frame* runs code that is neither the standard library's, nor ours, nor installed."""
    return _origin(frame.f_code.co_filename) == "user"


def is_nobodys(frame: FrameType) -> bool:
    """Return whether *frame* runs code of the library, of Python, or of a client that the library uses.

    Of a callback, the outermost that `users` gives says whose it is.
    """
    origin = _origin(frame.f_code.co_filename)
    return origin != "user" and (origin != "installed" or _package(frame) in _CLIENTS)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


@functools.cache
def _short(filename: str) -> str:
    for directory in (*_INSTALLED, *_STDLIB):
        if directory in filename:
            return filename.rpartition(directory)[2]
    return filename.removeprefix(_ABOVE_OURS) if filename.startswith(_OURS) else filename


@functools.cache  # there are no more than there are source files
def _origin(filename: str) -> Origin:
    if filename.startswith("<frozen "):
        return "stdlib"
    if filename.startswith(_OURS):
        return "ours"
    if any(part in filename for part in _INSTALLED):
        return "installed"
    return "stdlib" if filename.startswith(_STDLIB) else "user"
