"""vLLM: ``POST /v1/completions`` with token ids, or ``/inference/v1/generate`` where the server has it.

All control calls but ``/health`` exist only where ``VLLM_SERVER_DEV_MODE=1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from areal_core._engine.backend import Ask, Backend, HttpCall
from areal_core._engine.backends._completions import CompletionReader, completion, model, sampling
from areal_core._engine.wire.decoding import decode, encode, integer_label, merge

_TOKENS_PATH = "/inference/v1/generate"

# What servers answer to GET that know the path: that it takes no GET, that a body is missing, or anything.
_KNOWN = (200, 400, 405, 422)


class _WeightInfo(Struct):
    weight_version: Any = None
    version: Any = None


_WEIGHT_INFO = Decoder(_WeightInfo)


class VLLM:
    """The dialect of vLLM's servers, with its completions."""

    name = "vllm"

    def generate(self, ask: Ask) -> HttpCall:
        """Return the call that asks for tokens."""
        body = {
            **completion(ask),
            "request_id": ask.wire_id,
            "logprobs": 0,  # of the sampled token only
            # The server would take these, too, from the model's own generation defaults.
            "top_k": ask.gconfig.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        return HttpCall("POST", "/v1/completions", encode(merge(body, ask.gconfig.extra, ask.extra)))

    def reader(self, ask: Ask) -> CompletionReader:
        """Return what reads the answer to *ask*."""
        return CompletionReader(ask)

    def abort(self, wire_id: str) -> HttpCall:
        """Return the call that ends one generation, which hanging up does on most ways too."""
        # Inside, a server knows a completion by the id it was given, or by one made of it for the prompt of
        # that index; ids that it does not know are passed over.
        return _abort("/abort_requests", {"request_ids": [wire_id, f"cmpl-{wire_id}-0"]})

    def abort_all(self) -> HttpCall:
        """Return the call that ends all generations."""
        return HttpCall("POST", "/abort_requests", b"{}")

    def pause(self) -> HttpCall:
        """Return the call that hands back all generations as they are, and starts no more."""
        return HttpCall("POST", "/pause", params={"mode": "abort"})

    def resume(self) -> HttpCall:
        """Return the call that ends a pause."""
        return HttpCall("POST", "/resume")

    def health(self) -> HttpCall:
        """Return the call that succeeds when the engine lives."""
        return HttpCall("GET", "/health")

    def update_weights(self, path: str, version: int) -> Sequence[HttpCall]:
        """Return the calls that load weights from *path*, and label them where servers have labels."""
        load = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        label = {"new_version": str(version)}
        return (
            HttpCall("POST", "/collective_rpc", encode(load)),
            HttpCall("POST", "/update_weight_version", encode(label), optional=True),
        )

    def check_update(self, body: bytes) -> str | None:
        """Return None: the status says whether the weights loaded."""
        return None

    def weight_version(self) -> HttpCall:
        """Return the call that asks which weights the server has."""
        return HttpCall("GET", "/weight_info", optional=True)

    def read_weight_version(self, body: bytes) -> int | None:
        """Return the label in the answer to that, if it is an integer."""
        info = decode(_WEIGHT_INFO, body)
        return integer_label(info.version if info.weight_version is None else info.weight_version)

    def probe(self) -> HttpCall | None:
        """Return the call whose status tells whether the server has the tokens-in-tokens-out path."""
        return HttpCall("GET", _TOKENS_PATH)

    def variant(self, status: int) -> Backend:
        """Return the dialect of a server that answered so."""
        return _TOKENS if status in _KNOWN else self


class VLLMTokens(VLLM):
    """The same servers, with their tokens-in-tokens-out path, which tells the version of each token."""

    def generate(self, ask: Ask) -> HttpCall:
        """Return the call that asks for tokens."""
        body: dict[str, Any] = {
            **model(ask),
            "token_ids": ask.input_ids,
            "sampling_params": {**sampling(ask), "logprobs": 0},
            "request_id": ask.wire_id,
            "stream": ask.stream,
        }
        return HttpCall("POST", _TOKENS_PATH, encode(merge(body, ask.gconfig.extra, ask.extra)))

    def abort(self, wire_id: str) -> HttpCall:
        """Return the call that ends one generation."""
        return _abort("/inference/v1/abort_requests", {"request_ids": [f"generate-tokens-{wire_id}"]})

    def probe(self) -> None:
        """Nothing is left to find out."""

    def variant(self, status: int) -> Backend:
        """Return this one."""
        return self


def _abort(path: str, body: dict[str, Any]) -> HttpCall:
    # Where the path is missing, hanging up has to do.
    return HttpCall("POST", path, encode(body), optional=True)


_TOKENS = VLLMTokens()
BACKEND = VLLM()
