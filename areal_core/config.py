"""The one configuration of engine and executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from areal_core._checks import check_integer, check_seconds, check_text

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
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check_integer(name, value, least=least))
        for name in ("request_timeout", "setup_timeout", "control_timeout", "silence_timeout"):
            object.__setattr__(self, name, check_seconds(name, getattr(self, name)))
        if self.model is not None:
            check_text("model", self.model)
        if self.api_key is not None and not isinstance(self.api_key, str):
            object.__setattr__(self, "api_key", _keys(self.api_key))

    @property
    def concurrency(self) -> int:
        """How many rollouts are under way at once, at most."""
        return self.max_concurrent_rollouts or (self.max_head_offpolicyness + 1) * self.consumer_batch_size


_INTEGERS = {
    "consumer_batch_size": 1,
    "max_concurrent_rollouts": 1,
    "max_head_offpolicyness": 0,
    "max_inflight_per_server": 1,
    "request_retries": 0,
    "min_servers": 1,
    "max_reply_bytes": 1,
}
_OPTIONAL = ("max_concurrent_rollouts", "max_inflight_per_server")


def _keys(keys: object) -> dict[str, str]:
    """Return a copy of API keys by address. Raises TypeError, which shows none of them."""
    if not isinstance(keys, Mapping):
        raise TypeError(f"api_key is a {type(keys).__name__}; give a text, or one per address")
    for address, key in keys.items():
        if not isinstance(address, str) or not isinstance(key, str):
            kinds = f"{type(key).__name__} for a {type(address).__name__}"
            raise TypeError(f"api_key has a {kinds}; give a text per address")
    return dict(keys)
