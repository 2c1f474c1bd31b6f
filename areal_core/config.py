"""The one configuration of engine and executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from areal_core._checks import check_integer, check_seconds

__all__ = ["InferenceEngineConfig"]


@dataclass(frozen=True, kw_only=True)
class InferenceEngineConfig:
    """Say how rollouts are generated. Raises ValueError and TypeError for what cannot work."""

    consumer_batch_size: int = 1
    """How many trajectories the trainer takes per step."""

    max_concurrent_rollouts: int | None = None
    """How many samples may be generated at once; None: the staleness budget alone decides."""

    max_head_offpolicyness: int = 0
    """How many versions a trained token may be older than the policy that is trained."""

    max_inflight_per_server: int | None = None
    """How many generations one server is given at once; the rest waits in order. None: no limit."""

    request_timeout: float = 3600.0
    """Seconds for one `agenerate`, over all attempts; pauses are not counted."""

    request_retries: int = 3
    """How often in a row a generation may fail without a new token before its error is raised."""

    setup_timeout: float = 300.0
    """Seconds in which servers have to become healthy at first, and in which one of them has to come
    back when none is left."""

    control_timeout: float = 600.0
    """Seconds for one control call at one server, such as loading weights."""

    silence_timeout: float = 60.0
    """Seconds after which a server that answers no probe leaves rotation."""

    min_servers: int = 1
    """With fewer servers in rotation than this, control calls fail."""

    model: str | None = None
    """The name under which OpenAI-compatible servers serve the model; None leaves it out."""

    api_key: str | Mapping[str, str] | None = field(default=None, repr=False)
    """Sent as a bearer token: one for all servers, or one per address. Never logged."""

    max_reply_bytes: int = 256 * 2**20
    """The most bytes a reply, or one event of a stream, may unpack to. A token with its log-probability
    takes about 45."""

    def __post_init__(self) -> None:
        for name in ("consumer_batch_size", "min_servers", "max_reply_bytes"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("max_concurrent_rollouts", "max_inflight_per_server"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least=1)
        for name in ("max_head_offpolicyness", "request_retries"):
            check_integer(name, getattr(self, name), least=0)
        for name in ("request_timeout", "setup_timeout", "control_timeout", "silence_timeout"):
            check_seconds(name, getattr(self, name))
        if self.api_key is not None and not isinstance(self.api_key, str | Mapping):
            raise TypeError(f"api_key is a {type(self.api_key).__name__}; give a text, or one per address")

    @property
    def concurrency(self) -> int:
        """How many rollouts are under way at once, at most."""
        return self.max_concurrent_rollouts or (self.max_head_offpolicyness + 1) * self.consumer_batch_size
