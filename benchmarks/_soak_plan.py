"""What a soak run does, and when: all of it follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from areal_core.embedded._fault_script import FAULT_NAMES

SERVERS = 3

OnStale = Literal["mask", "requeue", "drop"]
_Pack = tuple[Sequence[str], Sequence[str]]  # kinds of faults, and the same in the server's words
_ON_STALE: Sequence[OnStale] = ("mask", "requeue", "drop")

_FIRST_LOOK = 0.25  # of the time: when the trainer is measured for the first time

FAULTS = {
    "latency": "latency=20,distribution=lognormal,next=20",
    "status_400": "status=400,next=1",
    "status_429": "status=429,next=2",
    "status_500": "status=500,next=2",
    "status_503": "status=503,retry_after=1,next=2",
    "abort": "abort=3,next=4",
    "disconnect": "disconnect=300,next=2",
    "idle": "idle=0,next=4",
    "race": "race,next=2",
    "oversized": "oversized=4000000,next=1",
    "oversized_gzip": "oversized=40000000,gzip,next=1",
    "redirect": "redirect=http://127.0.0.1:9,next=1",
    "silent": "silent,next=1",
    "drip": "drip=20,next=1",
} | {name: f"malformed={name[10:]},next=1" for name in sorted(FAULT_NAMES) if name.startswith("malformed_")}
"""How each kind of fault is ordered, by the name the server counts it under. Of status codes there are
hundreds; these are the four that are treated differently."""

_AT_CONTROL_CALLS = (
    ("status_500", "status=500,path=/update_weights_from_disk,next=1"),
    ("disconnect", "disconnect,path=/update_weights_from_disk,next=1"),
    ("disconnect", "disconnect,reset,path=/pause_generation,next=1"),
    ("status_503", "status=503,path=/continue_generation,next=1"),
    ("status_500", "status=500,path=/abort_request,next=1"),
    ("latency", "latency=30,path=*,next=60"),
)

ACTS = (
    *("batches",) * 6,
    *("slow consumer", "submits", "waits", "waits too short", "waits for one", "rows"),
    *("evaluation", "rows of evaluation", "cancels", "pause storm", "engine's pause storm"),
    *("aborts", "weights that are not there"),
)
"""One deck of what the trainer does; a deck is shuffled anew each time."""


@dataclass(frozen=True)
class Step:
    """One thing that is done to a server, *at* so many seconds or once the step before is over."""

    at: float
    kinds: Sequence[str] = ()
    """The faults to turn on, by their names; the next step waits until each has struck."""
    faults: Sequence[str] = ()
    """The same in the server's words."""
    down_s: float | None = None
    """Kill it, and start it again after so long; None: leave it alive."""


@dataclass(frozen=True)
class Interrupt:
    """So many SIGINTs in a row, *at* so many seconds."""

    at: float
    signals: int


class Telling(NamedTuple):
    """How a server tells of its tokens: two options of it."""

    weight_version_spans: bool
    incremental_streaming_output: bool


@dataclass(frozen=True)
class Plan:
    """All of a run. Times are in seconds from when the trainer is ready."""

    seed: int
    seconds: float
    on_stale: OnStale
    """One of those under which the bound holds."""
    telling: Sequence[Telling]
    """How each server tells of its tokens."""
    steps: Sequence[Sequence[Step]]
    """For each server."""
    interrupts: Sequence[Interrupt]
    restarts: Sequence[float]
    """When the executor is stopped and started; at the first of them it is measured."""

    def acts(self) -> Iterator[str]:
        """Yield what the trainer does, one after another, without an end."""
        dice = random.Random(f"{self.seed}/acts")
        while True:
            yield from dice.sample(ACTS, len(ACTS))

    def lines(self) -> Iterator[str]:
        """Yield the plan as text."""
        yield f"seed {self.seed}, {self.seconds:g} s, on_stale={self.on_stale}"
        for number, steps in enumerate(self.steps):
            yield f"server {number}: {self.telling[number]}"
            for step in steps:
                what = f"SIGKILL, down for {step.down_s:.2f} s" if step.down_s else "  ".join(step.faults)
                yield f"  {step.at:7.2f}  {what}"
        yield "Ctrl-C: " + " ".join(
            f"{one.at:.2f}{'' if one.signals == 1 else f' (x{one.signals})'}" for one in self.interrupts
        )
        yield "executor stopped and started: " + " ".join(f"{at:.2f}" for at in self.restarts)
        yield "the trainer, at first: " + ", ".join(islice(self.acts(), 2 * len(ACTS)))


def make_plan(seed: int, minutes: float) -> Plan:
    """Make the plan of *seed*: every kind of fault and a kill of each server are in it, however short."""
    seconds, dice = minutes * 60, random.Random(f"{seed}/plan")
    return Plan(
        seed=seed,
        seconds=seconds,
        on_stale=_ON_STALE[seed % len(_ON_STALE)],
        telling=[Telling(dice.random() < 0.5, dice.random() < 0.5) for _ in range(SERVERS)],
        steps=_steps(dice, seconds),
        interrupts=_interrupts(dice, seconds),
        restarts=_restarts(dice, seconds),
    )


def _steps(dice: random.Random, seconds: float) -> Sequence[Sequence[Step]]:
    pace = 0.8 if seconds < 60 else 2.0
    clocks = [0.5] * SERVERS
    steps: list[list[Step]] = [[] for _ in range(SERVERS)]
    is_first = True
    while is_first or min(clocks) < 0.85 * seconds:
        for packs in _dealt(dice):
            where = min(range(SERVERS), key=clocks.__getitem__)
            for kinds, faults in packs:
                steps[where].append(Step(round(clocks[where], 2), kinds, faults))
                clocks[where] += pace * dice.uniform(0.5, 1.5)
            down_s = round(dice.uniform(0.1, 2.0), 2)
            steps[where].append(Step(round(clocks[where], 2), down_s=down_s))
            clocks[where] += down_s + pace * dice.uniform(0.5, 1.5)
        is_first = False
    return steps


def _dealt(dice: random.Random) -> list[list[_Pack]]:
    """Deal all faults to the servers, in packs that are turned on together."""
    deck = [*FAULTS.items(), *_AT_CONTROL_CALLS]
    dice.shuffle(deck)
    # What never answers comes first: it takes a generation's whole patience, and the rest goes on meanwhile.
    deck.sort(key=lambda fault: fault[0] not in ("silent", "drip"))
    hands: list[list[_Pack]] = []
    for number in range(SERVERS):
        hand, packs = deck[number::SERVERS], list[_Pack]()
        while hand:
            size = dice.randint(2, 4)
            pack, hand = hand[:size], hand[size:]
            packs.append(([kind for kind, _ in pack], [text for _, text in pack]))
        hands.append(packs)
    return hands


def _interrupts(dice: random.Random, seconds: float) -> Sequence[Interrupt]:
    mean_s = 0.5 if seconds < 60 else 1.0
    times, at = [], 1.0
    while at < 0.95 * seconds:
        times.append(Interrupt(round(at, 2), dice.choice((1, 1, 1, 2, 5))))
        at += min(3 * mean_s, dice.expovariate(1 / mean_s))
    return times


def _restarts(dice: random.Random, seconds: float) -> Sequence[float]:
    count = max(2, int(seconds // 25))
    first = _FIRST_LOOK * seconds
    return [round(first, 2), *sorted(round(dice.uniform(first, 0.95 * seconds), 2) for _ in range(count))]
