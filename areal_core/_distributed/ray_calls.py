"""Calls of Ray, which start none: where Ray does not run, each of its own would start another."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import ray
import ray.exceptions

from areal_core._distributed.wire import text_of

_COLORS = re.compile("\x1b\\[[0-9;]*m")


def ask(method: Any, group: str | None, *args: Any) -> Any:
    """Call *method*, of an actor or of its class, in that concurrency group; return a reference.

    Raises RuntimeError where Ray does not run, and whatever Ray raises.
    """
    _see_ray()
    if group is not None:
        method = method.options(concurrency_group=group)
    return method.remote(*args)


def result_of(ref: Any, timeout_s: float | None = None) -> Any:
    """Return what *ref* is for. Raises like `ask`."""
    _see_ray()
    return ray.get(ref, timeout=timeout_s)


def in_turn(refs: Iterable[Any], timeout_s: float | None) -> Iterator[Any]:
    """Yield references as they become ready, for *timeout_s* seconds at most. Raises like `ask`."""
    left, deadline = list(refs), None if timeout_s is None else time.monotonic() + timeout_s
    while left:
        _see_ray()
        ready, left = ray.wait(left, timeout=_left_s(deadline))
        if not ready:
            return
        yield from ready


def kill(handle: Any) -> None:
    """End an actor at once, if it was started."""
    if handle is not None and ray.is_initialized():
        with contextlib.suppress(Exception):  # Ray may be going
            ray.kill(handle)


def in_words(error: BaseException, what: str = "") -> str:
    """Return in one line what Ray's *error* says of a worker, after *what* it was about if that matters."""
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process ended"
    if isinstance(error, ray.exceptions.RayTaskError):
        error = getattr(error, "cause", None) or error
    said = _COLORS.sub("", text_of(error)).partition("\n")[0]
    return f"{what}: {said}" if what else said


def _see_ray() -> None:
    if not ray.is_initialized():
        raise RuntimeError(
            "Ray was shut down; call ray.init() before initialize(), and shut it down after destroy()"
        )


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
