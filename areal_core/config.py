"""The one configuration of engine and executor."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from areal_core._checks import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_seconds,
    check_text,
)
from areal_core._field_docs import documented

__all__ = ["InferenceEngineConfig"]


@documented
@dataclass(frozen=True, kw_only=True)
class InferenceEngineConfig:
    """Say how rollouts are generated. Raises ValueError and TypeError for what cannot work."""

    consumer_batch_size: int = 1
    """How many trajectories the trainer takes per step."""

    max_concurrent_rollouts: int | None = None
    """How many samples may be generated at once; None: the staleness budget alone decides."""

    max_head_offpolicyness: int = 0
    """How many versions a trained token may be older than the policy that is trained."""

    queue_size: int | None = None
    """How many samples the executor may have handed to its runner, evaluation included; what else is pending
    it keeps itself, without limit. None: 16 times the concurrency."""

    on_stale: Literal["mask", "drop", "requeue", "keep"] = "mask"
    """What becomes of trajectories with tokens that are too old when a batch is cut. ``"mask"``: their
    ``loss_mask`` is 0, and a trajectory with no token left is dropped. ``"drop"``: the trajectory is.
    ``"requeue"``: its prompt is rolled out again, ``max_requeues`` times at most. ``"keep"``: it is trained
    on; nothing bounds staleness then."""

    max_requeues: int = 1
    """How often a rollout that was too old is run again. Rows of `rollout_batch` are, whatever *on_stale*."""

    straggler_wait: float = 0.0
    """Seconds a batch waits for rollouts that would be too old for the batches after it; ``math.inf``: as
    long as they run."""

    episode_timeout: float | None = 3600.0
    """Seconds an episode may run; None: for ever, and one that never ends can stop everything."""

    cancel_grace: float = 5.0
    """Seconds an episode may clean up once it is told to end."""

    on_member_failure: Literal["cancel", "keep_rest"] = "cancel"
    """When a member of a group fails: the group does and the others are cancelled, or it goes on without."""

    stall_timeout: float = 60.0
    """Seconds to wait when nothing can start before the version rises; then `AdmissionStalledError`."""

    max_consecutive_failures: int | None = None
    """How many training rollouts in a row may fail before every wait raises `FailureBudgetError`; None: 32,
    or twice the concurrency if that is more."""

    max_consecutive_unaccepted: int | None = None
    """The same for rollouts that are not accepted for any reason; None: 64 batches of them."""

    check_trajectory_format: bool = False
    """Whether each trajectory is checked, so that one of the wrong form fails with what is wrong with it."""

    accept_in: Literal["loop", "thread", "process"] = "loop"
    """Where ``should_accept_fn`` runs. One that computes for long on the loop holds up every rollout."""

    accept_timeout: float | None = None
    """Seconds ``should_accept_fn`` may take; None: no limit but the episode's."""

    dump_dir: str | os.PathLike[str] | None = None
    """Where delivered trajectories are written, ``<version>.jsonl``; None: nowhere."""

    journal_dir: str | os.PathLike[str] | None = None
    """Where items and trajectories of `prepare_batch` are kept, so that a killed run goes on where it had got
    to; see the module `journal`. None: nowhere. Each process needs a directory of its own."""

    progress: bool | None = None
    """Whether a bar on stderr shows how rollouts get on; where that is no terminal, a line every ten seconds.
    None: where it is one."""

    status_file: str | os.PathLike[str] | bool = False
    """Where it is written once a second how things stand, for ``python -m areal_core.top`` and others who
    look from outside; each executor needs a file of its own. True: a file in this user's runtime directory.
    False: nowhere."""

    enable_rollout_tracing: bool = False
    """Whether each rollout's start and end is logged, as a debug event."""

    loop_block_warning: float | None = 0.25
    """Seconds that user code may block the loop before its function is named in the log; those that block it
    for less are named when they are so many that it is late for most of ten seconds. None: never."""

    stuck_warning: float | None = 300.0
    """Seconds without the end of any rollout, though some run or wait to start, before the log says where
    each of them is and why no more start; again after twice as long each time. None: never."""

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

    stream_replies: bool = True
    """Whether tokens are fetched as they come. False asks for whole replies: that costs servers and this
    process less for each token, but what a server made before it died or hung up is generated again."""

    max_reply_bytes: int = 256 * 2**20
    """The most bytes a reply, or one event of a stream, may unpack to. A token with its log-probability
    takes about 45."""

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check_integer(name, value, least=least))
        for name in _SECONDS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check_seconds(name, value))
        for name in ("straggler_wait", "cancel_grace"):
            object.__setattr__(self, name, _check_wait(name, getattr(self, name)))
        for name in ("check_trajectory_format", "enable_rollout_tracing", "stream_replies"):
            check_flag(name, getattr(self, name))
        if self.progress is not None:
            check_flag("progress", self.progress)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        self._check_texts()

    def _check_texts(self) -> None:
        if self.journal_dir is not None and not os.fspath(self.journal_dir):
            raise ValueError("journal_dir='' names no directory; give a path, or None")
        if not isinstance(self.status_file, bool | str | os.PathLike):
            raise TypeError(f"status_file={self.status_file!r} is no path; give one, or True or False")
        if self.status_file == "":
            raise ValueError("status_file='' names no file; give a path, or True")
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
    "queue_size": 1,
    "max_requeues": 0,
    "max_consecutive_failures": 1,
    "max_consecutive_unaccepted": 1,
    "max_reply_bytes": 1,
}
_SECONDS = (
    "request_timeout",
    "setup_timeout",
    "control_timeout",
    "silence_timeout",
    "episode_timeout",
    "stall_timeout",
    "accept_timeout",
    "loop_block_warning",
    "stuck_warning",
)
_OPTIONAL = (
    "max_concurrent_rollouts",
    "max_inflight_per_server",
    "queue_size",
    "max_consecutive_failures",
    "max_consecutive_unaccepted",
    "episode_timeout",
    "accept_timeout",
    "loop_block_warning",
    "stuck_warning",
)
_CHOICES = {
    "on_stale": ("mask", "drop", "requeue", "keep"),
    "on_member_failure": ("cancel", "keep_rest"),
    "accept_in": ("loop", "thread", "process"),
}


def _check_wait(name: str, value: object) -> float:
    """Return *value* as seconds. 0 and infinity are as good as any."""
    return math.inf if value == math.inf else check_number(name, value, least=0.0)


def _keys(keys: object) -> dict[str, str]:
    """Return a copy of API keys by address. Raises TypeError, which shows none of them."""
    if not isinstance(keys, Mapping):
        raise TypeError(f"api_key is a {type(keys).__name__}; give a text, or one per address")
    for address, key in keys.items():
        if not isinstance(address, str) or not isinstance(key, str):
            kinds = f"{type(key).__name__} for a {type(address).__name__}"
            raise TypeError(f"api_key has a {kinds}; give a text per address")
    return dict(keys)
