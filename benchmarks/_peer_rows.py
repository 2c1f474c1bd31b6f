"""The peers, side by side: what a task costs in a burst, one at a time, and one at a time among others."""

from __future__ import annotations

from collections.abc import Iterator

import _figures as figures
from _contenders import BARE_THREAD, OURS, RAW, Contender, areal_runner
from _peers import Jobs, Pool, Portal, RayActor, if_installed
from _scale import Scale, figure
from _table import MICROSECONDS, Absent, Reading, Row, part, ratio

THREADS = "futures"


def rows(scale: Scale, _url: str) -> Iterator[Row]:
    """Yield the row."""
    tasks, trips, parked = scale.of(2_000), scale.of(200), scale.of(1_000)
    measured: dict[str, Contender | Absent] = {
        "raw": RAW,
        "ours": OURS,
        "areal": areal_runner(),
        "threadsafe": BARE_THREAD,
        "anyio": if_installed("anyio", Portal),
        THREADS: Pool(),
        "aiojobs": if_installed("aiojobs", Jobs),
        "ray": if_installed("ray", RayActor),
    }
    yield Row(
        "peers",
        f"a task in a burst of {tasks:,}, one at a time, and one at a time among {parked:,}",
        {
            # A thread for each that waits: nobody parks a thousand.
            name: figure(figures.peer, contender, tasks, trips, 0 if name == THREADS else parked)
            for name, contender in measured.items()
        },
        tuple(_readings([name for name in measured if name != "raw"])),
        MICROSECONDS,
        seldom=frozenset(("ray",)),  # seconds to start
    )


def _readings(names: list[str]) -> Iterator[Reading]:
    for name in names:
        yield ratio(name, "raw", of="burst", label=f"{name} / raw, in a burst")
    for name in names:
        if name != "threadsafe":
            yield ratio(name, "threadsafe", of="trip", label=f"{name} / threadsafe, one at a time")
    for name in names:
        if name != THREADS:
            among, alone = part(name, "among"), part(name, "trip")
            yield ratio(among, alone, label=f"{name}, among others / alone")
