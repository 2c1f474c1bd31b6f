"""Tokens from inference servers, each with the policy version that made it."""

from __future__ import annotations

__all__ = ["RemoteInfEngine"]


class RemoteInfEngine:
    """Asks inference servers for tokens."""
