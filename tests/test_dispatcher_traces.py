"""Spans of episodes that workers play, as far as they are known here."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span

from areal_core._observe import telling
from areal_core._observe.tracing import Tracing
from lending import Office

pytestmark = pytest.mark.any_loop


def parent_of(span: ReadableSpan, spans: list[ReadableSpan]) -> ReadableSpan | None:
    return next((one for one in spans if span.parent is not None and one.context == span.parent), None)


def test_each_episode_has_its_waits_below_it_and_what_was_current_at_its_submit_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "_SHORT_NS", 0)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer, office = provider.get_tracer("a test"), Office(workers=1, slots=1)
    office.tracer = tracing = Tracing(tracer, "run", None)

    async def act() -> None:
        with tracer.start_as_current_span("a step"):
            (plain,) = office.start()
            (group,) = office.start(group_size=2)
        assert not get_current_span().get_span_context().is_valid, "what is begun is current nowhere else"
        office.end(plain)
        for place in range(2):
            office.end(group, place=place)
        tracing.told.flush()

    asyncio.run(act())
    spans = list(exporter.get_finished_spans())
    (step,) = [one for one in spans if one.name == "a step"]
    episodes = [one for one in spans if one.name == "episode"]
    assert [parent_of(one, spans) for one in episodes] == [step] * 3
    waits = [one for one in spans if one.name == "wait"]
    for episode in episodes:
        below = [one for one in waits if parent_of(one, spans) is episode]
        assert [dict(one.attributes or {})["areal.wait.for"] for one in below] == [
            "waiting_for_room",
            "with_worker",
        ]
    assert len(waits) == 6
    provider.shutdown()
