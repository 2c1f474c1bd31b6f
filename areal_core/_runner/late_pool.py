"""Threads for what blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class LatePool(ThreadPoolExecutor):
    """A pool that is made by its first use: few runners block, and it takes a twentieth of their life."""

    def __init__(self, thread_name_prefix: str) -> None:
        self._name = thread_name_prefix
        self._making = threading.Lock()
        self._is_made = False
        self._is_shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do what a pool does."""
        with self._making:
            if not self._is_made:
                super().__init__(thread_name_prefix=self._name)
                self._is_made = True
                if self._is_shut:
                    super().shutdown(wait=False)
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do what a pool does."""
        with self._making:
            self._is_shut = True
        if self._is_made:
            super().shutdown(wait, cancel_futures=cancel_futures)
