"""What inference servers ask and answer, as their dialects have it, for tests of the backends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from areal_core._engine.backend import Ask, HttpCall
from areal_core.types import GenerationHyperparameters


def an_ask(max_new_tokens: int = 64, min_new_tokens: int = 0, **fields: Any) -> Ask:
    """Return an ask of three tokens; *fields* that an `Ask` does not have are of its gconfig."""
    of_ask = {name: fields.pop(name) for name in ("wire_id", "model", "extra", "input_ids") if name in fields}
    return Ask(
        **{"wire_id": "talk-1", "input_ids": [5, 6, 7], "extra": {}, **of_ask},
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        gconfig=GenerationHyperparameters(**fields),
    )


def body_of(call: HttpCall) -> Any:
    """Return what *call* sends."""
    assert call.body is not None
    return json.loads(call.body)


def sglang(
    tokens: Sequence[int] = (), *, finish: Any = None, meta: dict[str, Any] | None = None, **changes: Any
) -> bytes:
    """Return a reply, or an event, with *tokens*, the log-probability of token t being -t/8.

    *finish* may be a type or the whole reason. *meta* and *changes* go over the fields; one that is ... is
    left out.
    """
    meta_info = {
        "id": "talk-1",
        "finish_reason": {"type": finish} if isinstance(finish, str) else finish,
        "prompt_tokens": 3,
        "weight_version": "default",
        "completion_tokens": len(tokens),
        "cached_tokens": 0,
        "e2e_latency": 0.25,
        "output_token_logprobs": [[-token / 8, token, None] for token in tokens],
        **(meta or {}),
    }
    reply = {"text": "…", "output_ids": list(tokens), "meta_info": _without(meta_info), **changes}
    return json.dumps(_without(reply)).encode()


def completion(
    tokens: Sequence[int] = (),
    *,
    finish: str | None = None,
    logprobs: Any = "completion",
    **changes: Any,
) -> bytes:
    """Return a completion, or an event, with *tokens*, the log-probability of token t being -t/8.

    *logprobs* is the form it has them in, or what to have instead; *changes* go over the fields of the
    choice, and one that is ... is left out.
    """
    if logprobs == "completion":
        logprobs = {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": [-token / 8 for token in tokens],
            "top_logprobs": [{f"token_id:{token}": -token / 8} for token in tokens],
            "text_offset": list(range(len(tokens))),
        }
    elif logprobs == "chat":
        logprobs = {
            "content": [
                {"token": f"token_id:{token}", "logprob": -token / 8, "bytes": None, "top_logprobs": []}
                for token in tokens
            ]
        }
    choice = {
        "index": 0,
        "text": "…" if tokens else "",
        "logprobs": logprobs,
        "finish_reason": finish,
        "stop_reason": None,
        "token_ids": list(tokens),
        **changes,
    }
    return json.dumps(
        {
            "id": "cmpl-talk-1",
            "object": "text_completion",
            "created": 1_790_000_000,
            "model": "m",
            "choices": [_without(choice)],
            "usage": {"prompt_tokens": 3, "completion_tokens": len(tokens), "total_tokens": 3 + len(tokens)},
        }
    ).encode()


def _without(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not ...}
