"""The dialects, one file each: its ``BACKEND`` is the `Backend`."""

from __future__ import annotations

from importlib import import_module

from areal_core._engine.backend import Backend

_NAMES = ("openai", "sglang", "vllm")


def backend_named(name: str) -> Backend:
    """Return the dialect *name*. Raises ValueError for one that does not exist."""
    if name not in _NAMES:
        raise ValueError(f"backend={name!r} does not exist; there are {', '.join(_NAMES)}")
    backend: Backend = import_module(f"{__name__}.{name}").BACKEND
    return backend
