"""The loss of GRPO with decoupled PPO, and its gradient through the transformer, by hand.

The weights a token was sampled with may be a few versions old by the time it is trained on. So there are
three policies: the *behaviour* policy that sampled, the *proximal* one as it is when a step begins, and
the one that is being optimized. PPO's ratio is taken to the proximal policy, so that clipping bounds how
far one step goes and not how old a token may be; what separates behaviour from proximal becomes a weight:

    loss = -mean over tokens of  weight x min(ratio A, clip(ratio, 1 - 0.2, 1 + 0.2) A)  -  0.1 entropy
    ratio = current / proximal        weight = min(proximal / behaviour, 5)

The mean is over the tokens with a mask of 1. N is the number of rows, T that of tokens in each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from areal_core.embedded import policy
from areal_core.embedded.policy import Activations, Floats, Parameters, Tokens

CLIP = 0.2
LARGEST_WEIGHT = 5.0
ENTROPY_BONUS = 0.1


class Samples(NamedTuple):
    """What a gradient is computed from."""

    tokens: Tokens
    """N, T."""
    mask: Floats
    """N, T - 1: 1 where the second token and those after it are trained on, else 0."""
    behaviour: Floats
    """N, T - 1: log-probabilities of those tokens when they were sampled."""
    proximal: Floats
    """N, T - 1: the same when the step began."""
    advantages: Floats
    """N."""

    def rows(self, chosen: NDArray[np.integer]) -> Samples:
        """Return some of the rows."""
        return Samples(*(array[chosen] for array in self))


def group_advantages(rewards: Floats) -> Floats:
    """Return how much better each reward is than those of its group, in standard deviations.

    *rewards* are those of one group; the advantages of a group whose rewards are all equal are 0.
    """
    return np.asarray((rewards - rewards.mean()) / (rewards.std() + 1e-6))


def logprobs_of(parameters: Parameters, tokens: Tokens) -> Floats:
    """Return the log-probabilities, N, T - 1, of the second token of each row and those after it."""
    logits = policy.run(parameters, tokens).logits[:, :-1]
    return _chosen(_log_softmax(logits), tokens)


def loss_and_gradient(parameters: Parameters, samples: Samples) -> tuple[float, dict[str, Floats]]:
    """Return the loss of *samples*, which have at least one token to train on, and its gradient."""
    activations = policy.run(parameters, samples.tokens)
    loss, by_logits = _loss(activations.logits[:, :-1], samples)
    gradient = np.zeros_like(activations.logits)  # nothing follows the last token
    gradient[:, :-1] = by_logits
    return loss, backward(parameters, samples.tokens, activations, gradient)


def _loss(logits: Floats, samples: Samples) -> tuple[float, Floats]:
    """Return the loss, and its gradient by *logits*."""
    logs = _log_softmax(logits)
    probabilities = np.exp(logs)
    current = _chosen(logs, samples.tokens)
    ratio = np.exp(current - samples.proximal)
    weight = np.minimum(np.exp(samples.proximal - samples.behaviour), LARGEST_WEIGHT)
    advantages = samples.advantages[:, None]
    free = ratio * advantages
    clipped = np.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages
    entropy = -(probabilities * logs).sum(-1)
    count = samples.mask.sum()

    gain = weight * np.minimum(free, clipped) + ENTROPY_BONUS * entropy
    loss = float(-(gain * samples.mask).sum() / count)

    # d ratio / d current = ratio; where the clipped one is the smaller, the gain does not change.
    by_current = weight * np.where(free <= clipped, free, 0)
    by_logits = -probabilities * by_current[..., None]
    rows, places = np.indices(current.shape)
    by_logits[rows, places, samples.tokens[:, 1:]] += by_current
    by_logits -= ENTROPY_BONUS * probabilities * (logs + entropy[..., None])
    return loss, np.asarray(-by_logits * (samples.mask / count)[..., None])


def backward(
    parameters: Parameters, tokens: Tokens, forward: Activations, by_logits: Floats
) -> dict[str, Floats]:
    """Return the gradient by each parameter, from that by the logits: `policy.run` in reverse."""
    scale = forward.query.shape[-1] ** -0.5
    by_output = by_logits @ parameters["unembedding"].T
    by_hidden = by_output @ parameters["mlp_out"].T * (forward.hidden > 0)
    by_attended = by_output + by_hidden @ parameters["mlp_in"].T
    by_attention = by_attended @ forward.value.swapaxes(1, 2)
    by_value = forward.attention.swapaxes(1, 2) @ by_attended
    # Softmax. What is masked has the attention 0, and so no gradient.
    inner = (by_attention * forward.attention).sum(-1, keepdims=True)
    by_scores = forward.attention * (by_attention - inner) * scale
    by_query = by_scores @ forward.key
    by_key = by_scores.swapaxes(1, 2) @ forward.query
    by_embedded = (
        by_attended
        + by_query @ parameters["query"].T
        + by_key @ parameters["key"].T
        + by_value @ parameters["value"].T
    )
    one_hot = np.eye(len(parameters["embedding"]), dtype=by_embedded.dtype)[tokens]
    position = np.zeros_like(parameters["position"])
    position[: tokens.shape[1]] = by_embedded.sum(0)
    return {
        "embedding": _product(one_hot, by_embedded),
        "position": position,
        "query": _product(forward.embedded, by_query),
        "key": _product(forward.embedded, by_key),
        "value": _product(forward.embedded, by_value),
        "mlp_in": _product(forward.attended, by_hidden),
        "mlp_out": _product(forward.hidden, by_output),
        "unembedding": _product(forward.output, by_logits),
    }


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _chosen(logs: Floats, tokens: Tokens) -> Floats:
    """Return of *logs*, N, T - 1, 13, those of the tokens that did follow."""
    return np.asarray(np.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0])


def _product(inputs: Floats, by_outputs: Floats) -> Floats:
    """Return the gradient by the matrix that took *inputs*, N, T, k, to outputs N, T, m."""
    return inputs.reshape(-1, inputs.shape[-1]).T @ by_outputs.reshape(-1, by_outputs.shape[-1])
