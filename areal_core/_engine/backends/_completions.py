"""``/v1/completions`` and its relatives: what they share between servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from areal_core._engine.backend import Ask, Piece, ReplyError
from areal_core._engine.backends._spans import Span, versions_of
from areal_core._engine.backends._tally import Tally, ended, is_end
from areal_core._engine.wire.decoding import FinishType, Logprob, TokenId, decode, failure

_NO_IDS = (
    "the reply has no token ids: the server has to know `return_token_ids` or `return_tokens_as_token_ids`, "
    "and to have it turned on if that needs an option of its own"
)
_PREFIX = "token_id:"
_VERSIONS = "$.choices[0].weight_versions"


class _Content(Struct, gc=False):
    """One token, the way chat completions have it."""

    token: str
    logprob: Logprob


class _Logprobs(Struct):
    tokens: list[str] | None = None
    token_logprobs: list[Logprob] | None = None
    content: list[_Content] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    finish_reason: FinishType | None = None
    token_ids: list[TokenId] | None = None
    response_token_ids: list[TokenId] | None = None
    logprobs: _Logprobs | None = None
    weight_versions: list[Span] | None = None


class _Reply(Struct):
    error: Any = None
    choices: list[_Choice] | None = None


_REPLY = Decoder(_Reply)


def sampling(ask: Ask) -> dict[str, Any]:
    """Return the parameters under the names that these servers have for them.

    Those that OpenAI does not have are there only when they do something.
    """
    gconfig = ask.gconfig
    # Servers take the first three from the model's own generation defaults when they are missing.
    parameters: dict[str, Any] = {
        "max_tokens": ask.max_new_tokens,
        "temperature": 0.0 if gconfig.greedy else gconfig.temperature,
        "top_p": gconfig.top_p,
    }
    optional = {
        "min_tokens": ask.min_new_tokens,
        "stop": gconfig.stop,
        "stop_token_ids": gconfig.stop_token_ids,
        "ignore_eos": gconfig.ignore_eos,
        "frequency_penalty": gconfig.frequency_penalty,
    }
    parameters.update({name: value for name, value in optional.items() if value})
    if gconfig.top_k != -1:
        parameters["top_k"] = gconfig.top_k
    if not gconfig.skip_special_tokens:
        parameters["skip_special_tokens"] = False
    if gconfig.seed is not None:
        parameters["seed"] = gconfig.seed
    return parameters


def model(ask: Ask) -> dict[str, str]:
    """Return the field that names the model, or the adapter, which is served as one; or no field."""
    name = ask.gconfig.lora_name or ask.model
    return {} if name is None else {"model": name}


def completion(ask: Ask) -> dict[str, Any]:
    """Return the body of a completion with token ids in and out."""
    return {
        **model(ask),
        "prompt": ask.input_ids,
        **sampling(ask),
        "stream": ask.stream,
        "return_token_ids": True,
        # For servers that do not know the above: ids in place of the texts beside the log-probabilities.
        "return_tokens_as_token_ids": True,
    }


class CompletionReader:
    """Reads a completion, or a stream of them, each with the tokens that are new."""

    def __init__(self, ask: Ask) -> None:
        self._tally = Tally(ask)

    def whole(self, body: bytes) -> Piece:
        """Read a reply that is one JSON document."""
        return ended(self._piece(body))

    def event(self, data: bytes) -> Piece | None:
        """Read the data of one event."""
        return None if is_end(data) else self._piece(data)

    def _piece(self, body: bytes) -> Piece | None:
        choice = _only_choice(decode(_REPLY, body))
        if choice is None:
            return None
        is_abort = choice.finish_reason == "abort"
        tokens, logprobs = _tokens(choice), _logprobs(choice)
        # An event may bring no more than the end, and what is aborted may lack anything. Else what it brings
        # cannot be used.
        if tokens is None and not is_abort:
            empty = self._tally.tokens or choice.finish_reason is None
            if logprobs or choice.text or not empty:
                raise ReplyError(_NO_IDS)
        if tokens and logprobs is None and not is_abort:
            raise ReplyError("$.choices[0].logprobs is missing")
        tokens, logprobs = tokens or [], logprobs or []
        count = max(len(tokens), len(logprobs))
        versions = (
            versions_of(choice.weight_versions, self._tally.tokens, count, _VERSIONS, is_abort=is_abort) or []
        )
        if is_abort:
            count = min(len(tokens), len(logprobs))
            tokens, logprobs, versions = tokens[:count], logprobs[:count], versions[:count]
        return self._tally.piece(tokens, logprobs, choice.finish_reason, versions=versions or None)


def _only_choice(reply: _Reply) -> _Choice | None:
    """Return the choice of *reply*; None when it has none, as the event that counts tokens."""
    if reply.error is not None:
        raise failure(reply.error)
    if reply.choices is None:
        raise ReplyError("$.choices is missing")
    if not reply.choices:
        return None
    if len(reply.choices) > 1 or reply.choices[0].index != 0:
        raise ReplyError("$.choices has more than the one choice asked for")
    return reply.choices[0]


def _logprobs(choice: _Choice) -> Sequence[float] | None:
    if choice.logprobs is None:
        return None
    if choice.logprobs.token_logprobs is not None:
        return choice.logprobs.token_logprobs
    if choice.logprobs.content is not None:
        return [entry.logprob for entry in choice.logprobs.content]
    return None


def _tokens(choice: _Choice) -> Sequence[int] | None:
    """Return the ids from where the server put them; None when it put them nowhere."""
    if choice.token_ids is not None:
        return choice.token_ids
    if choice.response_token_ids is not None:
        return choice.response_token_ids
    if choice.logprobs is None:
        return None
    texts = choice.logprobs.tokens
    if texts is None and choice.logprobs.content is not None:
        texts = [entry.token for entry in choice.logprobs.content]
    if not texts or not texts[0].startswith(_PREFIX):
        return None
    return [_token_id(text) for text in texts]


def _token_id(text: str) -> int:
    """Return the id in ``"token_id:123"``."""
    digits = text.removeprefix(_PREFIX)
    if text.startswith(_PREFIX) and digits.isascii() and digits.isdecimal() and len(digits) < 20:
        number = int(digits)
        if number < 2**63:
            return number
    raise ReplyError(f"{text[:40]!r} among tokens that are given as {_PREFIX}<number> is no token id")
