"""Making tokens: many generations at once, up to what is due or a little ahead."""

from __future__ import annotations

from collections.abc import Iterable

from areal_core.embedded._generating.generation import Generation
from areal_core.embedded._models.model import Model
from areal_core.embedded._models.tokens import Finish, Prefix
from areal_core.embedded._models.weights import Weights

# A request for very many tokens at no pace must not hold the others up for long.
_MOST_AT_ONCE = 256


def make(model: Model, generations: Iterable[Generation], weights: Weights, now: float) -> None:
    """Make the tokens of *generations* that are due at *now*, and those that *model* makes ahead."""
    goals = {one: _goal(one, model, now) for one in generations}
    while batch := [one for one, goal in goals.items() if one.drafted is None and one.made < goal]:
        made = model.step([one.prefix for one in batch], weights)
        for one, (token, logprob) in zip(batch, made, strict=True):
            one.draft(token, logprob, weights)
            one.drafted = _stop(one.prefix, model) or one.end_by_count()


def _goal(generation: Generation, model: Model, now: float) -> float:
    return min(generation.due(now) + model.ahead, generation.made + _MOST_AT_ONCE)


def _stop(prefix: Prefix, model: Model) -> Finish | None:
    """Return what in the last tokens of *prefix* stops it, or None."""
    tokens, sampling = prefix.tokens, prefix.sampling
    if len(tokens) < sampling.min_new_tokens:
        return None
    last = tokens[-1]
    if last in sampling.stop_token_ids or (last == model.end_token and not sampling.ignore_eos):
        return Finish("stop", last)
    if sampling.stop:
        longest = max(len(stop.encode("utf-8", "surrogatepass")) for stop in sampling.stop)
        tail = model.decode(tokens[-longest:])
        for stop in sampling.stop:
            if tail.endswith(stop):
                return Finish("stop", stop)
    return None
