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
than 10 milliseconds, but for requests.

While an episode runs, its own span has an id, since user code may begin others below it, and it is noted
what it does. Spans are made when many episodes have ended, or a tenth of a second after the first: between
steps of other episodes all that is needed has left the processor's caches, and one takes four times as long.

Nothing here may harm an episode: a provider that raises costs its spans, and is told of once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from areal_core import _record
from areal_core._executor.bundle import Bundle
from areal_core._executor.explaining import short_name as short_data_id
from areal_core._log import describe, get_logger
from areal_core._observe.figures import KINDS
from areal_core._observe.telling import CAME, NOTE, SENT, Story, Teller

if TYPE_CHECKING:
    from areal_core._executor.rollout import Episode, Rollout

_UNSET, _FAILED = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
"""Without the text of an error, which may have a prompt in it."""

_MOST_NOTES = 512
"""How many an episode keeps until their spans are made, for one that never ends."""


class Tracing:
    """Follows the episodes of one executor. The thread that owns its core calls all of it."""

    def __init__(self, tracer: Tracer, name: str, model: str | None) -> None:
        self._tracer = tracer
        self.name = name
        self._teller = Teller(tracer, model)
        self._queued: dict[int, int] = {}  # since when the rollouts wait that have not ended, in ns
        self.told: Bundle[_EpisodeTrace] = Bundle(self.tell)
        """What has ended, and has no spans so far."""
        self.members: dict[int, list[Link]] = {}
        """The spans of members that have ended, by their group, for the one that judges it."""
        self._has_failed = False

    def enqueued(self, rollout: Rollout) -> None:
        """Note since when *rollout* waits, perhaps not for the first time."""
        self._queued[rollout.task_id] = time.time_ns()
        self.members.pop(rollout.task_id, None)  # of the time before

    def ended(self, rollout: Rollout) -> None:
        """Forget it."""
        self._queued.pop(rollout.task_id, None)
        self.members.pop(rollout.task_id, None)

    def starting(self, episode: Episode) -> None:
        """Follow *episode* from here on."""
        now = time.time_ns()
        queued = now if episode.is_judge else self._queued.get(episode.rollout.task_id, now)
        episode.record.trace = _EpisodeTrace(self, episode, queued)

    def begin(self, episode: Episode, since: int) -> Span:
        """Begin the span of *episode*. Raises what the provider raises."""
        attributes = _of_episode(self.name, episode)
        if not episode.is_judge:
            return self._teller.spans.begin("episode", attributes, since)
        links = self.members.get(episode.rollout.task_id)
        return self._tracer.start_span("group", attributes=attributes, links=links, start_time=since)

    def tell(self, trace: _EpisodeTrace) -> None:
        """Make the spans of all that was noted in *trace*. Never raises."""
        try:
            trace.tell(self._teller)
        except Exception as error:  # a provider's
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Tell of an error of the provider's, once."""
        if not self._has_failed:
            self._has_failed = True
            get_logger().warning("tracing_failed", error=describe(error), exc_info=error)


class _EpisodeTrace:
    """Notes what one episode does, or the judge of a group. None of the methods that are called raises."""

    __slots__ = ("_context", "_episode", "_notes", "_outcome", "_queued", "_span", "_story", "_tracing")

    def __init__(self, tracing: Tracing, episode: Episode, queued: int) -> None:
        self._tracing = tracing
        self._episode: Episode | None = episode
        self._queued = queued
        self._span: Span | None = None
        self._context = Context()
        self._notes: list[Any] = []  # flat: a tuple for each would keep the garbage collector busy
        self._story: Story | None = None
        self._outcome: dict[str, AttributeValue] = {}

    def entered(self, stage: str, server: str | None) -> None:
        """Begin a stage. The first is entered in the task that plays the episode, and begins all of it."""
        now = time.time_ns()
        if stage == _record.ENDED:
            self._end(now)
        elif self._span is not None or self._begin():
            self._note(now, stage, server, context.get_current())

    def segment_sent(self, version: int) -> None:
        """Note the version that a request for tokens is sent at."""
        self._note(0, SENT, version, None)

    def segment_came(self, tokens: int) -> None:
        """End the request."""
        self._note(time.time_ns(), CAME, tokens, context.get_current())

    def _note(self, now: int, what: str, value: object, where: Context | None) -> None:
        if self._span is None:
            return
        self._notes += (now, asyncio.current_task(), what, value, where)
        if len(self._notes) >= _MOST_NOTES * NOTE:
            self._tracing.tell(self)

    def _begin(self) -> bool:
        """Begin the episode; return whether its spans are to be made."""
        tracing, episode = self._tracing, self._episode
        assert episode is not None
        try:
            span = tracing.begin(episode, self._queued)
            self._span, self._context = span, trace.set_span_in_context(span)
            context.attach(self._context)  # of the task that plays it, with which that ends
        except Exception as error:
            tracing.failed(error)
            return False
        if not span.is_recording():  # it is no sample: what user code begins must be none either
            episode.record.trace = None
            return False
        self._story = Story(self._context, self._queued, has_queued=not episode.is_judge)
        return True

    def _end(self, now: int) -> None:
        """End all of it. What the task still does, if it outlives its outcome, is not followed."""
        episode, span = self._episode, self._span
        assert episode is not None
        self._episode = episode.record.trace = None
        if span is None:
            return  # it was cancelled before its first step
        self._outcome = _outcome_of(episode)
        self._notes += (now, None, _record.ENDED, None, None)
        if episode.rollout.plan.group_size > 1 and not episode.is_judge:
            members = self._tracing.members.setdefault(episode.rollout.task_id, [])
            members.append(Link(span.get_span_context()))
        self._tracing.told.put(self)
        self._tracing.told.hand_on()

    def tell(self, teller: Teller) -> None:
        """Make the spans of what was noted so far; of the episode itself too, if it has ended."""
        notes, self._notes = self._notes, []
        assert self._story is not None
        try:
            teller.tell(self._story, notes)
        finally:
            if self._outcome:
                assert self._span is not None
                status = _FAILED if "error.type" in self._outcome else _UNSET
                teller.spans.end(self._span, self._outcome, status, notes[-NOTE])


def _of_episode(executor: str, episode: Episode) -> dict[str, AttributeValue]:
    rollout, plan = episode.rollout, episode.rollout.plan
    attributes: dict[str, AttributeValue] = {
        "areal.executor": executor,
        "areal.rollout.id": rollout.task_id,
        "areal.rollout.kind": KINDS[plan.is_eval],
        "areal.workflow": type(plan.workflow).__qualname__,
        "areal.policy.version": rollout.start_version,
    }
    if rollout.data_id is not None:
        attributes["areal.data_id"] = str(short_data_id(rollout.data_id))
    if plan.group_size > 1:
        attributes["areal.group.size"] = plan.group_size
        if not episode.is_judge:
            attributes["areal.group.member"] = episode.sample_idx
    return attributes


def _outcome_of(episode: Episode) -> dict[str, AttributeValue]:
    """Return how it ended, though its rollout may have ended otherwise, and the error that it ended with."""
    error, verdict = episode.error, episode.verdict
    outcome: dict[str, AttributeValue] = {
        "areal.outcome": "failed",
        "areal.segments": episode.record.segments,
    }
    if episode.timed_out:
        outcome["areal.outcome"] = "timed_out"
    elif isinstance(error, asyncio.CancelledError):
        outcome["areal.outcome"], error = "cancelled", None
    elif error is None:
        is_rejected = verdict is None or verdict.trajectory is None
        outcome["areal.outcome"] = "rejected" if is_rejected else "accepted"
    if error is not None:
        outcome["error.type"] = type(error).__qualname__
    return outcome
