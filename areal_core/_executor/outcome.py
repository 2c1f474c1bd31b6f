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

    members_failed: int = 0
    """How many of a group's members failed or timed out, where it goes on without those that do,
    ``on_member_failure="keep_rest"``. A journal does not keep it: 0 for what an earlier run finished."""

    member_error: BaseException | None = None
    """What the first of them raised, by its place in the group; None: none did."""

    reason: str | None = None
    """Why it was rejected, or is stale, in words; None otherwise."""

    is_eval: bool = False

    data_id: Any = None
    """What names its item of data; None: nothing does."""

    start_version: int | None = None
    """The policy version when its first member started; None if none did."""

    origin: int | None = None
    """The oldest version that made a token of it that is trained on, which those that were masked are not; or
    *start_version* where the trajectory has no ``versions``; None unless it was accepted."""

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
