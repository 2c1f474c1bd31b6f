"""One episode's part of the gateway: a key that opens it."""

from __future__ import annotations

import hmac
import secrets

from areal_core._agents.scope import Scope


class Session:
    """Lets an agent elsewhere make calls for the episode that opens it. Its repr has no key."""

    def __init__(self, scope: Scope) -> None:
        self.id = secrets.token_hex(8)
        self.key = f"sk-{secrets.token_urlsafe(32)}"
        self.completer = scope.completer

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    def admits(self, key: str) -> bool:
        """Return whether *key* opens this session. How long that takes tells nothing of the right one."""
        return hmac.compare_digest(self.key.encode(), key.encode("utf-8", "surrogateescape"))
