"""The embedded server's small transformer: its tokens, its sampling, and its file of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core.embedded import EmbeddedServer, policy, write_weights
from areal_core.embedded._models.tokens import Prefix, Sampling
from areal_core.embedded._models.transformer import PolicyModel, _uniform
from areal_core.embedded._models.weights import Weights, WeightsError
from calls import call, generate

PARAMETERS = policy.initial()
WEIGHTS = Weights(0, content=PARAMETERS)
PROMPT = policy.encode("314=")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once, in the mode policy."""
    with EmbeddedServer(ms_per_token=0, mode="policy") as server:
        yield server


def sample(tokens: list[int], key: str = "r", **sampling: Any) -> int:
    """Return what follows *tokens*."""
    ((token, _),) = PolicyModel().step([Prefix(key, tokens, Sampling(**sampling))], WEIGHTS)
    return token


def frequencies(tokens: list[int], count: int, **sampling: Any) -> dict[int, float]:
    """Return how often each token follows *tokens* in *count* requests."""
    batch = [Prefix(f"r-{number}", tokens, Sampling(**sampling)) for number in range(count)]
    seen = Counter(token for token, _ in PolicyModel().step(batch, WEIGHTS))
    return {token: times / count for token, times in seen.items()}


# The transformer


def test_it_has_32_384_parameters_and_computes_in_32_bits() -> None:
    assert sum(array.size for array in PARAMETERS.values()) == 32_384
    activations = policy.run(PARAMETERS, np.zeros((2, 5), np.int64))
    assert {one.dtype for one in (*activations, *PARAMETERS.values())} == {np.dtype(np.float32)}


def test_a_seed_draws_what_it_drew_when_there_were_16_places() -> None:
    draw = np.random.default_rng(7)
    shapes = {**policy.SHAPES, "position": (16, 64)}
    drawn = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
    others = draw.standard_normal((policy.PLACES - 16, 64))
    drawn["position"] = np.concatenate([drawn["position"], others])
    for name, array in policy.initial(7).items():
        assert array.shape == policy.SHAPES[name]
        assert np.corrcoef(array.ravel(), drawn[name].ravel())[0, 1] == pytest.approx(1, abs=1e-6)


@given(st.lists(st.integers(0, policy.END), min_size=1, max_size=9), st.integers(0, policy.END))
def test_a_row_of_logits_depends_on_the_tokens_before_it_alone(tokens: list[int], other: int) -> None:
    alone = policy.next_logits(PARAMETERS, [tokens])[0]
    among = policy.next_logits(PARAMETERS, [[other], tokens, [other] * 9])[1]
    assert np.allclose(alone, among, atol=1e-5)


def test_a_prompt_stands_with_its_separator_at_place_6_however_it_is_padded() -> None:
    assert policy.place(PROMPT) == [policy.PAD] * 3 + PROMPT
    assert policy.place([*PROMPT, 4, 1]) == [policy.PAD] * 3 + [*PROMPT, 4, 1]
    assert policy.place(policy.place(PROMPT)) == policy.place(PROMPT)
    assert policy.place([1] * 8) == [1] * 8
    assert policy.decode([*policy.place(PROMPT), policy.END]) == "___314="


def test_equal_parts_of_a_computation_by_hand() -> None:
    # One token: it attends to itself alone.
    x = PARAMETERS["embedding"][3] + PARAMETERS["position"][0]
    x = x + x @ PARAMETERS["value"]
    x = x + np.maximum(x @ PARAMETERS["mlp_in"], 0) @ PARAMETERS["mlp_out"]
    assert np.allclose(policy.next_logits(PARAMETERS, [[3]])[0], x @ PARAMETERS["unembedding"], atol=1e-5)
    # Two: how much of each is a matter of query and key.
    activations = policy.run(PARAMETERS, np.array([[3, 4]]))
    scores = [activations.query[0, 1] @ activations.key[0, place] / 8 for place in (0, 1)]
    share = 1 / (1 + math.exp(scores[1] - scores[0]))
    assert activations.attention[0] == pytest.approx(np.array([[1, 0], [share, 1 - share]]), abs=1e-5)


# Sampling


def test_temperature_0_takes_the_likeliest_token_whatever_the_request() -> None:
    likeliest = int(policy.next_logits(PARAMETERS, [PROMPT])[0].argmax())
    assert frequencies(PROMPT, 50, temperature=0.0) == {likeliest: 1.0}
    assert frequencies(PROMPT, 50, temperature=1e-30) == {likeliest: 1.0}
    assert frequencies(PROMPT, 50, temperature=1.0, top_p=0.0) == {likeliest: 1.0}


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_tokens_are_as_frequent_as_their_probability(temperature: float) -> None:
    expected = policy.softmax(policy.next_logits(PARAMETERS, [PROMPT])[0] / temperature)
    seen = frequencies(PROMPT, 20_000, temperature=temperature)
    for token, chance in enumerate(expected):
        assert seen.get(token, 0) == pytest.approx(float(chance), abs=0.012)  # 3.5 sigma at most


def test_top_p_keeps_the_fewest_tokens_that_have_it_together() -> None:
    chances = policy.softmax(policy.next_logits(PARAMETERS, [PROMPT])[0])
    order = np.argsort(-chances)
    for kept in (1, 3, 12):
        share = float(chances[order[:kept]].sum()) - 1e-4
        seen = frequencies(PROMPT, 3000, temperature=1.0, top_p=share)
        assert set(seen) == {int(token) for token in order[:kept]}


def test_a_draw_depends_on_the_seed_of_the_request_or_else_on_its_id() -> None:
    keys = [f"r-{number}" for number in range(40)]
    assert len({sample(PROMPT, key) for key in keys}) > 5
    assert len({sample(PROMPT, key, seed=3) for key in keys}) == 1
    assert len({sample(PROMPT, "r", seed=seed) for seed in range(40)}) > 5
    assert [sample(PROMPT, key) for key in keys] == [sample(PROMPT, key) for key in keys]


def test_each_token_of_a_generation_is_drawn_anew() -> None:
    draws = {
        _uniform(Prefix("r", [*PROMPT, token], Sampling(seed=seed))) for token in range(9) for seed in (0, 1)
    }
    assert len(draws) == 18
    assert all(0 <= draw < 1 for draw in draws)


def test_the_end_is_not_drawn_where_it_may_not_be() -> None:
    assert policy.END in frequencies(PROMPT, 500)
    assert policy.END not in frequencies(PROMPT, 500, ignore_eos=True)
    assert policy.END not in frequencies(PROMPT, 500, min_new_tokens=2)
    assert policy.END in frequencies(PROMPT, 500, min_new_tokens=1)


# The server


def test_a_generation_resumed_from_its_first_tokens_goes_on_as_it_would_have(server: EmbeddedServer) -> None:
    digits = "0123456789abcdef" * 2
    for temperature in (0, 1):
        params = {"temperature": temperature}  # as many tokens as there is room for
        body = {"return_logprob": True, "sampling_params": params}
        for request in range(10):
            rid = f"r-{request}"
            whole = generate(server, input_ids=PROMPT, rid=f"{rid}-{digits}", **body)
            tokens = whole["output_ids"]
            for cut in range(len(tokens)):
                rest = generate(server, input_ids=PROMPT + tokens[:cut], rid=f"{rid}-{digits[::-1]}", **body)
                assert rest["output_ids"] == tokens[cut:]
                ended = [one["meta_info"]["finish_reason"]["type"] for one in (rest, whole)]
                assert ended[0] == ended[1]


def test_a_reply_has_the_log_probabilities_of_the_policy_itself(server: EmbeddedServer) -> None:
    reply = generate(
        server, text="314=", return_logprob=True, sampling_params={"temperature": 0.5, "ignore_eos": True}
    )
    prefix = list(PROMPT)
    for logprob, token, _ in reply["meta_info"]["output_token_logprobs"]:
        logits = policy.next_logits(PARAMETERS, [prefix])[0]
        logits[policy.END] = -np.inf
        assert logprob == pytest.approx(float(np.log(policy.softmax(logits)[token])), abs=1e-4)
        prefix.append(token)
    # It ends where there is no more room, though 128 tokens were asked for.
    assert len(policy.place(prefix)) == policy.PLACES
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 25}
    full = generate(server, input_ids=prefix)
    assert (full["output_ids"], full["meta_info"]["finish_reason"]["type"]) == ([], "length")


def test_new_weights_are_loaded_from_a_file(server: EmbeddedServer, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    policy.save(path, policy.initial(1), 4)
    body = {"text": "271=", "sampling_params": {"temperature": 0, "max_new_tokens": 1}}
    with EmbeddedServer(ms_per_token=0, mode="policy", weights=path) as other:
        assert other.log()[0]["version"] == 4
        expected = int(policy.next_logits(policy.initial(1), [policy.encode("271=")])[0].argmax())
        assert generate(other, **body)["output_ids"] == [expected]
        policy.save(path, PARAMETERS, 5)
        status, _ = call(other, "POST", "/update_weights_from_disk", {"model_path": str(path)})
        assert status == 200
        assert generate(other, **body)["output_ids"] == generate(server, **body)["output_ids"]
        assert other.log()[-1]["versions"] == [[5, 1]]


def test_weights_too_large_to_compute_with_fail_each_request_in_the_words_of_its_dialect(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    path = tmp_path / "weights.npz"
    huge = {name: np.full_like(array, 1e38) for name, array in PARAMETERS.items()}
    try:
        policy.save(path, huge, 1)
        call(server, "POST", "/update_weights_from_disk", {"model_path": str(path)})
        message = "the server failed: IndexError: index 13 is out of bounds for axis 0 with size 13"
        for _ in range(2):
            status, reply = call(server, "POST", "/generate", {"text": "314=", "rid": "r"})
            assert (status, reply) == (500, {"error": {"message": message}})
        status, reply = call(server, "POST", "/v1/completions", {"prompt": "314="})
        error = {"message": message, "type": "server_error", "param": None, "code": 500}
        assert (status, reply) == (500, {"error": error})
        assert server.stats().in_flight == 0
    finally:
        policy.save(path, PARAMETERS, 0)
        assert call(server, "POST", "/update_weights_from_disk", {"model_path": str(path)})[0] == 200
    assert generate(server, text="314=")["output_ids"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"text": "1+1="}, 'the policy reads digits, "=" and "_"; \'1+1=\' has others'),
        (
            {"text": "1=", "sampling_params": {"temperature": 10**400}},
            f"sampling_params.temperature=1{'0' * 17}...{'0' * 19} is not in 0..1e+09",
        ),
        ({"input_ids": [13]}, "the policy has tokens 0..12; the prompt has 13"),
        ({"input_ids": [1] * 33}, "the policy has room for 32 tokens; the prompt has 33"),
    ],
)
def test_what_it_cannot_read_is_refused(server: EmbeddedServer, body: Any, problem: str) -> None:
    assert call(server, "POST", "/generate", body) == (400, {"error": {"message": problem}})


# Its file


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    policy.save(path, PARAMETERS, 12)
    version, parameters = policy.load(path)
    assert version == 12
    assert parameters.keys() == PARAMETERS.keys()
    assert all(np.array_equal(parameters[name], PARAMETERS[name]) for name in PARAMETERS)
    with pytest.raises(OSError, match="directory"):
        policy.save(tmp_path, PARAMETERS, 1)
    assert [one.name for one in tmp_path.iterdir()] == ["weights.npz"]


def test_a_file_that_is_not_its_own_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"

    def refused(problem: str) -> None:
        with pytest.raises(WeightsError, match=problem):
            policy.load(path)

    refused("^cannot read the weights '.*weights.npz': No such file or directory$")
    write_weights(path, 3)
    refused("^the weights '.*weights.npz' are no .npz that save\\(\\) wrote$")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused("are no .npz that save")
    path.write_bytes(b"PK\3\4 and no more")
    refused("are no .npz that save")
    good: dict[str, Any] = {"version": np.int64(1), **PARAMETERS}
    bad: list[tuple[str, Any, str]] = [
        ("query", np.zeros((64, 63), np.float32), r"query is not \(64, 64\) finite 32-bit floats$"),
        ("query", np.zeros((64, 64)), r"query is not \(64, 64\) finite 32-bit floats$"),
        ("query", np.full((64, 64), np.nan, np.float32), r"query is not \(64, 64\) finite 32-bit floats$"),
        ("version", np.array([1]), "the version is not a 64-bit integer$"),
        ("version", np.array(1.0), "the version is not a 64-bit integer$"),
        ("query", np.array([print], object), "are no .npz that save"),  # a pickle, which could run anything
    ]
    for name, value, problem in bad:
        with path.open("wb") as file:
            np.savez(file, **(good | {name: value}))
        refused(problem)
    del good["version"]
    with path.open("wb") as file:
        np.savez(file, **good)
    refused("are no .npz that save")
