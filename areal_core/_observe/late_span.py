"""A span that is begun when somebody adds to it, which hardly anybody does. Needs OpenTelemetry's SDK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk import trace as sdk
from opentelemetry.trace import Span, SpanContext, Status
from opentelemetry.util.types import AttributeValue


def readable(
    tracer: Any,
    name: str,
    own: SpanContext,
    parent: SpanContext | None,
    attributes: Mapping[str, AttributeValue] | None,
    since: int,
    until: int,
    **options: Any,
) -> sdk.ReadableSpan:
    """Return what exporters are given of a span of *tracer*, which is one of the SDK's."""
    return sdk.ReadableSpan(
        name,
        own,
        parent,
        tracer.resource,
        attributes,
        instrumentation_info=tracer.instrumentation_info,
        start_time=since,
        end_time=until,
        instrumentation_scope=tracer._instrumentation_scope,
        **options,
    )


class _BegunSpan(sdk.Span):
    """A span of the SDK's whose id was known before."""


class LateSpan(trace.Span):
    """Stands for the span of an episode, which user code may add to, and hardly ever does.

    Until then it has an id, for its children and for headers, and nothing else that takes time.
    """

    def __init__(
        self,
        own: SpanContext,
        name: str,
        parent: SpanContext | None,
        attributes: Mapping[str, AttributeValue] | None,
        since: int,
        tracer: Any,
    ) -> None:
        self._own = own
        self._name = name
        self._parent = parent
        self._attributes = attributes
        self._since = since
        self._tracer = tracer
        # Its own span under "span", once there is one. No lock: whoever holds one may be interrupted by a
        # finalizer that adds to this, or forked; and `setdefault` is one step.
        self._begun: dict[str, Span] = {}

    def get_span_context(self) -> SpanContext:
        """Return its id, and that of its trace."""
        return self._own

    def is_recording(self) -> bool:
        """Return whether what is added to it will be seen."""
        begun = self._begun.get("span")
        return begun is None or begun.is_recording()

    def close(self) -> Span | None:
        """Let it be over; return the span that somebody had begun, which is to be ended. None: nobody did."""
        begun = self._begun.setdefault("span", trace.INVALID_SPAN)
        if not isinstance(begun, _BegunSpan):
            return None
        if begun.start_time is None:  # another thread is about to
            begun.start(self._since)
        return begun

    def ended(self, attributes: Mapping[str, AttributeValue], status: Status, until: int) -> sdk.ReadableSpan:
        """Return what exporters are given of it when it has ended at *until*, and nobody had begun it."""
        said = {**(self._attributes or {}), **attributes}
        return readable(
            self._tracer, self._name, self._own, self._parent, said, self._since, until, status=status
        )

    def begun(self) -> Span:
        """Return the span itself."""
        begun = self._begun.get("span")
        if begun is None:
            made = self._make()
            begun = self._begun.setdefault("span", made)
            if begun is made:  # started only now: processors may add to it, and find it
                made.start(self._since)
        return begun

    def _make(self) -> _BegunSpan:
        tracer = self._tracer
        return _BegunSpan(
            self._name,
            self._own,
            self._parent,
            tracer.sampler,
            resource=tracer.resource,
            attributes=self._attributes,
            span_processor=tracer.span_processor,
            instrumentation_info=tracer.instrumentation_info,
            limits=tracer._span_limits,
            instrumentation_scope=tracer._instrumentation_scope,
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by who copies or pickles it
            raise AttributeError(name)
        return getattr(self.begun(), name)  # of those that only spans of the SDK have

    def end(self, end_time: int | None = None) -> None:
        self.begun().end(end_time)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.begun().set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self.begun().set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.begun().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self.begun().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self.begun().update_name(name)

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.begun().set_status(status, description)

    def record_exception(self, exception: BaseException, *arguments: Any, **options: Any) -> None:
        self.begun().record_exception(exception, *arguments, **options)
