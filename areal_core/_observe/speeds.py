"""How fast each inference server is, and which of them is slow, for those who show it."""

from __future__ import annotations

from areal_core._engine.speeds import Speed, Speeds

__all__ = ["Speed", "Speeds"]
