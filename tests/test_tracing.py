"""Spans of episodes: which there are, whose children they are, what they say and what they never say."""

from __future__ import annotations

import ast
import asyncio
import copy
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, server_attributes
from opentelemetry.semconv.attributes import error_attributes, url_attributes
from opentelemetry.trace import SpanKind, StatusCode

import areal_core
from agent_tools import a_chatting_engine, user
from areal_core import _record, workflow_context
from areal_core._executor import bundle
from areal_core._executor.explaining import short_name
from areal_core._observe import telling, tracing
from areal_core.embedded import EmbeddedServer
from areal_core.metrics import instrument
from areal_core.types import GenerationHyperparameters, InferenceEngine, ModelRequest, RolloutWorkflow
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import Door, turn_loop
from engine_tools import a_request, an_engine
from executor_tools import WAIT_S, Engine, Playing, TellingEngine, answering, obeying, park, trajectory_of
from logged import LogLines

PACKAGE = Path(__file__).parent.parent / "areal_core"


class Spans(InMemorySpanExporter):
    """All spans that have ended, and the provider that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self))

    def named(self, name: str) -> list[ReadableSpan]:
        """Return those of a name, in the order in which they ended."""
        return [span for span in self.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Return the only one of a name."""
        (span,) = self.named(name)
        return span

    def below(self, parent: ReadableSpan) -> list[str]:
        """Return the names of its children, in the order in which they began."""
        children = [one for one in self.get_finished_spans() if is_below(one, parent)]
        return [one.name for one in sorted(children, key=lambda one: one.start_time or 0)]


def is_below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == id_of(parent)


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Keep all spans, also of what takes no time, from when their episode has ended."""
    monkeypatch.setattr(telling, "_SHORT_NS", 0)
    monkeypatch.setattr(bundle, "MOST", 1)
    spans = Spans()
    yield spans
    spans.provider.shutdown()


def played(executor: WorkflowExecutor, data: Any, workflow: Any, **options: Any) -> None:
    """Have *data* played, and all of its spans ended."""
    executor.submit(data, workflow, **options)
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)


class Asking(RolloutWorkflow):
    """Generates *count* replies at once, of six tokens each."""

    def __init__(self, count: int = 1) -> None:
        self._count = count

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        await asyncio.gather(*(engine.agenerate(a_request([71, 72, 73], 6)) for _ in range(self._count)))
        return trajectory_of(7777)


def test_an_episode_has_a_span_for_each_phase(make_executor: MakeExecutor, spans: Spans) -> None:
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:
        executor = make_executor(engine, model="small")
        instrument(executor, tracer_provider=spans.provider, name="student")
        played(executor, {"data_id": "q7"}, Asking(), should_accept_fn=lambda _: True, task_id=5)
    episode = spans.one("episode")
    assert episode.parent is None
    assert said(episode) == {
        "areal.executor": "student",
        "areal.rollout.id": 5,
        "areal.rollout.kind": "training",
        "areal.workflow": "Asking",
        "areal.policy.version": 0,
        "areal.data_id": "q7",
        "areal.outcome": "accepted",
        "areal.segments": 1,
    }
    below = spans.below(episode)
    assert [name for name in below if name != "wait"] == ["queue", "generate", "accept"]
    asked = spans.one("generate")
    host, _, port = server.addr.rpartition(":")
    assert asked.kind is SpanKind.CLIENT
    assert said(asked) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "small",
        "gen_ai.usage.output_tokens": 6,
        "server.address": host,
        "server.port": int(port),
        "areal.policy.version": 0,
    }
    queue, accept = spans.one("queue"), spans.one("accept")
    assert episode.start_time == queue.start_time
    assert queue.end_time is not None
    assert asked.end_time is not None
    assert queue.end_time <= (asked.start_time or 0) < asked.end_time <= (accept.start_time or 0)
    assert accept.end_time == episode.end_time


def test_replies_that_are_generated_at_once_have_a_span_each(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    tracer = spans.provider.get_tracer("agent")
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:

        async def speak(most: int) -> None:
            with tracer.start_as_current_span(f"speaks {most}"):
                await engine.agenerate(a_request(most=most))

        async def play(_data: Any) -> Any:
            await asyncio.gather(*map(speak, (20, 40, 30)))
            return trajectory_of(1)

        executor = make_executor(engine)
        instrument(executor, tracer_provider=spans.provider)
        played(executor, 1, Playing(play))
    asked = spans.named("generate")
    for most in (20, 30, 40):
        (one,) = [span for span in asked if is_below(span, spans.one(f"speaks {most}"))]
        assert said(one)["gen_ai.usage.output_tokens"] == most
        assert is_below(spans.one(f"speaks {most}"), spans.one("episode"))
    assert max(one.start_time or 0 for one in asked) < min(one.end_time or 0 for one in asked)


def test_what_a_generation_waits_for_and_each_of_its_segments_are_shown(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:
        server.faults(["abort=2,next=1"])
        executor = make_executor(engine)
        instrument(executor, tracer_provider=spans.provider)

        async def pause() -> None:
            await engine.pause_generation()

        async def go_on() -> None:
            await engine.continue_generation()

        executor.runner.run(pause)
        executor.submit(1, Asking())
        while executor.snapshot().stages != {_record.PAUSED: 1}:
            turn_loop(executor.runner)
        executor.runner.run(go_on)
        executor.wait(1, WAIT_S)
        turn_loop(executor.runner)
    tokens = [said(one)["gen_ai.usage.output_tokens"] for one in spans.named("generate")]
    assert tokens == [2, 4]
    assert said(spans.one("episode"))["areal.segments"] == 2
    waits = [said(one)["areal.wait.for"] for one in spans.named("wait")]
    assert waits[:2] == ["generation_paused", "waiting_for_server"]


def test_spans_of_user_code_are_children_of_the_episodes_and_that_is_one_of_the_submitters(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    tracer = spans.provider.get_tracer("trainer")
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:

        async def play(_data: Any) -> Any:
            with tracer.start_as_current_span("turn"):
                await engine.agenerate(a_request())
            with tracer.start_as_current_span("tool"):
                pass
            return trajectory_of(1)

        executor = make_executor(engine)
        instrument(executor, tracer_provider=spans.provider)
        with tracer.start_as_current_span("step"):
            played(executor, 1, Playing(play))
    step, episode, turn = spans.one("step"), spans.one("episode"), spans.one("turn")
    assert is_below(episode, step)
    assert is_below(turn, episode)
    assert is_below(spans.one("tool"), episode)
    assert is_below(spans.one("generate"), turn)
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.any_loop
def test_calls_of_agents_here_and_elsewhere_belong_to_their_episode(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    class Here(RolloutWorkflow):
        async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
            client = await workflow_context.get_openai_client()
            await client.chat.completions.create(model="policy", messages=[user("hm")], max_tokens=4)  # type: ignore[list-item]
            return workflow_context.recorded().to_trajectory(1.0)

    class Elsewhere:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> float:
            body = {"model": "policy", "messages": [user("hm")], "max_tokens": 4}
            headers = {"Authorization": f"Bearer {api_key}"}
            answer = await http_client.post(f"{base_url}/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
            keys.append(api_key)
            return 1.0

    keys: list[str] = []
    with EmbeddedServer(mode="test") as server, a_chatting_engine(server) as engine:
        executor = make_executor(engine, consumer_batch_size=8)
        instrument(executor, tracer_provider=spans.provider)
        for agent in (Here(), Elsewhere()):
            spans.clear()
            played(executor, 1, agent)
            assert said(spans.one("episode"))["areal.outcome"] == "accepted"
            assert is_below(spans.one("generate"), spans.one("episode"))
    (key,) = keys
    assert not [one for one in spans.get_finished_spans() if key in str(said(one))]


@pytest.mark.parametrize(
    ("data", "options", "outcome", "error"),
    [
        (1, {}, "accepted", None),
        (None, {}, "rejected", None),
        (1, {"should_accept_fn": lambda _: False}, "rejected", None),
        (LookupError("a prompt"), {}, "failed", "LookupError"),
    ],
    ids=["accepted", "rejected", "filtered out", "failed"],
)
def test_an_episode_says_how_it_ended_without_the_text_of_an_error(
    make_executor: MakeExecutor, spans: Spans, data: Any, options: Any, outcome: str, error: str | None
) -> None:
    executor = make_executor()
    instrument(executor, tracer_provider=spans.provider)
    played(executor, data, obeying, **options)
    episode = spans.one("episode")
    assert said(episode)["areal.outcome"] == outcome
    assert said(episode).get("error.type") == error
    assert (episode.status.status_code is StatusCode.ERROR) == (error is not None)
    assert "a prompt" not in episode.to_json()


async def _park(_data: Any) -> None:
    await park()


def test_one_that_is_cancelled_and_one_that_takes_too_long_say_so(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    executor, door = make_executor(episode_timeout=0.05), Door()
    instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, Playing(_park))
    assert said(spans.one("episode"))["areal.outcome"] == "timed_out"
    assert said(spans.one("episode"))["error.type"] == "TimeoutError"
    spans.clear()
    task = executor.submit(1, Playing(door.walk_through))
    door.wait_for()
    executor.cancel(task)
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    assert said(spans.one("episode"))["areal.outcome"] == "cancelled"
    assert spans.one("episode").status.status_code is StatusCode.UNSET


def test_a_group_is_judged_in_a_span_with_links_to_those_of_its_members(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    executor = make_executor()
    made = instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, answering, group_size=3)
    group = spans.one("group")
    members = {id_of(one): said(one) for one in spans.named("episode")}
    assert {link.context.span_id for link in group.links} == members.keys()
    assert sorted(one["areal.group.member"] for one in members.values()) == [0, 1, 2]
    assert spans.below(group) == ["join"]
    assert made._tracing.members == {}
    assert made._tracing._queued == {}


def test_a_group_that_is_played_again_has_links_to_its_last_members_only(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    engine, door = TellingEngine(), Door()
    executor = make_executor(engine, max_head_offpolicyness=0, on_stale="requeue")
    instrument(executor, tracer_provider=spans.provider)
    executor.submit(trajectory_of(1), Playing(door.walk_through), group_size=2)
    door.wait_for(2)
    engine.set_version(1)
    door.open()
    executor.wait(1, WAIT_S)
    executor.destroy()
    assert len(spans.named("episode")) == 4
    assert len(spans.one("group").links) == 2


def test_one_that_is_no_sample_has_no_spans_and_neither_has_what_it_calls(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    provider = TracerProvider(ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = spans.provider.get_tracer("user")  # which would take samples of its own, but for its parent

    async def play(_data: Any) -> Any:
        with tracer.start_as_current_span("turn"):
            seen.append(trace.get_current_span().is_recording())
        return trajectory_of(1)

    seen: list[bool] = []
    executor = make_executor()
    instrument(executor, tracer_provider=provider)
    played(executor, 1, Playing(play))
    assert seen == [False]
    assert spans.get_finished_spans() == ()


class Beginnings(SpanProcessor):
    """Sees the names of spans that begin, for which they have to."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.names.append(span.name)


def shown(spans: Spans) -> list[dict[str, Any]]:
    """Return all that an exporter can see of each span, but for times and ids, for which names stand."""
    names = {id_of(one): one.name for one in spans.get_finished_spans()}
    found = []
    for one in spans.get_finished_spans():
        context = one.get_span_context()
        assert context is not None
        text = json.loads(one.to_json())
        del text["start_time"], text["end_time"], text["context"]
        text["parent_id"] = None if one.parent is None else names[one.parent.span_id]
        text["attributes"].pop("server.port", None)
        scope, flags = one.instrumentation_scope, context.trace_flags
        found.append(
            {
                **text,
                "scope": scope,
                "flags": flags,
                "state": context.trace_state,
                "dropped": (one.dropped_attributes, one.dropped_events, one.dropped_links),
                "remote": context.is_remote,
            }
        )
    return found


def test_spans_that_are_made_when_they_have_ended_are_those_that_the_sdk_makes(
    make_executor: MakeExecutor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, processor, begun = [], Beginnings(), []
    tracer = spans.provider.get_tracer("areal_core", areal_core.__version__)
    start = tracer.start_span

    def counted(*given: Any, **more: Any) -> trace.Span:
        begun.append(1)
        return start(*given, **more)

    monkeypatch.setattr(tracer, "start_span", counted)
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:
        executor = make_executor(engine, consumer_batch_size=8)
        instrument(executor, tracer_provider=spans.provider)
        for _ in range(2):
            spans.clear()
            played(executor, {"data_id": "q7"}, Asking(2), should_accept_fn=lambda _: True, task_id=7)
            seen.append(shown(spans))
            assert len(begun) == len(processor.names)
            spans.provider.add_span_processor(processor)  # from here on each span has to begin
    quick, plain = seen
    assert {"episode", "queue", "generate", "wait", "accept"} == {one["name"] for one in quick}
    assert quick == plain
    assert len(begun) == len(plain)
    assert sorted(processor.names) == sorted(one["name"] for one in plain)


class Choosing(Sampler):
    """Takes no queues, records replies without having them exported, and writes on all that it takes."""

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        *_: Any,
        **__: Any,
    ) -> SamplingResult:
        decision = {"queue": Decision.DROP, "generate": Decision.RECORD_ONLY}
        return SamplingResult(
            decision.get(name, Decision.RECORD_AND_SAMPLE), {**(attributes or {}), "by": name}
        )

    def get_description(self) -> str:
        return "Choosing"


class ChoosingBelow(ParentBased):
    """Takes all that is no queue, nor a reply, whatever is above it."""

    def should_sample(self, *arguments: Any, **options: Any) -> SamplingResult:
        return Choosing().should_sample(*arguments, **options)


@pytest.mark.parametrize(
    "sampler",
    [Choosing(), ParentBased(ALWAYS_ON, local_parent_sampled=Choosing()), ChoosingBelow(ALWAYS_ON)],
    ids=["by itself", "below another", "a child of a known one"],
)
def test_the_sampler_decides_on_each_span(
    make_executor: MakeExecutor, spans: Spans, sampler: Sampler
) -> None:
    class Ended(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.append(span)

    ended: list[ReadableSpan] = []
    provider = TracerProvider(sampler)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    provider.add_span_processor(Ended())
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:
        executor = make_executor(engine)
        instrument(executor, tracer_provider=provider)
        played(executor, 1, Asking(), should_accept_fn=lambda _: True)
    assert not spans.named("generate")
    assert said(spans.one("accept"))["by"] == "accept"
    (asked,) = [one for one in ended if one.name == "generate"]
    assert said(asked)["by"] == "generate"
    assert not (asked.get_span_context() or trace.INVALID_SPAN_CONTEXT).trace_flags.sampled
    assert not [one for one in ended if one.name == "queue"]


@pytest.mark.parametrize(
    ("limits", "attributes"),
    [
        (SpanLimits(max_span_attribute_length=3), {"areal.wait.for": "wai"}),
        (SpanLimits(max_span_attributes=0), {}),
    ],
    ids=["of length", "of number"],
)
def test_limits_of_the_provider_hold(
    make_executor: MakeExecutor, spans: Spans, limits: SpanLimits, attributes: dict[str, str]
) -> None:
    provider = TracerProvider(span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:
        executor = make_executor(engine)
        instrument(executor, tracer_provider=provider)
        played(executor, 1, Asking())
    assert said(spans.named("wait")[0]) == attributes


def test_user_code_can_add_to_the_span_of_its_episode(make_executor: MakeExecutor, spans: Spans) -> None:
    async def play(_data: Any) -> Any:
        span = trace.get_current_span()
        kept.append(span)
        assert span.is_recording()
        span.set_attribute("mine", 1)
        span.set_attributes({"also": "this"})
        span.add_event("seen", {"at": "door"})
        span.add_link(trace.SpanContext(1, 2, is_remote=True))
        span.update_name("game")
        span.record_exception(ValueError("odd"))
        span.set_status(StatusCode.OK)
        assert span.attributes["mine"] == 1  # type: ignore[attr-defined]
        return trajectory_of(1)

    kept: list[trace.Span] = []
    executor = make_executor(consumer_batch_size=8)
    instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, Playing(play), should_accept_fn=lambda _: True)
    episode = spans.one("game")
    assert {**said(episode), "mine": 1, "also": "this", "areal.outcome": "accepted"} == said(episode)
    assert [one.name for one in episode.events] == ["seen", "exception"]
    assert [one.context.span_id for one in episode.links] == [2]
    assert episode.status.status_code is StatusCode.OK
    assert is_below(spans.one("accept"), episode)
    assert (episode.end_time or 0) >= (spans.one("accept").end_time or 0)
    (span,) = kept
    assert not span.is_recording()
    assert span.get_span_context() == episode.get_span_context()


class Touching(SpanProcessor):
    """Adds to the current span whenever one begins: also to one that is just about to."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        trace.get_current_span().set_attribute("touched", True)


def test_a_span_that_is_touched_while_it_begins_begins_once(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    async def play(_data: Any) -> Any:
        spans.provider.add_span_processor(Touching())
        trace.get_current_span().add_event("seen")
        copied = copy.copy(trace.get_current_span())
        assert copied.get_span_context() == trace.get_current_span().get_span_context()
        return trajectory_of(1)

    executor = make_executor()
    instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, Playing(play))
    episode = spans.one("episode")
    assert [one.name for one in episode.events] == ["seen"]
    assert said(episode)["touched"] is True


def test_a_finalizer_may_add_to_a_span_while_it_begins(make_executor: MakeExecutor, spans: Spans) -> None:
    class Late:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            trace.get_current_span().add_event("late")

    async def play(_data: Any) -> Any:
        for _ in range(50):  # somewhere in the middle of it the collector runs
            Late()
        trace.get_current_span().add_event("seen")
        return trajectory_of(1)

    executor = make_executor()
    instrument(executor, tracer_provider=spans.provider)
    before = gc.get_threshold()
    gc.set_threshold(7, 2, 2)
    try:
        played(executor, 1, Playing(play))
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert "seen" in [one.name for one in spans.one("episode").events]


def test_what_is_added_to_an_episode_that_has_ended_is_lost(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    async def play(_data: Any) -> Any:
        kept.append(trace.get_current_span())
        return trajectory_of(1)

    kept: list[trace.Span] = []
    executor = make_executor()
    instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, Playing(play))
    (span,) = kept
    assert not span.is_recording()
    span.set_attribute("mine", 1)
    span.end()
    assert "mine" not in said(spans.one("episode"))
    assert len(spans.named("episode")) == 1


class Foreign(trace.NoOpTracerProvider, trace.NoOpTracer):
    """A provider that is not the SDK's, with its tracer."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(self, name: str, *_: Any, **__: Any) -> trace.Span:
        self.names.append(name)
        return Endless(trace.INVALID_SPAN_CONTEXT)


class Endless(trace.NonRecordingSpan):
    def is_recording(self) -> bool:
        return True


def test_a_provider_that_is_not_the_sdks_begins_each_span(make_executor: MakeExecutor, spans: Spans) -> None:
    provider = Foreign()
    executor = make_executor()
    instrument(executor, tracer_provider=provider)
    played(executor, 1, answering, should_accept_fn=lambda _: True)
    assert provider.names == ["episode", "queue", "accept"]


def test_spans_of_many_episodes_are_made_at_once_and_all_are_before_the_end(
    make_executor: MakeExecutor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST", 3)
    monkeypatch.setattr(bundle, "WAIT_S", 3600.0)
    executor = make_executor(consumer_batch_size=8)
    made = instrument(executor, tracer_provider=spans.provider)

    def held_after(count: int) -> int:
        for number in range(count):
            played(executor, number, answering)
        return len(spans.named("episode"))

    assert held_after(2) == 0
    assert held_after(1) == 3
    assert held_after(1) == 3
    made.flush()
    assert len(spans.named("episode")) == 4
    assert held_after(1) == 4
    executor.destroy()
    assert len(spans.named("episode")) == 5
    executor.initialize()
    assert held_after(1) == 5
    made.close()
    assert len(spans.named("episode")) == 6


def test_spans_that_wait_for_others_wait_for_a_while_only(
    make_executor: MakeExecutor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST", 1000)
    monkeypatch.setattr(bundle, "WAIT_S", 0.0)
    executor = make_executor()
    instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, answering)
    while not spans.named("episode"):
        turn_loop(executor.runner)


def test_an_instrumentation_that_is_closed_while_the_executor_ends_does_no_harm(
    make_executor: MakeExecutor, spans: Spans, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(bundle, "MOST", 1000)
    executor = make_executor()
    made = instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, answering)
    end = made._tracing.told.end

    def close() -> None:  # as another thread may
        monkeypatch.setattr(made._tracing.told, "end", end)
        made.close()

    monkeypatch.setattr(made._tracing.told, "end", close)
    executor.destroy()
    assert len(spans.named("episode")) == 1
    assert log_lines.of("error") == []


def test_what_is_cancelled_by_the_end_has_its_spans(
    make_executor: MakeExecutor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST", 1000)
    monkeypatch.setattr(bundle, "WAIT_S", 3600.0)
    executor, door = make_executor(), Door()
    instrument(executor, tracer_provider=spans.provider)
    executor.submit(1, Playing(door.walk_through))
    door.wait_for()
    executor.destroy()
    assert said(spans.one("episode"))["areal.outcome"] == "cancelled"


def test_one_that_runs_for_long_keeps_no_more_than_so_many_notes(
    make_executor: MakeExecutor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_MOST_NOTES", 5)
    counts = []
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:

        async def play(_data: Any) -> Any:
            for _ in range(4):
                await engine.agenerate(a_request(most=3))
                counts.append(len(spans.named("generate")))
            return trajectory_of(1)

        executor = make_executor(engine)
        instrument(executor, tracer_provider=spans.provider)
        played(executor, 1, Playing(play))
    assert 0 < counts[2] < 4
    assert len(spans.named("generate")) == 4
    assert [said(one)["gen_ai.usage.output_tokens"] for one in spans.named("generate")] == [3] * 4


class Broken(SpanProcessor):
    """Raises at each span that begins, or that ends."""

    def __init__(self, at: str) -> None:
        self._at = at

    def on_start(self, *_: Any, **__: Any) -> None:
        if self._at == "start":
            raise RuntimeError("no disk")

    def on_end(self, *_: Any, **__: Any) -> None:
        if self._at == "end":
            raise RuntimeError("no disk")


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_provider_that_raises_costs_its_spans_alone_and_is_told_of_once(
    make_executor: MakeExecutor, log_lines: LogLines, at: str
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken(at))
    with EmbeddedServer(mode="test") as server, an_engine(server) as engine:
        executor = make_executor(engine, consumer_batch_size=8)
        instrument(executor, tracer_provider=provider)
        for number in range(3):
            executor.submit(number, Asking(2), group_size=2)
        assert None not in executor.wait(3, WAIT_S)
        turn_loop(executor.runner)
    provider.shutdown()
    told = [line.message.split()[0] for line in log_lines if line.level in ("warning", "error")]
    assert told == ["tracing_failed"]


def test_nothing_is_followed_before_it_is_asked_for_or_after_its_end(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    seen = []

    async def look(_data: Any) -> Any:
        record = _record.current.get()
        assert record is not None
        seen.append(record.trace is not None)
        return trajectory_of(1)

    executor = make_executor(consumer_batch_size=8)
    played(executor, 1, Playing(look))
    made = instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, Playing(look))
    made.close()
    played(executor, 1, Playing(look))
    assert seen == [False, True, False]
    assert len(spans.named("episode")) == 1


def test_it_goes_on_through_lives_and_one_that_is_instrumented_twice_has_one_span(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    executor = make_executor()
    for _ in range(3):
        instrument(executor, tracer_provider=spans.provider)
    played(executor, 1, answering)
    executor.destroy()
    executor.initialize()
    played(executor, 2, answering)
    assert len(spans.named("episode")) == 2


def test_an_episode_that_outlives_its_outcome_is_followed_no_further(
    make_executor: MakeExecutor, spans: Spans
) -> None:
    executor, door = make_executor(cancel_grace=0.0), Door()

    async def insist(_data: Any) -> Any:
        record = _record.current.get()
        await door.insist()
        assert record is not None
        record.enter(_record.PLAYING)
        seen.append(record.trace)

    seen: list[Any] = []
    instrument(executor, tracer_provider=spans.provider)
    task = executor.submit(1, Playing(insist))
    door.wait_for()
    executor.cancel(task)
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    door.open()
    while not seen:
        turn_loop(executor.runner)
    assert seen == [None]
    assert len(spans.named("episode")) == 1


@pytest.mark.any_loop
def test_prompts_and_trajectories_are_in_no_span(make_executor: MakeExecutor, spans: Spans) -> None:
    class Speaking(RolloutWorkflow):
        async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
            gconfig = GenerationHyperparameters(max_new_tokens=5)
            await engine.agenerate(ModelRequest(list(b"sesame"), gconfig))
            return trajectory_of(424242)

    with EmbeddedServer(mode="test") as server, an_engine(server, api_key="key-0815") as engine:
        executor = make_executor(engine, api_key="key-0815")
        instrument(executor, tracer_provider=spans.provider)
        played(executor, {"prompt": "sesame"}, Speaking(), should_accept_fn=lambda _: True)
    shown = " ".join(one.to_json() for one in spans.get_finished_spans())
    assert "gen_ai.usage.output_tokens" in shown
    assert not [
        one for one in ("sesame", "424242", "key-0815", "115") if f'"{one}"' in shown or f" {one}," in shown
    ]


@pytest.mark.any_loop
def test_attributes_of_conventions_are_those_of_conventions() -> None:
    known = {
        value
        for module in (gen_ai_attributes, server_attributes, error_attributes, url_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    modules = [PACKAGE / "_observe" / name for name in ("tracing.py", "telling.py")]
    source = ast.parse("\n".join(one.read_text().replace("from __future__", "#") for one in modules))
    texts = {
        node.value
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used = {text for text in texts if text.startswith(("gen_ai.", "server.", "error.", "url."))}
    assert len(used) >= 6
    assert used <= known
    operations = vars(gen_ai_attributes)["GenAiOperationNameValues"]  # marked as moved elsewhere
    assert operations.TEXT_COMPLETION.value in texts


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("server", "attributes"),
    [
        ("10.0.0.1:30000", {"server.address": "10.0.0.1", "server.port": 30000}),
        ("[::1]:30000", {"server.address": "::1", "server.port": 30000}),
        ("https://gpu-7:8443", {"server.address": "gpu-7", "server.port": 8443}),
        ("https://gpu-7", {"server.address": "gpu-7", "server.port": 443}),
        ("https://gpu-7/one", {"server.address": "gpu-7", "server.port": 443, "url.path": "/one"}),
        ("gpu-7:80/one", {"server.address": "gpu-7", "server.port": 80, "url.path": "/one"}),
        ("my own", {"server.address": "my own"}),
    ],
)
def test_a_server_is_told_by_its_host_and_port(server: str, attributes: dict[str, Any]) -> None:
    assert telling.address_of(server) == attributes


@pytest.mark.any_loop
def test_a_name_that_no_utf_8_can_have_is_told_all_the_same() -> None:
    assert short_name("half \ud83d of a pair") == "half ? of a pair"
    assert short_name(["\ud83d"]) == "['\\ud83d']"


@pytest.mark.any_loop
def test_every_stage_that_an_episode_can_enter_has_a_short_name() -> None:
    entered = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _called(node) in ("enter", "_enter", "_say"):
                stage = node.args[0] if len(node.args) == 1 and not node.keywords else None
                if isinstance(stage, ast.Constant) and isinstance(stage.value, str):
                    entered.add(stage.value)
                elif isinstance(stage, ast.Attribute) and isinstance(getattr(_record, stage.attr, None), str):
                    entered.add(getattr(_record, stage.attr))
    assert {"waiting for a server", "waiting for its reward", "ended"} <= entered
    assert [stage for stage in entered if _record.short_name(stage) == _record.OTHER] == []
    assert _record.short_name("generating on 127.0.0.1:1, then backing off") == "backing_off"
    assert _record.short_name("a new one") == _record.OTHER


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@pytest.mark.any_loop
def test_an_executor_that_is_none_and_a_name_that_is_none_are_refused(make_executor: MakeExecutor) -> None:
    with pytest.raises(TypeError, match="pass a WorkflowExecutor"):
        instrument(Engine())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        instrument(make_executor(), name=3)  # type: ignore[arg-type]
