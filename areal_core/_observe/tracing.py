"""The spans of an episode. Needs the extra ``otel``.

::

    episode            from its submit to its end; what is current in it: spans of user code are its children
      queue              until it started
      wait               for a server, a pause or a back-off
      generate           one request for tokens; a child of what is current where it is asked for
      reward             for a reward
      accept             should_accept_fn decides
      pack               its trajectory is made ready for the journal
    group              what joins and judges the members of a group; it has links to their spans
      join, accept, pack

Of the workflow there is no span: it plays while nothing else is shown. Nor is there one of what took less
than 10 milliseconds, but for requests: to make one takes 20 microseconds.

Nothing here may harm an episode: a provider that raises costs its spans, and is told of once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from areal_core import _record
from areal_core._executor.explaining import short_name as short_data_id
from areal_core._log import describe, get_logger
from areal_core._observe.figures import KINDS

if TYPE_CHECKING:
    from areal_core._executor.outcome import Status
    from areal_core._executor.rollout import Episode, Rollout

_SHORT_NS = 10_000_000
"""What is shorter makes no span."""

_PHASES = ("accept", "join", "pack")
"""What an episode goes through one after the other, in the task that plays it, when it has played."""

_NAMES = {one: one for one in ("queue", "reward", *_PHASES)} | {_record.GENERATING: "generate"}
"""Of spans, by stage; all else is a wait."""

_WAITS: dict[str, dict[str, AttributeValue]] = {
    stage: {"areal.wait.for": stage} for stage in _record.STAGES if stage not in _NAMES
}


class Tracing:
    """Follows the episodes of one executor. The thread that owns its core calls all of it."""

    def __init__(self, tracer: Tracer, name: str, model: str | None) -> None:
        self.tracer = tracer
        self.name = name
        self._queued: dict[int, int] = {}  # since when the rollouts wait that have not ended, in ns
        self.members: dict[int, list[Link]] = {}
        """The spans of members that have ended, by their group, for the one that judges it."""
        self._has_failed = False
        self._asked: dict[str, AttributeValue] = {"gen_ai.operation.name": "text_completion"}
        if model is not None:
            self._asked["gen_ai.request.model"] = model

    def enqueued(self, rollout: Rollout) -> None:
        """Note since when *rollout* waits."""
        self._queued[rollout.task_id] = time.time_ns()

    def ended(self, rollout: Rollout) -> None:
        """Forget it."""
        self._queued.pop(rollout.task_id, None)
        self.members.pop(rollout.task_id, None)

    def starting(self, episode: Episode) -> None:
        """Follow *episode* from here on."""
        now = time.time_ns()
        queued = now if episode.is_judge else self._queued.get(episode.rollout.task_id, now)
        episode.record.trace = _EpisodeTrace(self, episode, queued)

    def of_request(self, part: _Part) -> dict[str, AttributeValue]:
        """Return the attributes of a request for tokens."""
        attributes = {**self._asked, **address_of(part.server or "")}
        if part.version is not None:
            attributes["areal.policy.version"] = part.version
        if part.tokens is not None:
            attributes["gen_ai.usage.output_tokens"] = part.tokens
        return attributes

    def failed(self, error: Exception) -> None:
        """Tell of an error of the provider's, once."""
        if not self._has_failed:
            self._has_failed = True
            get_logger().warning("tracing_failed", error=describe(error), exc_info=error)


class _Part:
    """What an episode, or one of its tasks, does for a while. Its span is made at its end."""

    __slots__ = ("context", "name", "server", "since", "tokens", "version")

    def __init__(self, name: str, since: int, where: context.Context, server: str | None = None) -> None:
        self.name = name
        self.since = since
        self.context = where
        """Whose current span is the parent: one of user code's, or the episode's."""
        self.server = server
        """Which one generates; None: none does."""
        self.version: int | None = None
        self.tokens: int | None = None


class _EpisodeTrace:
    """The spans of one episode, or of the judge of a group. None of the methods that are called raises."""

    __slots__ = ("_context", "_episode", "_parts", "_phase", "_queued", "_span", "_tracing")

    def __init__(self, tracing: Tracing, episode: Episode, queued: int) -> None:
        self._tracing = tracing
        self._episode = episode
        self._queued = queued
        self._span: Span | None = None
        self._context = context.Context()
        self._phase: _Part | None = None
        self._parts: dict[object, _Part] = {}  # by task: an episode may generate several replies at once

    def entered(self, stage: str, server: str | None) -> None:
        """Begin a stage. The first is entered in the task that plays the episode, and begins all of it."""
        try:
            if stage == _record.ENDED:
                self._end(time.time_ns())
            else:
                self._enter(_record.short_name(stage, server), server, time.time_ns())
        except Exception as error:  # a provider's
            self._tracing.failed(error)

    def segment_sent(self, version: int) -> None:
        """Note the version that a request for tokens is sent at."""
        part = self._parts.get(asyncio.current_task())
        if part is not None:
            part.version = version

    def segment_came(self, tokens: int) -> None:
        """End the request."""
        task = asyncio.current_task()
        part = self._parts.pop(task, None)
        if part is None:
            return
        part.tokens = tokens
        try:
            self._show(part, time.time_ns())
        except Exception as error:
            self._tracing.failed(error)

    def _enter(self, name: str, server: str | None, now: int) -> None:
        if self._span is None and not self._begin(now):
            return
        task = asyncio.current_task()
        part = self._parts.pop(task, None)
        if part is not None:
            self._show(part, now)
        if name in _PHASES:
            self._end_phase(now)
            self._phase = _Part(name, now, self._context)
        elif name != "playing":
            self._parts[task] = _Part(name, now, context.get_current(), server)

    def _begin(self, now: int) -> bool:
        """Begin the episode; return whether its spans are to be made."""
        tracing, episode = self._tracing, self._episode
        span = tracing.tracer.start_span(
            "group" if episode.is_judge else "episode",
            attributes=_of_episode(tracing.name, episode),
            start_time=self._queued,
            links=tracing.members.get(episode.rollout.task_id) if episode.is_judge else None,
        )
        self._span, self._context = span, trace.set_span_in_context(span)
        context.attach(self._context)  # of the task that plays it, with which that ends
        if not span.is_recording():  # it is no sample: what user code begins must be none either
            episode.record.trace = None
            return False
        if not episode.is_judge:
            self._show(_Part("queue", self._queued, self._context), now)
        return True

    def _show(self, part: _Part, now: int) -> None:
        kind, attributes = SpanKind.INTERNAL, _WAITS.get(part.name)
        if part.server is not None:
            kind, attributes = SpanKind.CLIENT, self._tracing.of_request(part)
        elif now - part.since < _SHORT_NS:
            return
        name = _NAMES.get(part.name, "wait")
        start = self._tracing.tracer.start_span
        start(name, part.context, kind, attributes, start_time=part.since).end(now)

    def _end_phase(self, now: int) -> None:
        while self._parts:
            self._show(self._parts.popitem()[1], now)
        phase, self._phase = self._phase, None
        if phase is not None:
            self._show(phase, now)

    def _end(self, now: int) -> None:
        """End all of it. What the task still does, if it outlives its outcome, is not followed."""
        episode, span = self._episode, self._span
        episode.record.trace = None
        if span is None:
            return  # it was cancelled before its first step
        try:
            self._end_phase(now)
        finally:
            outcome, error = _outcome_of(episode)
            attributes: dict[str, AttributeValue] = {
                "areal.outcome": outcome,
                "areal.segments": episode.record.segments,
            }
            if error is not None:
                attributes["error.type"] = type(error).__qualname__
                span.set_status(StatusCode.ERROR)  # without its text, which may have a prompt in it
            span.set_attributes(attributes)
            span.end(now)
        if episode.rollout.work.group_size > 1 and not episode.is_judge:
            members = self._tracing.members.setdefault(episode.rollout.task_id, [])
            members.append(Link(span.get_span_context()))


def _of_episode(executor: str, episode: Episode) -> dict[str, AttributeValue]:
    rollout, work = episode.rollout, episode.rollout.work
    attributes: dict[str, AttributeValue] = {
        "areal.executor": executor,
        "areal.rollout.id": rollout.task_id,
        "areal.rollout.kind": KINDS[work.is_eval],
        "areal.workflow": type(work.workflow).__qualname__,
        "areal.policy.version": rollout.start_version,
    }
    if work.data_id is not None:
        attributes["areal.data_id"] = str(short_data_id(work.data_id))
    if work.group_size > 1:
        attributes["areal.group.size"] = work.group_size
        if not episode.is_judge:
            attributes["areal.group.member"] = episode.sample_idx
    return attributes


def _outcome_of(episode: Episode) -> tuple[Status, BaseException | None]:
    """Return how it ended, though its rollout may have ended otherwise, and the error that it ended with."""
    error, verdict = episode.error, episode.verdict
    if episode.timed_out:
        return "timed_out", error
    if isinstance(error, asyncio.CancelledError):
        return "cancelled", None
    if error is not None:
        return "failed", error
    return ("rejected" if verdict is None or verdict.trajectory is None else "accepted"), None


@functools.lru_cache(maxsize=1000)
def address_of(server: str) -> dict[str, AttributeValue]:
    """Return the attributes of a server, of which there are two."""
    host, _, port = server.rpartition(":")
    if not port.isdigit():  # a URL
        return {"server.address": server}
    return {"server.address": host.strip("[]"), "server.port": int(port)}
