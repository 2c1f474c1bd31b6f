"""SGLang: ``POST /generate``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any, Generic, TypeVar

from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from areal_core._engine.backend import Ask, Backend, HttpCall, Piece, ReplyError
from areal_core._engine.backends._growing import Growing
from areal_core._engine.backends._spans import Span, versions_of
from areal_core._engine.backends._tally import Tally, ended, is_end
from areal_core._engine.wire.decoding import (
    FinishType,
    Label,
    Logprob,
    TokenId,
    decode,
    encode,
    failure,
    integer_label,
    merge,
)

_IDS = "$.output_ids"
_LOGPROBS = "$.meta_info.output_token_logprobs"
_VERSIONS = "$.meta_info.weight_versions"


class _Entry(Struct, array_like=True, gc=False):
    """One token; behind these two stands its text, or null."""

    logprob: Logprob
    token: TokenId


class _FinishReason(Struct):
    type: FinishType
    message: str | None = None
    status_code: int | None = None


# Lists, or None where there are none; or their JSON (Raw), which takes no part in unions: so the fields
# below have defaults that their types do not name.
IdsT = TypeVar("IdsT")
EntriesT = TypeVar("EntriesT")


class _MetaInfo(Struct, Generic[EntriesT]):
    finish_reason: _FinishReason | None = None
    completion_tokens: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    weight_version: Label = None
    weight_versions: list[Span] | None = None
    output_token_logprobs: EntriesT = None  # type: ignore[assignment]


class _Reply(Struct, Generic[IdsT, EntriesT]):
    error: Any = None
    meta_info: _MetaInfo[EntriesT] | None = None
    output_ids: IdsT = None  # type: ignore[assignment]


class _Updated(Struct):
    success: bool
    message: str | None = None


class _ModelInfo(Struct):
    weight_version: Any = None


_WHOLE = Decoder(_Reply[list[TokenId] | None, list[_Entry] | None])
_EVENT = Decoder(_Reply[Raw, Raw])
_ID_LIST = Decoder(list[TokenId])
_ENTRY_LIST = Decoder(list[_Entry])
_UPDATED = Decoder(_Updated)
_MODEL_INFO = Decoder(_ModelInfo)


class SGLang:
    """The dialect of SGLang's servers."""

    name = "sglang"

    def generate(self, ask: Ask) -> HttpCall:
        """Return the call that asks for tokens."""
        body = {
            "rid": ask.wire_id,
            "input_ids": ask.input_ids,
            "sampling_params": _sampling(ask),
            "return_logprob": True,
            "stream": ask.stream,
        }
        if ask.gconfig.lora_name is not None:
            body["lora_path"] = ask.gconfig.lora_name
        return HttpCall("POST", "/generate", encode(merge(body, ask.gconfig.extra, ask.extra)))

    def reader(self, ask: Ask) -> _Reader:
        """Return what reads the answer to *ask*."""
        return _Reader(ask)

    def abort(self, wire_id: str) -> HttpCall:
        """Return the call that ends one generation, and each whose id begins like that."""
        return _post("/abort_request", {"rid": wire_id})

    def abort_all(self) -> HttpCall:
        """Return the call that ends all generations."""
        # Older servers refuse a body without an id, and every id begins with the empty one.
        return _post("/abort_request", {"abort_all": True, "rid": ""})

    def pause(self) -> HttpCall:
        """Return the call that hands back all generations as they are, and starts no more."""
        return _post("/pause_generation", {"mode": "abort"})

    def resume(self) -> HttpCall:
        """Return the call that ends a pause."""
        return _post("/continue_generation", {})

    def health(self) -> HttpCall:
        """Return the call that succeeds when the server is up; ``/health_generate`` hangs in a pause."""
        return HttpCall("GET", "/health")

    def update_weights(self, path: str, version: int) -> Sequence[HttpCall]:
        """Return the call that loads weights from *path*, labels them, and empties the cache."""
        body = {
            "model_path": path,
            "weight_version": str(version),
            "flush_cache": True,
            "abort_all_requests": True,
        }
        return (_post("/update_weights_from_disk", body),)

    def check_update(self, body: bytes) -> str | None:
        """Return why the weights did not load; None: they did."""
        updated = decode(_UPDATED, body)
        return None if updated.success else updated.message or "it does not say why"

    def weight_version(self) -> HttpCall:
        """Return the call that asks which weights the server has."""
        # Newer servers have it as /model_info too, and go on knowing this path.
        return HttpCall("GET", "/get_model_info", optional=True)

    def read_weight_version(self, body: bytes) -> int | None:
        """Return the label in the answer to that, if it is an integer."""
        return integer_label(decode(_MODEL_INFO, body).weight_version)

    def probe(self) -> None:
        """There is but one variant."""

    def variant(self, status: int) -> Backend:
        """Return this one."""
        return self


class _Reader:
    """Reads a reply, or a stream of either kind.

    In one kind each event repeats all tokens, in the other (``--incremental-streaming-output``) it has the
    new ones only, and there are servers that repeat one list and not the other. How many there are says
    ``completion_tokens``: a list of so many repeats them.
    """

    def __init__(self, ask: Ask) -> None:
        self._tally = Tally(ask)
        self._ids = Growing(_ID_LIST, _IDS)
        self._entries = Growing(_ENTRY_LIST, _LOGPROBS)
        self._seen: list[_Entry] = []

    def whole(self, body: bytes) -> Piece:
        reply = decode(_WHOLE, body)
        meta = _meta_info(reply)
        # The lists have to agree with each other; what the counter says changes nothing.
        total = max(len(reply.output_ids or ()), len(meta.output_token_logprobs or ()))
        return ended(self._piece(meta, reply.output_ids, meta.output_token_logprobs, total, total))

    def event(self, data: bytes) -> Piece | None:
        if is_end(data):
            return None
        reply = decode(_EVENT, data)
        meta = _meta_info(reply)
        total, new = self._count(meta)
        if not new:
            return self._piece(meta, None, None, total, 0)
        ids, entries = _json(reply.output_ids), _json(meta.output_token_logprobs)
        return self._piece(
            meta,
            None if ids is None else self._ids.read(ids),
            None if entries is None else self._entries.read(entries),
            total,
            new,
        )

    def _count(self, meta: _MetaInfo[Raw]) -> tuple[int, int]:
        """Return how many tokens there are, and how many of them are new."""
        seen, total = self._tally.tokens, meta.completion_tokens
        if _is_abort(meta) and (total is None or total < seen):
            return seen, 0  # some servers do not count the tokens of what they abort
        if total is None:
            raise ReplyError("$.meta_info.completion_tokens is missing")
        if total < seen:
            raise ReplyError(f"$.meta_info.completion_tokens is {total}, after {seen} tokens")
        return total, total - seen

    def _piece(
        self, meta: _MetaInfo[Any], ids: list[int] | None, entries: list[_Entry] | None, total: int, new: int
    ) -> Piece | None:
        finish = None if meta.finish_reason is None else meta.finish_reason.type
        label = integer_label(meta.weight_version)
        if not new:
            return self._tally.piece([], [], finish, label)
        is_abort = finish == "abort"
        added = self._supported(ids, entries or [], new) if is_abort else _agreed(ids, entries, total, new)
        versions = (
            versions_of(meta.weight_versions, self._tally.tokens, new, _VERSIONS, is_abort=is_abort) or []
        )
        self._seen += added
        tokens, logprobs = [entry.token for entry in added], [entry.logprob for entry in added]
        return self._tally.piece(tokens, logprobs, finish, label, versions[: len(added)] or None)

    def _supported(self, ids: list[int] | None, entries: list[_Entry], new: int) -> list[_Entry]:
        """Return those of the *new* tokens of an abort that both lists have, up to one that they have not.

        A list of what is aborted may be short, or not there. None where it is not certain which they are.
        """
        seen = len(self._seen)
        repeats = entries[:seen] == self._seen[: len(entries)]
        if seen and repeats != (len(entries) > new):
            return []
        added = (entries[seen:] if repeats else entries)[:new]  # what is not counted has no versions
        if ids is None:
            return added if len(added) == new else []
        theirs = ids[seen:] if len(ids) > new else ids
        both = zip(added, theirs, strict=False)
        return [entry for entry, _ in takewhile(lambda pair: pair[0].token == pair[1], both)]


def _sampling(ask: Ask) -> dict[str, Any]:
    gconfig = ask.gconfig
    # Servers can be started with defaults of their own for the first four.
    sampling: dict[str, Any] = {
        "max_new_tokens": ask.max_new_tokens,
        "temperature": 0.0 if gconfig.greedy else gconfig.temperature,
        "top_p": gconfig.top_p,
        "top_k": gconfig.top_k,
    }
    optional = {
        "min_new_tokens": ask.min_new_tokens,
        "stop": gconfig.stop,
        "stop_token_ids": gconfig.stop_token_ids,
        "ignore_eos": gconfig.ignore_eos,
        "frequency_penalty": gconfig.frequency_penalty,
    }
    sampling.update({name: value for name, value in optional.items() if value})
    if not gconfig.skip_special_tokens:
        sampling["skip_special_tokens"] = False
    if gconfig.seed is not None:
        sampling["sampling_seed"] = gconfig.seed
    return sampling


def _post(path: str, body: dict[str, Any]) -> HttpCall:
    return HttpCall("POST", path, encode(body))


def _meta_info(reply: _Reply[Any, EntriesT]) -> _MetaInfo[EntriesT]:
    if reply.error is not None:
        raise failure(reply.error)
    if reply.meta_info is None:
        raise ReplyError("$.meta_info is missing")
    finish = reply.meta_info.finish_reason
    if finish is not None and (finish.status_code or 0) >= 400:
        # An abort that nobody asked for: the prompt is too long (400), the queue is full (503).
        raise failure({"message": finish.message or finish.type, "code": finish.status_code})
    return reply.meta_info


def _is_abort(meta: _MetaInfo[Any]) -> bool:
    return meta.finish_reason is not None and meta.finish_reason.type == "abort"


def _agreed(ids: list[int] | None, entries: list[_Entry] | None, total: int, new: int) -> list[_Entry]:
    """Return the *new* tokens. Raises ReplyError unless all are there, and the lists agree."""
    if entries is None:
        raise ReplyError(f"{_LOGPROBS} is missing")
    added = _newest(_LOGPROBS, entries, total, new)
    if ids is not None and [entry.token for entry in added] != _newest(_IDS, ids, total, new):
        raise ReplyError(f"{_IDS} has other tokens than {_LOGPROBS}")
    return added


def _json(raw: Raw | None) -> bytes | None:
    """Return the JSON of a list; None when there is none."""
    text = None if raw is None else bytes(raw)
    return None if text == b"null" else text


T = TypeVar("T")


def _newest(field: str, items: list[T], total: int, new: int) -> list[T]:
    """Return the *new* last of *items*, which are all *total* of them or only those."""
    if len(items) not in (total, new):
        raise ReplyError(f"{field} has {len(items)} entries, of {total} tokens with {new} new ones")
    return items[-new:]


BACKEND = SGLang()
