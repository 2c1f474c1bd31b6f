"""Spans of what has ended already. Needs the extra ``otel``.

To begin and to end a span takes 15 to 20 microseconds, most of them for what only one that lasts has: a lock,
attributes that may change, room for events and links. Where the tracer is the SDK's own and none of its
processors looks at spans that begin, one that has ended is made at once as what an exporter is given, which
takes 4. The sampler is asked as ever, unless it is one whose answer is known. Everywhere else a span is begun
and ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, TraceFlags, Tracer
from opentelemetry.util.types import AttributeValue

try:
    from opentelemetry.sdk import trace as sdk
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, StaticSampler

    from areal_core._observe.late_span import LateSpan, readable

    _SAMPLED = Decision.RECORD_AND_SAMPLE
    _HAS_SDK = True
except ImportError:  # another implementation of the API
    _HAS_SDK = False

MOST_ATTRIBUTES = 16
"""No span is given more."""

_IS_RANDOM = 2
"""The flag of a trace id that is."""

_OURS = (TraceFlags.SAMPLED, TraceFlags.SAMPLED | _IS_RANDOM)
"""Flags of a parent that is a sample: without, or with, the mark of a random id. The SDK knows others."""

_SEE_BEGINNINGS = ("on_start", "_on_ending")


class Spans:
    """Makes spans when they have ended, for one tracer. Raises what its processors raise."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._sdk: Any = tracer if _HAS_SDK and _is_plain(tracer) else None
        self._keeps_children = self._sdk is not None and _keeps_children(getattr(tracer, "sampler", None))
        self._processors: object = None
        self._are_blind = False

    def begin(self, name: str, attributes: Mapping[str, AttributeValue], since: int) -> Span:
        """Begin a span below what is current, at *since* in ns: one of the SDK's when somebody adds to it."""
        parent = trace.get_current_span().get_span_context()
        if not self._is_quick():
            return self._tracer.start_span(name, attributes=attributes, start_time=since)
        tracer, kind, flags = self._sdk, SpanKind.INTERNAL, parent.trace_flags & _IS_RANDOM
        trace_id = parent.trace_id
        if not parent.is_valid:
            trace_id = tracer.id_generator.generate_trace_id()
            flags = _IS_RANDOM * _makes_random(tracer.id_generator)
        asked = tracer.sampler.should_sample(None, trace_id, name, kind, attributes, ())
        flags |= asked.decision.is_sampled()
        span_id = tracer.id_generator.generate_span_id()
        own = SpanContext(trace_id, span_id, False, TraceFlags(flags), asked.trace_state)
        if not asked.decision.is_recording():
            return trace.NonRecordingSpan(own)
        above = parent if parent.is_valid else None
        return LateSpan(own, name, above, asked.attributes, since, self._sdk)

    def end(self, span: Span, attributes: Mapping[str, AttributeValue], status: Status, until: int) -> None:
        """End what `begin` returned at *until*, in ns."""
        begun = span.close() if _HAS_SDK and isinstance(span, LateSpan) else span
        if begun is not None:
            begun.set_status(status)
            begun.set_attributes(attributes)
            begun.end(until)
        elif isinstance(span, LateSpan):
            self._sdk.span_processor.on_end(span.ended(attributes, status, until))

    def add(
        self,
        name: str,
        where: Context,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue] | None,
        since: int,
        until: int,
    ) -> None:
        """Make a span of what lasted from *since* to *until*, in ns, below what is current in *where*."""
        parent = trace.get_current_span(where).get_span_context()
        if parent.trace_flags in _OURS and self._is_quick():
            self._add(name, parent, where, kind, attributes, since, until)
        else:
            self._tracer.start_span(name, where, kind, attributes, start_time=since).end(until)

    def _add(
        self,
        name: str,
        parent: SpanContext,
        where: Context,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue] | None,
        since: int,
        until: int,
    ) -> None:
        """Do what the SDK's start_span and end do, without what comes between them."""
        tracer, flags, state = self._sdk, parent.trace_flags, parent.trace_state
        if parent.is_remote or not self._keeps_children:
            asked = tracer.sampler.should_sample(where, parent.trace_id, name, kind, attributes, ())
            if asked.decision is not _SAMPLED:
                if not asked.decision.is_recording():
                    return
                flags = TraceFlags(flags & ~TraceFlags.SAMPLED)
            attributes, state = asked.attributes, asked.trace_state
        own = SpanContext(parent.trace_id, tracer.id_generator.generate_span_id(), False, flags, state)
        told = readable(tracer, name, own, parent, attributes or {}, since, until, kind=kind)
        tracer.span_processor.on_end(told)

    def _is_quick(self) -> bool:
        return self._sdk is not None and self._may_skip_beginnings() and not _is_off(self._sdk)

    def _may_skip_beginnings(self) -> bool:
        """Return whether no processor has anything to do when a span begins. More may be added any time."""
        processors = getattr(self._sdk.span_processor, "_span_processors", None)
        if processors is not self._processors:
            self._processors = processors
            self._are_blind = isinstance(processors, tuple) and all(map(_is_blind, processors))
        return self._are_blind


def _is_plain(tracer: Tracer) -> bool:
    """Return whether *tracer* is the SDK's, with nothing in it that only its own spans obey."""
    limits = getattr(tracer, "_span_limits", None)
    return (
        type(tracer) is sdk.Tracer
        and type(tracer.span_processor) is sdk.SynchronousMultiSpanProcessor
        and hasattr(tracer, "_instrumentation_scope")
        and limits is not None
        and limits.max_span_attribute_length is None
        and (limits.max_span_attributes is None or limits.max_span_attributes >= MOST_ATTRIBUTES)
        and not _counts_spans(tracer)
    )


def _keeps_children(sampler: object) -> bool:
    """Return whether *sampler* takes all spans below one of this process that it has taken, as most do.

    Then it need not be asked of each.
    """
    below = getattr(sampler, "_local_parent_sampled", None) if type(sampler) is ParentBased else None
    return type(below) is StaticSampler and getattr(below, "_decision", None) is _SAMPLED


def _is_off(tracer: Any) -> bool:
    """Return whether *tracer* was told to make no spans, which newer ones can be."""
    asked = getattr(tracer, "_is_enabled", None)
    return asked is not None and not asked()


def _makes_random(ids: Any) -> bool:
    """Return whether *ids* makes trace ids that are; newer ones of the SDK say so."""
    return bool(getattr(ids, "is_trace_id_random", bool)())


def _counts_spans(tracer: Any) -> bool:
    """Return whether the SDK counts its spans, which it does not do if it is not told to."""
    return type(getattr(tracer, "_tracer_metrics", None)).__name__ not in ("NoOpTracerMetrics", "NoneType")


def _is_blind(processor: object) -> bool:
    """Return whether *processor* does nothing when a span begins, or is about to end."""
    known = (sdk.SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
    for name in _SEE_BEGINNINGS:
        does_nothing = [getattr(one, name, None) for one in known]  # the second is there since 1.33
        if getattr(getattr(processor, name, None), "__func__", None) not in does_nothing:
            return False
    return True
