"""What journals are told in tests, and what they have to say then: `Model`, and plans that suit it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from areal_core._journal.records import (
    Committed,
    Delivered,
    Ended,
    Queued,
    Record,
    Recovered,
    Reopened,
    Returned,
)

_KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Queued, Ended, Reopened, Delivered, Returned, Committed)
}


class State(NamedTuple):
    """What a restart has to find."""

    done: frozenset[str]
    finished: tuple[tuple[str, bytes | None, bytes, bool], ...]
    pending: tuple[tuple[str, bytes | None], ...]


@dataclass
class Model:
    """The rules of the journal, over everything that ever happened: nothing is compacted here."""

    last_run: int = 0
    """How many events there were at the last restart."""
    time: int = 0
    queued: dict[str, int] = field(default_factory=dict)
    data: dict[str, bytes | None] = field(default_factory=dict)
    results: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)
    delivered: dict[str, int] = field(default_factory=dict)
    order: dict[str, tuple[int, int]] = field(default_factory=dict)
    commits: dict[int, int] = field(default_factory=dict)

    def tell(self, record: Record) -> None:
        self.time += 1
        match record:
            case Queued(key, _, data):
                self.queued.setdefault(key, self.time)
                if self.data.get(key) is None:
                    self.data[key] = data
            case Ended(key, "accepted", result):
                if result is not None:
                    self.results[key] = self.time, result
            case Ended(key, "failed" | "timed_out"):
                self.failed[key] = self.time
            case Ended(key, _, _):
                self.settled.add(key)
            case Reopened(key):
                self.results.pop(key, None)
                self.order.pop(key, None)
            case Delivered(keys) | Returned(keys):
                self._pass_on(keys, is_delivered=isinstance(record, Delivered))
            case Committed(step):
                self.commits = dict([*self.commits.items(), (step, self.time)][-2:])

    def _pass_on(self, keys: Iterable[str], *, is_delivered: bool) -> None:
        for place, key in enumerate(keys):
            self.order[key] = self.time, place
            if is_delivered:
                self.delivered[key] = self.time
            else:
                del self.delivered[key]

    def tell_all(self, records: Iterable[Record]) -> Model:
        for record in records:
            self.tell(record)
        return self

    def resume(self, step: int) -> None:
        """Give up what happened to the trainer after *step*, and what failed."""
        then = self.commits[step]
        self.commits = {one: time for one, time in self.commits.items() if one <= step}
        self.delivered = {key: time for key, time in self.delivered.items() if time <= then}
        self.failed = {key: time for key, time in self.failed.items() if time <= then}

    def steps(self) -> list[int]:
        return sorted(self.commits)

    def state(self, step: int) -> State:
        then = self.commits[step]
        counted = [*self.delivered.items(), *self.failed.items()]
        done = self.settled | {key for key, time in counted if time < then}
        known = [key for key in sorted(self.queued, key=self.queued.__getitem__) if key not in done]
        finished = sorted(
            (key for key in known if key in self.results),
            key=lambda key: (key not in self.order, self.order.get(key, (self.results[key][0], 0))),
        )
        return State(
            frozenset(done),
            tuple((key, self.data[key], self.results[key][1], key in self.order) for key in finished),
            tuple((key, self.data[key]) for key in known if key not in self.results),
        )


def state_of(recovered: Recovered) -> State:
    """Return what was found, as the model says it."""
    return State(
        frozenset(recovered.done),
        tuple((one.key, one.data, one.result, one.delivered) for one in recovered.finished),
        tuple((one.key, one.data) for one in recovered.pending),
    )


def plan(model: Model, seed: int, count: int, *, largest: int = 9_000) -> list[Record]:
    """Return *count* records that may happen after what *model* was told, which it then is told too."""
    chance = random.Random(seed)
    planned: list[Record] = []
    for _ in range(count):
        record = _next(model, chance, largest)
        model.tell(record)
        planned.append(record)
    return planned


def save(records: Iterable[Record], path: Path) -> None:
    """Write *records* for a child to load."""
    path.write_bytes(msgspec.json.encode([(type(one).__name__, msgspec.to_builtins(one)) for one in records]))


def load(path: Path) -> list[Record]:
    """Return what was saved."""
    return [msgspec.convert(fields, _KINDS[kind]) for kind, fields in json.loads(path.read_text())]


def _next(model: Model, chance: random.Random, largest: int) -> Record:
    running, accepted = _running(model), _accepted(model)
    what = chance.random()
    if what < 0.06:
        return Committed(max(model.commits, default=-1) + 1)
    if what < 0.2 and accepted:
        return Delivered(tuple(chance.sample(accepted, min(len(accepted), chance.randint(1, 4)))))
    if what < 0.24 and accepted:
        return Reopened(chance.choice(accepted))
    if what < 0.28 and (uncommitted := _uncommitted(model)):
        return Returned(tuple(chance.sample(uncommitted, min(len(uncommitted), chance.randint(1, 3)))))
    if what < 0.6 and running:
        status = chance.choice(("accepted",) * 8 + ("rejected", "failed", "timed_out"))
        result = chance.randbytes(chance.randrange(largest)) if status == "accepted" else None
        return Ended(chance.choice(running), status, result)
    number = len(model.queued)
    odd = chance.choice("é:\0/%")
    name = str(number) if number % 3 else f"{number % 25} {odd} {number}"
    data = chance.randbytes(chance.randrange(50)) if chance.random() < 0.9 else None
    return Queued(f"{number // 25}:{name}", number // 25, data)


def _running(model: Model) -> list[str]:
    return [
        key
        for key in model.queued
        if all(key not in ended for ended in (model.settled, model.failed, model.results, model.delivered))
    ]


def _uncommitted(model: Model) -> list[str]:
    last = max(model.commits.values(), default=0)
    return [key for key, time in model.delivered.items() if time > last]


def _accepted(model: Model) -> list[str]:
    return [key for key in model.results if key not in model.delivered]
