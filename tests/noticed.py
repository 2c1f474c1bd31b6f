"""Wait, in a test's own thread, for what an engine does in others."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

LONG_S = 20.0

_something_happened = threading.Condition()


def notice(monkeypatch: pytest.MonkeyPatch, owner: type, *methods: str) -> None:
    """Have `wait_for` look again after each call of these *methods*, for the rest of the test."""
    for name in methods:
        monkeypatch.setattr(owner, name, _noticed(getattr(owner, name)))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, which what is noticed brings about."""
    with _something_happened:
        assert _something_happened.wait_for(condition, LONG_S), "it did not come to that"


def _noticed(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            with _something_happened:
                _something_happened.notify_all()

    return call
