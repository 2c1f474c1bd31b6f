"""Makes the spans of an episode from what was noted while it ran. Needs the extra ``otel``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from areal_core import _record
from areal_core._engine.wire.address import Address
from areal_core._observe.spans import Spans

NOTE = 5
"""How many values a note has: when it was, in ns; the task that did it; a stage, or what became of a request
for tokens; the server of the stage, the policy version or how many tokens came; what was current."""

SENT, CAME = "sent", "came"

_SHORT_NS = 10_000_000
"""What is shorter makes no span."""

_PHASES = ("accept", "join", "pack")
"""What an episode goes through one after the other, in the task that plays it, when it has played."""

_NAMES = {one: one for one in ("queue", "reward", *_PHASES)} | {_record.GENERATING: "generate"}
"""Of spans, by stage; all else is a wait."""

_WAITS: dict[str, dict[str, AttributeValue]] = {
    stage: {"areal.wait.for": stage} for stage in _record.STAGES if stage not in _NAMES
}


class _Part:
    """What an episode, or one of its tasks, does for a while."""

    __slots__ = ("name", "server", "since", "tokens", "version")

    def __init__(self, name: str, since: int, server: str | None = None) -> None:
        self.name = name
        self.since = since
        self.server = server
        """Which one generates; None: none does."""
        self.version: int | None = None
        self.tokens: int | None = None


class Story:
    """How far the spans of one episode have been made."""

    __slots__ = ("context", "parts", "phase", "queued")

    def __init__(self, context: Context, queued: int, has_queued: bool) -> None:
        self.context = context
        """In which its own span is current."""
        self.queued: int | None = queued if has_queued else None
        """Since when it was in the queue; None: its span has been made, or there is none."""
        self.parts: dict[object, _Part] = {}
        """What its tasks do, by task: it may generate several replies at once."""
        self.phase: _Part | None = None


class Teller:
    """Makes spans for one tracer. Raises what that raises."""

    def __init__(self, tracer: Tracer, model: str | None) -> None:
        self.spans = Spans(tracer)
        self._asked: dict[str, AttributeValue] = {"gen_ai.operation.name": "text_completion"}
        if model is not None:
            self._asked["gen_ai.request.model"] = model

    def tell(self, story: Story, notes: Sequence[Any]) -> None:
        """Make the spans of what has ended by the last of *notes*, each of `NOTE` values one after the other.

        They go on where those of the last call ended.
        """
        for now, task, what, value, where in zip(*[iter(notes)] * NOTE, strict=True):
            if what == SENT:
                if task in story.parts:
                    story.parts[task].version = value
            elif what == CAME:
                if task in story.parts:
                    part = story.parts.pop(task)
                    part.tokens = value
                    self._show(part, now, where)
            elif what == _record.ENDED:
                self._end_phase(story, now)
            else:
                self._enter(story, now, task, _record.short_name(what, value), value, where)

    def _enter(
        self, story: Story, now: int, task: object, name: str, server: str | None, where: Context
    ) -> None:
        if story.queued is not None:
            queue, story.queued = _Part("queue", story.queued), None
            self._show(queue, now, story.context)
        part = story.parts.pop(task, None)
        if part is not None:
            self._show(part, now, where)
        if name in _PHASES:
            self._end_phase(story, now)
            story.phase = _Part(name, now)
        elif name != "playing":
            story.parts[task] = _Part(name, now, server)

    def _end_phase(self, story: Story, now: int) -> None:
        """End what the tasks of the episode still did when they were left, and its phase."""
        while story.parts:
            self._show(story.parts.popitem()[1], now, story.context)
        phase, story.phase = story.phase, None
        if phase is not None:
            self._show(phase, now, story.context)

    def _show(self, part: _Part, now: int, where: Context) -> None:
        """Make the span of what ended *now*; what is current *where* it was done is its parent."""
        kind, attributes = SpanKind.INTERNAL, _WAITS.get(part.name)
        if part.server is not None:
            kind, attributes = SpanKind.CLIENT, self._of_request(part, part.server)
        elif now - part.since < _SHORT_NS:
            return
        self.spans.add(_NAMES.get(part.name, "wait"), where, kind, attributes, part.since, now)

    def _of_request(self, part: _Part, server: str) -> dict[str, AttributeValue]:
        attributes = {**self._asked, **address_of(server)}
        if part.version is not None:
            attributes["areal.policy.version"] = part.version
        if part.tokens is not None:
            attributes["gen_ai.usage.output_tokens"] = part.tokens
        return attributes


@functools.lru_cache(maxsize=1000)
def address_of(server: str) -> dict[str, AttributeValue]:
    """Return the attributes of a server that together tell it from others."""
    try:
        at = Address.parse(server)
    except ValueError:  # what an engine of somebody's own calls it
        return {"server.address": server}
    path = {"url.path": at.path} if at.path else {}
    return {"server.address": at.host, "server.port": at.port, **path}
