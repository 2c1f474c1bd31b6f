"""The backward pass of the demo's policy, written by hand, against differences of its forward pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from areal_core.embedded import policy
from areal_core.embedded.policy import SHAPES, Floats
from policy_gradient import Samples, backward, logprobs_of, loss_and_gradient

ROWS, WIDTH = 6, 12
STEP = 1e-6


def wide(seed: int, scale: float = 1.0) -> dict[str, Floats]:
    """Return parameters of 64 bits, with logits large enough to tell one token from another."""
    parameters: dict[str, Floats] = {
        name: array.astype(np.float64) for name, array in policy.initial(seed).items()
    }
    parameters["unembedding"] *= scale
    return parameters


def direction(name: str, seed: int = 7) -> Floats:
    """Return a direction in which every number of the parameter *name* changes."""
    return np.random.default_rng(seed).standard_normal(SHAPES[name])


def slope(function: Callable[[dict[str, Floats]], float], parameters: dict[str, Floats], name: str) -> float:
    """Return how fast *function* rises along the `direction` of the parameter *name*."""
    ahead, behind = (
        function({**parameters, name: parameters[name] + step * direction(name)}) for step in (STEP, -STEP)
    )
    return (ahead - behind) / (2 * STEP)


def tokens() -> policy.Tokens:
    return np.random.default_rng(1).integers(0, policy.END + 1, (ROWS, WIDTH))


def samples(parameters: dict[str, Floats]) -> Samples:
    """Return samples of older policies, so that of some tokens the ratio is clipped or the weight capped."""
    draw = np.random.default_rng(2)
    current = logprobs_of(parameters, tokens())
    proximal = current + draw.normal(0, 0.4, current.shape)
    mask = draw.integers(0, 2, current.shape).astype(np.float64)
    return Samples(
        tokens(), mask, proximal + draw.normal(0, 1.5, current.shape), proximal, draw.normal(0, 1, ROWS)
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_by_each_parameter_is_the_slope_of_the_logits(name: str) -> None:
    parameters = wide(0)
    by_logits = np.random.default_rng(3).standard_normal((ROWS, WIDTH, policy.END + 1))

    def weighted(parameters: dict[str, Floats]) -> float:
        return float((policy.run(parameters, tokens()).logits * by_logits).sum())

    gradient = backward(parameters, tokens(), policy.run(parameters, tokens()), by_logits)
    expected = slope(weighted, parameters, name)
    assert float((gradient[name] * direction(name)).sum()) == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert abs(expected) > 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_of_the_loss_is_its_slope(name: str) -> None:
    parameters = wide(4, scale=8.0)
    given = samples(parameters)

    def loss(parameters: dict[str, Floats]) -> float:
        return loss_and_gradient(parameters, given)[0]

    _, gradient = loss_and_gradient(parameters, given)
    expected = slope(loss, parameters, name)
    assert float((gradient[name] * direction(name)).sum()) == pytest.approx(expected, rel=1e-6)
    assert abs(expected) > 1e-4


def test_the_samples_of_these_tests_have_tokens_in_every_branch_of_the_loss() -> None:
    given = samples(wide(4, scale=8.0))
    ratio = np.exp(logprobs_of(wide(4, scale=8.0), given.tokens) - given.proximal)
    weight = np.exp(given.proximal - given.behaviour)
    gains = np.broadcast_to(given.advantages[:, None] > 0, ratio.shape)
    trained = given.mask > 0
    for branch in (ratio > 1.2, ratio < 0.8, (ratio > 0.8) & (ratio < 1.2), weight > 5, weight < 5):
        for side in (gains, ~gains):
            assert (branch & side & trained).any()


def test_nothing_becomes_64_bits_wide_on_the_way() -> None:
    parameters = policy.initial(0)
    given = samples(wide(0))
    narrow = Samples(given.tokens, *(array.astype(np.float32) for array in given[1:]))
    _, gradient = loss_and_gradient(parameters, narrow)
    assert {array.dtype for array in gradient.values()} == {np.dtype(np.float32)}
    assert logprobs_of(parameters, given.tokens).dtype == np.float32


def test_tokens_without_the_mask_count_only_as_what_came_before_others() -> None:
    parameters = wide(4, scale=8.0)
    given = samples(parameters)
    given.mask[:, WIDTH // 2 :] = 0
    other = given._replace(
        tokens=np.concatenate(
            [given.tokens[:, : WIDTH // 2 + 1], given.tokens[:, WIDTH // 2 + 1 :] * 0], axis=1
        ),
        behaviour=np.where(given.mask > 0, given.behaviour, -3.0),
        proximal=np.where(given.mask > 0, given.proximal, -2.0),
    )
    loss, gradient = loss_and_gradient(parameters, given)
    other_loss, other_gradient = loss_and_gradient(parameters, other)
    assert loss == pytest.approx(other_loss)
    for name, array in gradient.items():
        assert np.allclose(array, other_gradient[name], atol=1e-12)
    assert not gradient["position"][WIDTH // 2 :].any()
