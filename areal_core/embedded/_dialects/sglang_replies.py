"""SGLang's dialect: what the answers look like."""

from __future__ import annotations

import time
from typing import Any

from areal_core.embedded._dialects.sglang_asks import Wish
from areal_core.embedded._generating.generation import Generation
from areal_core.embedded._models.model import Model

ABORTED = "Aborted"
ABORTED_IN_QUEUE = "Abort in waiting queue"


class Replies:
    """Put generations into SGLang's words; with *spans*, tell which weights made which tokens."""

    def __init__(self, model: Model, spans: bool) -> None:
        self._model = model
        self._spans = spans

    def reply(self, wish: Wish, generation: Generation, label: str, since: int = 0) -> dict[str, Any]:
        """Return what there is of *generation*; of its tokens those from number *since* on.

        *label* is that of the weights now: what SGLang reports, whatever made the tokens.
        """
        return {
            "text": self._text(wish, generation, since),
            "output_ids": generation.tokens(since),
            "meta_info": self._meta(wish, generation, label, since),
        }

    def _meta(self, wish: Wish, generation: Generation, label: str, since: int) -> dict[str, Any]:
        meta: dict[str, Any] = {"id": wish.ask.id, "finish_reason": _finish(generation)}
        in_queue = generation.finish is not None and generation.finish.message == ABORTED_IN_QUEUE
        if not in_queue:  # what never reached the model has no such counts
            meta |= {"prompt_tokens": len(wish.ask.prompt), "cached_tokens": 0}
        meta |= {
            "completion_tokens": len(generation),
            "weight_version": label,
            "e2e_latency": time.monotonic() - generation.accepted,
        }
        if wish.return_logprob and (len(generation) or not in_queue):
            meta["input_token_logprobs"] = []
            meta["output_token_logprobs"] = [
                [logprob, token, self._model.decode([token]) if wish.return_text_in_logprobs else None]
                for token, logprob in zip(generation.tokens(since), generation.logprobs(since), strict=True)
            ]
        if self._spans and len(generation):
            spans = generation.spans()
            meta["weight_versions"] = [
                {"version": one.weights.label, "start": one.start, "end": one.end} for one in spans
            ]
            meta["weight_version"] = spans[-1].weights.label
        return meta

    def _text(self, wish: Wish, generation: Generation, since: int) -> str:
        tokens = generation.tokens()
        matched = generation.finish.matched if generation.finish is not None else None
        if isinstance(matched, int) and not wish.no_stop_trim:
            tokens = tokens[:-1]
        tokens = tokens[since:]
        if wish.skip_special_tokens:
            tokens = [token for token in tokens if token != self._model.end_token]
        text = self._model.decode(tokens)
        return text.removesuffix(matched) if isinstance(matched, str) and not wish.no_stop_trim else text


def error(message: str) -> dict[str, Any]:
    """Return SGLang's body for a refused request."""
    return {"error": {"message": message}}


def _finish(generation: Generation) -> dict[str, Any] | None:
    finish = generation.finish
    if finish is None:
        return None
    if finish.kind == "stop":
        return {"type": "stop", "matched": finish.matched}
    if finish.kind == "length":
        return {"type": "length", "length": len(generation)}
    if finish.message == ABORTED_IN_QUEUE:
        return {"type": "abort", "message": finish.message}
    return {"type": "abort", "message": finish.message, "status_code": None, "err_type": None}
