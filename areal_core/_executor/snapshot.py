"""What an executor is doing at one moment: `Snapshot`, which goes through JSON unharmed."""

from __future__ import annotations

from typing import Literal

import msgspec

from areal_core._engine.stats import EngineStats, ServerStats
from areal_core._executor.books import RolloutLedger
from areal_core._executor.report import StalenessReport
from areal_core._offload.stats import OffloadStats

SCHEMA = 1
"""Of the JSON. One that is greater may mean what this version does not know."""

AGES_S = (1.0, 10.0, 60.0, 300.0, 1800.0)
"""The bounds between the classes of `Snapshot.ages`, in seconds."""


class Reason(msgspec.Struct, frozen=True):
    """One reason why no more rollouts start."""

    kind: str
    text: str


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller waits for, as `Snapshot.callers` says it in words."""

    want: Literal["batch", "claimed", "any"]
    """``prepare_batch``; rollouts by their ids, as ``rollout_batch`` does; or any that end."""
    is_eval: bool
    count: int
    there: int
    """How many of the *count* are there."""
    is_held: bool
    """Whether all are there, and are held back for stragglers."""


class Straggler(msgspec.Struct, frozen=True, kw_only=True):
    """One of the rollouts that have run for longest."""

    task_id: int
    data_id: int | float | bool | str | None
    """What names its item of data, a long text shortened; None: nothing does."""
    workflow: str
    is_eval: bool
    age_s: float
    stage: str
    """What it does, or waits for: see `Explanation`."""
    stage_s: float
    server: str | None
    segments: int
    """Requests for tokens it has sent."""


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal is doing."""

    step: int | None
    """The last one that was committed; None: none was."""
    waiting_bytes: int
    left_out: int
    failed: int
    """Attempts to write that failed."""


class LoopBlame(msgspec.Struct, frozen=True, kw_only=True):
    """The function of the user's that was last found to keep the loop late."""

    function: str
    """Module and qualified name."""
    where: str
    """File and line."""
    seconds: float
    """How late the loop came for it, at worst."""
    share: float
    """Of the time in which the loop was late: how much of it the function was seen in, 0 to 1."""
    ago_s: float
    """Since it was last seen."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; its ``str`` is for people.

    Counters count from the beginning of the executor object; times are in seconds.
    """

    schema: int = SCHEMA
    taken_at: float
    """Unix time."""
    pid: int
    program: str
    """What was run, as ``sys.argv[0]`` says: a file's name, or a package's."""
    uptime_s: float
    """Since ``initialize``."""
    has_ended: bool
    training: RolloutLedger
    evaluation: RolloutLedger
    version: int
    """The policy version."""
    is_paused: bool
    reasons: tuple[Reason, ...]
    """Why no more rollouts start; empty: what is pending starts in a moment."""
    samples: int
    """Samples of training that run: members of groups count each."""
    most_samples: int | None
    """How many may; None: the staleness budget alone decides."""
    units_running: int
    units_waiting: int
    units_consumed: int
    most_units: int
    """The staleness budget of one version, of which the three before are in use."""
    callers: tuple[str, ...]
    """Who waits for what."""
    waits: tuple[Wait, ...] = ()
    """The same in numbers, in the same order."""
    batch: int = 0
    """How many trajectories the trainer takes per step, ``consumer_batch_size``."""
    max_staleness: int = 0
    """How stale a token that is trained on may be, ``max_head_offpolicyness``."""
    stages: dict[str, int]
    """How many rollouts are in which stage; servers are not told apart."""
    ages: dict[str, tuple[int, ...]] = {}
    """The same by age: how many of a stage are younger than each of `AGES_S`, and older than all."""
    lags: dict[int, int] = {}
    """How many rollouts of training run that started at so many versions before this one."""
    age_p50_s: float | None
    """The median age of the rollouts that run; None: none does."""
    age_max_s: float | None
    stragglers: tuple[Straggler, ...]
    """The oldest first."""
    since_end_s: float
    """Since a rollout ended, or since there are any; 0: there are none."""
    offloaded: tuple[OffloadStats, ...] = ()
    """Calls of offloaded functions, in threads and in processes: how many are made, and how many wait."""
    loop_lag_s: float | None
    """The greatest delay of a callback on the loop lately; None: nobody watches, or nothing runs."""
    loop_blame: LoopBlame | None = None
    """Who kept the loop late in the last minute, the last one; None: nobody that is known."""
    staleness: StalenessReport
    engine: EngineStats | None
    """None: it does not say."""
    journal: Journal | None

    def __str__(self) -> str:
        from areal_core._executor.wording import in_words  # not before somebody asks

        return in_words(self)

    @property
    def servers(self) -> tuple[ServerStats, ...]:
        """Return the inference servers; none, where the engine does not say."""
        return () if self.engine is None else self.engine.servers


def encode(snapshot: Snapshot) -> bytes:
    """Return *snapshot* as JSON."""
    return msgspec.json.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """Return what `encode` was given. Raises ValueError for anything else, and for a later schema."""
    head = msgspec.json.decode(data, type=_Head)
    if head.schema > SCHEMA:
        raise ValueError(f"schema {head.schema} is later than {SCHEMA}; use the areal_core that wrote it")
    return msgspec.json.decode(data, type=Snapshot)


class _Head(msgspec.Struct, frozen=True):
    schema: int
