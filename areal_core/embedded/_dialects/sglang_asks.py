"""SGLang's dialect: what a body of ``POST /generate`` asks for.

Fields this server cannot honour are refused rather than ignored where the reply would lack something
or have something else in it (``n``, log-probabilities of the prompt). Those that only shape the
distribution of the tokens are checked, and of them ``temperature``, ``top_p`` and ``sampling_seed`` matter
to the policy alone: elsewhere the next token is a function of the tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from areal_core.embedded._checks import BadRequestError, boolean, integer, mapping, string, token_ids
from areal_core.embedded._dialects.asked import (
    WITHOUT_EFFECT,
    flag,
    given,
    read_sampling,
    refuse_unless,
    seed,
)
from areal_core.embedded._generating.generation import Ask
from areal_core.embedded._models.letters import CONTEXT_TOKENS
from areal_core.embedded._models.tokens import Sampling

_WITH_EFFECT = frozenset(
    {
        "max_new_tokens",
        "min_new_tokens",
        "ignore_eos",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_p",
        "sampling_seed",
        "n",
        "skip_special_tokens",
        "no_stop_trim",
    }
)
_REFUSED_UNLESS: Mapping[str, tuple[object, ...]] = {
    "logprob_start_len": (-1, None),
    "top_logprobs_num": (0, None),
    "token_ids_logprob": (None,),
    "return_routed_experts": (False, None),
    "image_data": (None,),
    "lora_path": (None,),
}


@dataclass(frozen=True)
class Wish:
    """One prompt of a request: what to generate, and how to show it."""

    ask: Ask
    return_logprob: bool
    return_text_in_logprobs: bool
    skip_special_tokens: bool
    no_stop_trim: bool


@dataclass(frozen=True)
class Order:
    """A request: its wishes, and how to answer."""

    wishes: Sequence[Wish]
    batched: bool
    """Whether the answer is a list."""
    stream: bool


def read(body: Any, new_id: Callable[[], str], encode: Callable[[str], list[int]]) -> Order:
    """Return what the decoded *body* asks for.

    Raises BadRequestError for a body that SGLang would refuse, or that asks for what is not here.
    """
    fields = mapping("body", body)
    refuse_unless(fields, _REFUSED_UNLESS)
    prompts, batched = _prompts(fields, encode)
    rids = _rids(fields.get("rid"), len(prompts) if batched else None)
    params = _spread("sampling_params", fields.get("sampling_params"), len(prompts) if batched else None)
    logprob = _spread("return_logprob", fields.get("return_logprob"), len(prompts) if batched else None)
    in_text = boolean("return_text_in_logprobs", fields.get("return_text_in_logprobs") or False)
    wishes = []
    for prompt, rid, (where, some), (name, wanted) in zip(prompts, rids, params, logprob, strict=True):
        values = mapping(where, {} if some is None else some)
        wishes.append(
            Wish(
                Ask(new_id() if rid is None else rid, prompt, _sampling(where, values, len(prompt))),
                boolean(name, wanted or False),
                in_text,
                flag(f"{where}.", values, "skip_special_tokens", True),
                flag(f"{where}.", values, "no_stop_trim", False),
            )
        )
    return Order(wishes, batched, boolean("stream", fields.get("stream") or False))


def _prompts(fields: dict[str, Any], encode: Callable[[str], list[int]]) -> tuple[list[Sequence[int]], bool]:
    """Return the prompts, and whether they are a batch: a list of texts, or a list of lists of ids."""
    text, ids = fields.get("text"), fields.get("input_ids")
    if text is not None and ids is not None:
        raise BadRequestError("text", text, "and input_ids are two prompts; give one of them")
    if text is not None:

        def text_prompt(name: str, value: Any) -> Sequence[int]:
            return encode(string(name, value))

        return _one_or_more("text", text, isinstance(text, list), text_prompt)
    if ids is not None:
        return _one_or_more("input_ids", ids, _is_nested(ids), _ids_prompt)
    raise BadRequestError("input_ids", ids, "is no prompt; give input_ids or text")


def _one_or_more(
    name: str, value: Any, batched: bool, read_one: Callable[[str, Any], Sequence[int]]
) -> tuple[list[Sequence[int]], bool]:
    if not batched:
        return [read_one(name, value)], False
    if not value:
        raise BadRequestError(name, value, "is empty; give at least one prompt")
    return [read_one(f"{name}[{index}]", one) for index, one in enumerate(value)], True


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def _ids_prompt(name: str, value: Any) -> Sequence[int]:
    if not isinstance(value, list) or not value:
        raise BadRequestError(name, value, "is not a list of at least one token id")
    return token_ids(name, value)


def _rids(value: Any, count: int | None) -> list[str | None]:
    """Return an id or None per prompt; one id for a batch is numbered, as SGLang does it."""
    if value is None:
        return [None] * (count or 1)
    if count is None:
        return [string("rid", value)]
    if isinstance(value, str):
        return [f"{string('rid', value)}_{index}" for index in range(count)]
    return [string(name, rid) for name, rid in _spread("rid", value, count)]


def _spread(name: str, value: Any, count: int | None) -> list[tuple[str, Any]]:
    """Return name and value for each prompt of a batch of *count* (None: of the one prompt)."""
    if count is None:
        return [(name, value)]
    if not isinstance(value, list):
        return [(name, value)] * count
    if len(value) != count:
        raise BadRequestError(name, value, f"has {len(value)} values for {count} prompts")
    return [(f"{name}[{index}]", one) for index, one in enumerate(value)]


def _sampling(where: str, values: Mapping[str, Any], prompt_tokens: int) -> Sampling:
    for name, value in values.items():
        if name not in WITHOUT_EFFECT and name not in _WITH_EFFECT:
            raise BadRequestError(f"{where}.{name}", value, "is not a sampling parameter of this server")
    if values.get("n") not in (None, 1):
        raise BadRequestError(f"{where}.n", values["n"], "is not 1; send a batch of prompts")
    most = given(values, "max_new_tokens", Sampling.max_new_tokens)
    longest = integer(f"{where}.max_new_tokens", most, 0, CONTEXT_TOKENS)
    if prompt_tokens + longest > CONTEXT_TOKENS:
        problem = (
            f"after a prompt of {prompt_tokens} tokens is more than the {CONTEXT_TOKENS} there is room for"
        )
        raise BadRequestError(f"{where}.max_new_tokens", longest, problem)
    return Sampling(
        max_new_tokens=longest,
        min_new_tokens=integer(f"{where}.min_new_tokens", given(values, "min_new_tokens", 0), 0, longest),
        seed=seed(f"{where}.sampling_seed", values.get("sampling_seed")),
        **read_sampling(f"{where}.", values),
    )
