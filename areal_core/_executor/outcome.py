"""How a rollout ended."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Status = Literal["accepted", "rejected", "failed", "timed_out", "cancelled", "stale"]


class RolloutOutcome(Struct, frozen=True, kw_only=True, eq=False):
    """How one rollout ended: a whole group, where one was asked for."""

    task_id: int
    status: Status

    trajectory: dict[str, Any] | None = None
    """What it yields; None unless accepted. The batch dimension of a group's is its members."""

    error: BaseException | None = None
    """The exception when it failed, a TimeoutError when it timed out, a CancelledError when it was
    cancelled; None otherwise."""

    reason: str | None = None
    """Why it was rejected, or is stale, in words; None otherwise."""

    is_eval: bool = False

    data_id: Any = None
    """What names its item of data; None: nothing does."""

    start_version: int | None = None
    """The policy version when its first member started; None if none did."""

    origin: int | None = None
    """The oldest version that made a token of it that is trained on, or *start_version* where the
    trajectory has no ``versions``; None unless it was accepted."""

    create_time: float = 0.0
    """When its first member started, in seconds of the executor's clock; *finish_time* if none did."""

    finish_time: float = 0.0
    """When it ended."""

    tokens_masked: int = 0
    """How many of its tokens were too old to be trained on, so that their ``loss_mask`` is 0 now."""

    @property
    def seconds(self) -> float:
        """How long it ran; 0 if it never started."""
        return self.finish_time - self.create_time
