"""OpenAI's dialect: what the answers look like, whole and in pieces.

A token has no alternatives here: where their log-probabilities are asked for, the one that was drawn is
the only one told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from areal_core.embedded._dialects.openai_asks import Order
from areal_core.embedded._generating.generation import Generation
from areal_core.embedded._models.model import Model


class Words(Protocol):
    """How one kind of request is answered."""

    def whole(self, order: Order, generation: Generation) -> dict[str, Any]:
        """Return the answer that is one document."""

    def opening(self, order: Order) -> Sequence[dict[str, Any]]:
        """Return the pieces that come before the first token."""

    def piece(self, order: Order, generation: Generation, since: int, text: str) -> dict[str, Any]:
        """Return the piece with the tokens from number *since* on, and the *text* that is new."""

    def usage(self, order: Order, generation: Generation) -> dict[str, Any]:
        """Return the piece that has the numbers of tokens alone."""


def shown_text(model: Model, order: Order, generation: Generation) -> str:
    """Return the text there is of *generation*: of one that goes on, without what may become a stop."""
    tokens = generation.tokens()
    finish = generation.finish
    matched = None if finish is None or order.include_stop else finish.matched
    if isinstance(matched, int):
        tokens = tokens[:-1]
    if order.skip_special_tokens:
        tokens = [token for token in tokens if token != model.end_token]
    text = model.decode(tokens)
    if isinstance(matched, str):
        return text.removesuffix(matched)
    held = max(map(len, order.ask.sampling.stop), default=1) - 1
    return text if finish is not None or order.include_stop else text[: max(0, len(text) - held)]


class CompletionWords:
    """Answer ``/v1/completions``."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def whole(self, order: Order, generation: Generation) -> dict[str, Any]:
        """Return the answer that is one document."""
        text = shown_text(self._model, order, generation)
        return {**self.piece(order, generation, 0, text), "usage": _usage(generation)}

    def opening(self, _order: Order) -> Sequence[dict[str, Any]]:
        """Return nothing: the first piece has the first token."""
        return ()

    def piece(self, order: Order, generation: Generation, since: int, text: str) -> dict[str, Any]:
        """Return the piece with the tokens from number *since* on, and the *text* that is new."""
        finish = generation.finish
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "logprobs": self._logprobs(order, generation, since) if order.logprobs else None,
            "finish_reason": None if finish is None else finish.kind,
            "stop_reason": _stop_reason(self._model, generation),
        }
        if order.return_token_ids:
            choice["token_ids"] = generation.tokens(since)
            choice["prompt_token_ids"] = None if since else list(generation.prompt)
        return _frame(order, "cmpl", "text_completion", [choice])

    def usage(self, order: Order, generation: Generation) -> dict[str, Any]:
        """Return the piece that has the numbers of tokens alone."""
        return {**_frame(order, "cmpl", "text_completion", []), "usage": _usage(generation)}

    def _logprobs(self, order: Order, generation: Generation, since: int) -> dict[str, Any]:
        names = [token_name(self._model, order.tokens_as_ids, token) for token in generation.tokens(since)]
        logprobs = generation.logprobs(since)
        offset = len(self._model.decode(generation.tokens()[:since]))
        offsets = []
        for token in generation.tokens(since):
            offsets.append(offset)
            offset += len(self._model.decode([token]))
        return {
            "text_offset": offsets,
            "token_logprobs": logprobs,
            "tokens": names,
            "top_logprobs": [{name: logprob} for name, logprob in zip(names, logprobs, strict=True)],
        }


class ChatWords:
    """Answer ``/v1/chat/completions``."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def whole(self, order: Order, generation: Generation) -> dict[str, Any]:
        """Return the answer that is one document."""
        message = {
            "role": "assistant",
            "content": shown_text(self._model, order, generation),
            "refusal": None,
        }
        choice = {**self._choice(order, generation, 0), "message": message}
        reply = {**_frame(order, "chatcmpl", "chat.completion", [choice]), "usage": _usage(generation)}
        return reply | self._prompt_ids(order)

    def opening(self, order: Order) -> Sequence[dict[str, Any]]:
        """Return the piece that says who speaks."""
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return [_frame(order, "chatcmpl", "chat.completion.chunk", [choice]) | self._prompt_ids(order)]

    def piece(self, order: Order, generation: Generation, since: int, text: str) -> dict[str, Any]:
        """Return the piece with the tokens from number *since* on, and the *text* that is new."""
        choice = {**self._choice(order, generation, since), "delta": {"content": text}}
        return _frame(order, "chatcmpl", "chat.completion.chunk", [choice])

    def usage(self, order: Order, generation: Generation) -> dict[str, Any]:
        """Return the piece that has the numbers of tokens alone."""
        return {**_frame(order, "chatcmpl", "chat.completion.chunk", []), "usage": _usage(generation)}

    def _choice(self, order: Order, generation: Generation, since: int) -> dict[str, Any]:
        finish = generation.finish
        content = logprob_entries(self._model, order.tokens_as_ids, generation, since, order.alternatives)
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": {"content": content, "refusal": None} if order.logprobs else None,
            "finish_reason": None if finish is None else finish.kind,
            "stop_reason": _stop_reason(self._model, generation),
        }
        if order.return_token_ids:
            choice["token_ids"] = generation.tokens(since)
        return choice

    def _prompt_ids(self, order: Order) -> dict[str, Any]:
        return {"prompt_token_ids": list(order.ask.prompt)} if order.return_token_ids else {}


def logprob_entries(
    model: Model, as_ids: bool, generation: Generation, since: int, alternatives: int
) -> list[dict[str, Any]]:
    """Return one entry for each token from number *since* on, the way chats have it."""
    entries: list[dict[str, Any]] = []
    for token, logprob in zip(generation.tokens(since), generation.logprobs(since), strict=True):
        text = model.decode([token])
        entry: dict[str, Any] = {
            "token": token_name(model, as_ids, token),
            "logprob": logprob,
            "bytes": list(text.encode()),
        }
        entries.append({**entry, "top_logprobs": [entry] if alternatives else []})
    return entries


def token_name(model: Model, as_id: bool, token: int) -> str:
    """Return what stands for *token* beside its log-probability."""
    return f"token_id:{token}" if as_id else model.decode([token])


def _stop_reason(model: Model, generation: Generation) -> int | str | None:
    """Return what stopped it, if that is not the end of the text, as vLLM tells it."""
    matched = None if generation.finish is None else generation.finish.matched
    return None if matched == model.end_token else matched


def _usage(generation: Generation) -> dict[str, Any]:
    prompt, new = len(generation.prompt), len(generation)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _frame(order: Order, prefix: str, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{order.ask.id}",
        "object": kind,
        "created": int(time.time()),
        "model": order.model,
        "choices": choices,
    }
