"""Whose call it is: the episode's engine, and where its calls are recorded."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from areal_core._agents.completer import Completer
    from areal_core._agents.recording import Recording
    from areal_core.types import InferenceEngine


class Scope:
    """One episode, as far as agents are concerned. Costs nothing until one makes a call."""

    __slots__ = ("_completer", "_recording", "engine")

    def __init__(self, engine: InferenceEngine) -> None:
        self.engine = engine
        self._recording: Recording | None = None
        self._completer: Completer | None = None

    @property
    def recording(self) -> Recording:
        """The calls so far."""
        if self._recording is None:
            from areal_core._agents.recording import Recording

            self._recording = Recording()
        return self._recording

    @property
    def completer(self) -> Completer:
        """What answers its calls. Raises RuntimeError when the engine has no chat format."""
        if self._completer is None:
            from areal_core._agents.completer import Completer

            self._completer = Completer(self.engine, self.recording)
        return self._completer

    @property
    def is_in_use(self) -> bool:
        """Whether there may be calls under way."""
        return self._completer is not None

    def check_chat(self) -> None:
        """Raise RuntimeError when the engine has no chat format."""
        _ = self.completer

    async def end(self) -> None:
        """End the calls under way, and answer no more."""
        if self._completer is not None:
            await self._completer.end()


current: ContextVar[Scope | None] = ContextVar("areal_core.agent_scope", default=None)
"""That of the episode that runs; None outside of episodes."""
