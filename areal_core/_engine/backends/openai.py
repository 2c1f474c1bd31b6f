"""Any OpenAI-compatible server that gives token ids: ``POST /v1/completions``.

What it is asked beyond OpenAI's own fields is for the ids, or because the caller wants it.
"""

from __future__ import annotations

from collections.abc import Sequence

from areal_core._engine.backend import Ask, Backend, HttpCall
from areal_core._engine.backends._completions import CompletionReader, completion
from areal_core._engine.wire.decoding import encode, merge


class OpenAI:
    """The dialect that servers have in common. It has no control calls."""

    name = "openai"

    def generate(self, ask: Ask) -> HttpCall:
        """Return the call that asks for tokens."""
        # Not 0, for which the sampled token alone would do: some servers take that for none.
        body = {**completion(ask), "logprobs": 1}
        return HttpCall("POST", "/v1/completions", encode(merge(body, ask.gconfig.extra, ask.extra)))

    def reader(self, ask: Ask) -> CompletionReader:
        """Return what reads the answer to *ask*."""
        return CompletionReader(ask)

    def abort(self, wire_id: str) -> None:
        """Hanging up ends a generation."""

    def abort_all(self) -> None:
        """There is no such call."""

    def pause(self) -> None:
        """There is no such call."""

    def resume(self) -> None:
        """There is no such call."""

    def health(self) -> HttpCall:
        """Return the call that succeeds when a model is served."""
        return HttpCall("GET", "/v1/models")

    def update_weights(self, path: str, version: int) -> Sequence[HttpCall]:
        """Return no call: it cannot."""
        return ()

    def check_update(self, body: bytes) -> str | None:
        """Return None: there is no update."""
        return None

    def weight_version(self) -> None:
        """There is no such call."""

    def read_weight_version(self, body: bytes) -> int | None:
        """Return None: there is no version."""
        return None

    def probe(self) -> None:
        """There is but one variant."""

    def variant(self, status: int) -> Backend:
        """Return this one."""
        return self


BACKEND = OpenAI()
