"""What takes long: said only where the last seconds show it."""

from __future__ import annotations

from collections import Counter

from areal_core._observe.lately import Held
from areal_core._record import OTHER, short_name

HALF = 0.5
"""The share from which on something is most: of the time, of the rollouts."""

_LITTLE = 0.1
"""The share of the time that a trainer waits who is what takes long itself."""

_NAMES = {
    "generating": "generation",
    "playing": "the workflow's own code",
    "generation_paused": "the pause of generation",
    "waiting_for_server": "the wait for a server's slot",
    "waiting_for_worker": "the wait for a worker",
    "offloaded": "the function that was offloaded",
    "reward": "the reward function",
    "accept": "should_accept_fn",
    "waiting_for_slots": "the wait for slots for the rest of a group",
    "backing_off": "the wait to send failed requests again",
}

_LOOP = ": the loop is what takes long. While it is late, tokens/s a request are no measure of the servers"


def verdict(waits: float, held: Held) -> str:
    """Return what takes long, as the end of a sentence, when the trainer *waits* for this share of the time.

    "": nothing can be said.
    """
    if waits <= _LITTLE:
        return ": it is what takes long itself"
    if held.late >= HALF:
        return _LOOP
    return "" if waits < HALF else _by_stage(held)


def _by_stage(held: Held) -> str:
    """Say what most rollouts were at in the last seconds."""
    counts: Counter[str] = Counter()
    for stage, count in held.stages.items():
        name = short_name(stage)
        counts[stage if name == OTHER else name] += count  # type: ignore[assignment]
    total = sum(counts.values())
    if not total:
        return ""
    shown = [(name, count / total) for name, count in counts.most_common(2)]
    if shown[0][1] > HALF:
        ((name, share), *_) = shown
        return f": {_NAMES.get(name, name)} is what takes long ({100 * share:.0f} % of the rollouts)"
    both = " and ".join(f"{_NAMES.get(name, name)} ({100 * share:.0f} %)" for name, share in shown)
    return f": most of it is {both}"
