"""What is simulated: a run, the machines it has, and what the code costs there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from areal_core._checks import check_integer, check_number, check_seconds
from areal_core._field_docs import documented
from areal_core.config import InferenceEngineConfig


@documented
@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the code costs, in seconds of processor time unless another unit is said.

    The defaults were measured once, on two shared cores that were both busy, with CPython 3.11 and uvloop;
    `calibrate` measures all but what Ray takes.
    """

    driver_rollout_s: float = 8e-6
    """The trainer's thread, for a rollout: to make it of an item, and to hand over what came of it."""

    driver_episode_s: float = 50e-6
    """The driver's loop, for an episode: half when it is sent to a worker, half when it has come back."""

    driver_exchange_s: float = 120e-6
    """The driver's loop, for an exchange with a worker: half for what is sent, half for what comes."""

    driver_stage_s: float = 1e-6
    """The driver's loop, for news of what an episode is doing."""

    driver_worker_s: float = 0.3e-6
    """The driver's loop, for each worker, whenever something waits for room at one of them."""

    worker_episode_s: float = 70e-6
    """A worker's loop, for an episode beside its tokens."""

    worker_pause_s: float = 70e-6
    """A worker's loop, for a pause of an episode: the timer, and others have had the processor's caches."""

    worker_exchange_s: float = 130e-6
    """A worker, for an exchange with the driver."""

    worker_request_s: float = 260e-6
    """A worker's loop, for a request for tokens."""

    worker_token_s: float = 40e-6
    """A worker's loop, for a token that comes by itself, as they do where replies are streamed."""

    ray_driver_s: float = 1.2e-3
    """What Ray takes of the driver for an exchange."""

    ray_worker_s: float = 1.2e-3
    """What Ray takes of a worker for an exchange."""

    transport_s: float = 0.2e-3
    """From driver to worker or back, as time that passes."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, check_number(name, getattr(self, name), least=0.0))


@documented
@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run to be simulated. Times are seconds of its clock. Raises TypeError and ValueError.

    Of *config* these count: ``consumer_batch_size``, ``max_concurrent_rollouts``,
    ``max_head_offpolicyness``, ``queue_size``, ``on_stale``, ``max_requeues``, ``straggler_wait``,
    ``on_member_failure`` and ``max_inflight_per_server``.
    """

    config: InferenceEngineConfig = field(
        default_factory=lambda: InferenceEngineConfig(consumer_batch_size=256, max_head_offpolicyness=2)
    )
    """That of the executor."""

    workers: int = 2

    slots_per_worker: int | None = None
    """How many episodes run at once at a worker; None: all of the configured concurrency have room."""

    servers: int = 0
    """How many inference servers there are; 0: there are tokens for all, and nobody chooses."""

    servers_per_worker: int | None = None
    """How many of them a worker's engine knows, each worker others; None: all."""

    token_s: float = 0.016
    """What a token takes of a request that is alone at its server."""

    server_tokens_per_s: float | None = None
    """The most tokens of a server, for all its requests: each more makes all of them slower; None: no limit,
    and none is slowed down."""

    server_slots: int | None = None
    """How many requests a server works on at once, while others wait there; None: no limit."""

    request_s: float = 0.0
    """What a request takes beside its tokens, such as its prompt."""

    tokens: float = 512.0
    """How many an episode samples, on average; 0: it asks no server."""

    tokens_sigma: float = 0.8
    """Of the lognormal that is drawn from for each; 0: all have as many."""

    tokens_most: int | None = None
    """Where replies are cut, which makes the average less; None: nowhere."""

    pace_sigma: float = 0.0
    """Of the lognormal of median 1 that the pace of each request is drawn from. 0.8 is the embedded
    server's."""

    pace_cap: float = 8.0
    """The slowest takes this many times as long."""

    turns: int = 1
    """How many requests an episode makes of its tokens, one after the other."""

    tool_s: float = 0.0
    """What an episode takes beside its requests, on average: tools, its reward."""

    tool_sigma: float = 0.0
    """Of the lognormal of that."""

    compute_s: float = 0.0
    """What an episode computes on its worker's loop, which does nothing else meanwhile."""

    group_size: int = 1
    """How many episodes are one rollout."""

    rejected: float = 0.0
    """The share of episodes whose workflow says no, of groups that of members."""

    failed: float = 0.0
    """The share of episodes that raise, at their ends."""

    train_s: float = 10.0
    """What the trainer takes for a batch, while rollouts go on."""

    update_s: float = 1.0
    """What it takes after that to give servers the new weights, while nothing is generated; what is under way
    goes on with them. 0: the version rises, and replies under way keep that at which they were asked for."""

    worker_mtbf_s: float | None = None
    """How long a worker lives, on average; None: for ever."""

    worker_deaths_s: tuple[float, ...] = ()
    """When one of the workers dies beside that, the longest-lived first."""

    worker_death_seen_s: float = 0.2
    """How long it takes until the driver knows."""

    worker_start_s: float = 5.0
    """How long the next one takes to start."""

    server_mtbf_s: float | None = None
    """How long a server lives, on average; None: for ever."""

    server_start_s: float = 60.0
    """How long it takes until it is back."""

    warm_up_s: float = 120.0
    """How long it runs before anything is measured."""

    measured_s: float = 600.0
    """How long it runs then."""

    seed: int = 0
    """Of all that is drawn."""

    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        if not isinstance(self.config, InferenceEngineConfig):
            raise TypeError(f"config is a {type(self.config).__name__}; give an InferenceEngineConfig")
        if not isinstance(self.costs, Costs):
            raise TypeError(f"costs is a {type(self.costs).__name__}; give Costs")
        for name, least in _INTEGERS.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check_integer(name, getattr(self, name), least=least))
        for name, (least_s, most) in _NUMBERS.items():
            object.__setattr__(self, name, check_number(name, getattr(self, name), least=least_s, most=most))
        for name in _SECONDS:
            if getattr(self, name) is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check_seconds(name, getattr(self, name)))
        deaths = (check_number("worker_deaths_s", one, least=0.0) for one in self.worker_deaths_s)
        object.__setattr__(self, "worker_deaths_s", tuple(sorted(deaths)))
        self._check_together()

    def _check_together(self) -> None:
        if self.rejected + self.failed >= 1.0:
            raise ValueError(
                f"rejected={self.rejected} and failed={self.failed} leave nothing to train on; give shares "
                "whose sum is below 1"
            )
        if self.servers == 0 and (self.server_tokens_per_s or self.server_slots or self.server_mtbf_s):
            raise ValueError(
                "servers=0 has tokens for all; give the number of servers that server_tokens_per_s, "
                "server_slots or server_mtbf_s speak of"
            )

    @property
    def slots(self) -> int:
        """How many episodes run at once at a worker."""
        return self.slots_per_worker or -(-self.config.concurrency // self.workers)

    def scaled(self, workers: int) -> Scenario:
        """Return the same with *workers* instead, and servers, batch and concurrency in proportion."""
        config, ratio = self.config, check_integer("workers", workers, least=1) / self.workers
        most = config.max_concurrent_rollouts
        return replace(
            self,
            workers=workers,
            slots_per_worker=self.slots,
            servers=_scaled(self.servers, ratio) if self.servers else 0,
            config=replace(
                config,
                consumer_batch_size=_scaled(config.consumer_batch_size, ratio),
                max_concurrent_rollouts=None if most is None else _scaled(most, ratio),
            ),
        )


def _scaled(count: int, ratio: float) -> int:
    return max(1, round(count * ratio))


_INTEGERS = {
    "workers": 1,
    "slots_per_worker": 1,
    "servers": 0,
    "servers_per_worker": 1,
    "server_slots": 1,
    "tokens_most": 1,
    "turns": 1,
    "group_size": 1,
    "seed": 0,
}
_NUMBERS = {
    "request_s": (0.0, 1e9),
    "tokens": (0.0, 1e9),
    "tokens_sigma": (0.0, 10.0),
    "pace_sigma": (0.0, 10.0),
    "tool_s": (0.0, 1e9),
    "tool_sigma": (0.0, 10.0),
    "compute_s": (0.0, 1e9),
    "rejected": (0.0, 1.0),
    "failed": (0.0, 1.0),
    "train_s": (0.0, 1e9),
    "update_s": (0.0, 1e9),
    "worker_death_seen_s": (0.0, 1e9),
    "worker_start_s": (0.0, 1e9),
    "server_start_s": (0.0, 1e9),
    "warm_up_s": (0.0, 1e9),
}
_SECONDS = ("token_s", "server_tokens_per_s", "pace_cap", "worker_mtbf_s", "server_mtbf_s", "measured_s")
_OPTIONAL = (
    "slots_per_worker",
    "servers_per_worker",
    "server_slots",
    "tokens_most",
    "server_tokens_per_s",
    "worker_mtbf_s",
    "server_mtbf_s",
)
