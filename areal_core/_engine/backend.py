"""The port to the servers' dialects: what to send, and what came back. Pure; nothing here does any I/O.

A backend is one file in ``backends``: it turns an `Ask` into an `HttpCall`, and what a server answers
into `Piece` objects. Whatever it is given to read may be anything: it raises `ReplyError` for what its
protocol does not allow, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from areal_core.types import GenerationHyperparameters


class ReplyError(Exception):
    """A reply that its protocol does not allow, or that says inside a 200 that the request failed.

    The message names the field, or is what the server said; who knows the server adds it.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The status this would have had before the stream began, as the server says; None: it does not,
        or the reply makes no sense."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One request to a server, apart from its address."""

    method: str
    path: str
    body: bytes | None = None
    """JSON; None: none."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Of the query."""
    optional: bool = False
    """Whether a server that does not know the path (404, 405, 501) has done what it has to."""

    @property
    def name(self) -> str:
        """Name the call in errors and logs."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one attempt asks of a server."""

    wire_id: str
    input_ids: Sequence[int]
    """The prompt and the tokens so far."""
    max_new_tokens: int
    """Of this attempt: what is left of the request's."""
    min_new_tokens: int
    gconfig: GenerationHyperparameters
    extra: Mapping[str, Any]
    """Fields to merge into the body, over ``gconfig.extra`` and all others. A mapping is merged into the
    mapping it meets, so that ``{"sampling_params": {"min_p": 0.1}}`` adds one parameter."""
    model: str | None = None
    stream: bool = True
    """Whether tokens are wanted as they come, where the dialect can."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a reply, or one event of a stream, adds to a generation."""

    tokens: Sequence[int]
    """Each in 0..2**63-1."""
    logprobs: Sequence[float]
    """As many as tokens; finite, and none above 0."""
    finish: str | None
    """Why there are no more: ``"stop"``, ``"length"``, ``"abort"``...; None while there are more to come."""
    label: int | None = None
    """The policy version that the server said it had when it sent this; None: it did not say."""
    versions: Sequence[int] | None = None
    """The version that made each token, where the server says that; None: it does not."""


class Reader(Protocol):
    """Reads the answer to one `Ask`, in one of the two forms a server may give it. Raises ReplyError.

    Each answer needs a reader of its own: it counts what came. After a ReplyError it is of no use.
    """

    def whole(self, body: bytes) -> Piece:
        """Read a reply that is one JSON document; its ``finish`` is not None."""

    def event(self, data: bytes) -> Piece | None:
        """Read the data of one event of a stream; None when it adds nothing (its end, a comment).

        A stream that ends before a piece had a ``finish`` was cut off: only who reads it can tell.
        """


@runtime_checkable
class Backend(Protocol):
    """One dialect. None instead of a call: the dialect has no such thing."""

    name: str

    def generate(self, ask: Ask) -> HttpCall:
        """Return the call that asks for tokens, streamed where that is wanted and the dialect can."""

    def reader(self, ask: Ask) -> Reader:
        """Return what reads the answer to *ask*."""

    def abort(self, wire_id: str) -> HttpCall | None:
        """Return the call that ends one generation; None: hanging up does."""

    def abort_all(self) -> HttpCall | None:
        """Return the call that ends all generations."""

    def pause(self) -> HttpCall | None:
        """Return the call that interrupts all generations and starts no more."""

    def resume(self) -> HttpCall | None:
        """Return the call that ends a pause."""

    def health(self) -> HttpCall:
        """Return the call that succeeds when the server can generate."""

    def update_weights(self, path: str, version: int) -> Sequence[HttpCall]:
        """Return the calls that load weights from *path* and label them, in order; none: it cannot."""

    def check_update(self, body: bytes) -> str | None:
        """Return what a server said, with status 200, of weights that did not load; None: they did."""

    def weight_version(self) -> HttpCall | None:
        """Return the call that asks which weights the server has."""

    def read_weight_version(self, body: bytes) -> int | None:
        """Return the version in the answer to that; None when it is no integer, or there is none."""

    def probe(self) -> HttpCall | None:
        """Return a call whose status tells a server's variant of the dialect; None: there is but one."""

    def variant(self, status: int) -> Backend:
        """Return the backend for a server that answered `probe` with *status*, which is none that passes."""
