"""One episode's part of the gateway: a key that opens it, and the calls under way in it."""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import secrets
from collections.abc import Coroutine
from typing import Any, TypeVar

from areal_core._agents.request import RefusedError
from areal_core._agents.scope import Scope

T = TypeVar("T")

_ENDED = "the session has ended"


class Session:
    """Lets an agent elsewhere make calls for the episode that opens it. Its repr has no key."""

    def __init__(self, scope: Scope) -> None:
        self.id = secrets.token_hex(8)
        self.key = f"sk-{secrets.token_urlsafe(32)}"
        self.completer = scope.completer
        self._context = contextvars.copy_context()  # the episode's: what its calls do is noted in its record
        self._calls: set[asyncio.Task[Any]] = set()
        self._ended = False

    def __repr__(self) -> str:
        return f"<Session {self.id} with {len(self._calls)} calls under way>"

    def admits(self, key: str) -> bool:
        """Return whether *key* opens this session. How long that takes tells nothing of the right one."""
        return hmac.compare_digest(self.key.encode(), key.encode("utf-8", "surrogateescape"))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* as one of its calls. Raises what it raises, and RefusedError when the session ends."""
        if self._has_ended():
            work.close()
            raise RefusedError(410, _ENDED)
        call = asyncio.get_running_loop().create_task(work, context=self._context)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await call
        except asyncio.CancelledError:
            if self._has_ended() and call.cancelled():
                raise RefusedError(410, _ENDED) from None
            raise
        finally:
            call.cancel()

    def _has_ended(self) -> bool:
        return self._ended

    async def close(self) -> None:
        """Admit nobody any more, and end the calls under way: their generations end on the servers."""
        self._ended = True
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
