"""One episode's part of the gateway: a key that opens it."""

from __future__ import annotations

import hmac
import secrets
from contextvars import copy_context

from areal_core._agents.scope import Scope


class Session:
    """A context in which an agent elsewhere makes calls for an episode: it gives base URL and key for that.

    It is one of *open_sessions* meanwhile. Behind it the key opens nothing any more, and the generations of
    calls under way have ended. Its repr has no key.
    """

    def __init__(self, scope: Scope, url: str, open_sessions: dict[str, Session]) -> None:
        self.id = secrets.token_hex(8)
        self.key = f"sk-{secrets.token_urlsafe(32)}"
        self.completer = scope.completer
        self._context = copy_context()
        self._scope = scope
        self._base_url = f"{url}/sessions/{self.id}/v1"
        self._open_sessions = open_sessions

    async def __aenter__(self) -> tuple[str, str]:
        self._open_sessions[self.id] = self
        return self._base_url, self.key

    async def __aexit__(self, *_: object) -> None:
        del self._open_sessions[self.id]
        await self._scope.end()

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    def enter_context(self) -> None:
        """Give the running task the variables of the episode."""
        for variable, value in self._context.items():
            variable.set(value)

    def admits(self, key: str) -> bool:
        """Return whether *key* opens this session. How long that takes tells nothing of the right one."""
        return hmac.compare_digest(self.key.encode(), key.encode("utf-8", "surrogateescape"))
