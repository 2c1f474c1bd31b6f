"""What may be asked of an engine: what is taken, what is refused and why, and what a request is made of."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest

from areal_core.types import GenerationHyperparameters, ModelRequest, ModelResponse, RolloutWorkflow

AT_LEAST = "give an integer of at least"
A_NUMBER = "give a finite number in"
A_FLAG = "give True or False"
FIELDS = "give fields by their names"
ODD = "has what is no token id"
NO_TOKEN = "cannot be interpreted as an integer; give integers"


@pytest.mark.parametrize(
    ("field", "value", "kind", "says"),
    [
        ("max_new_tokens", 0, ValueError, f"max_new_tokens=0 is below 1; {AT_LEAST} 1"),
        ("max_new_tokens", 2.0, TypeError, f"max_new_tokens=2.0 is not an int; {AT_LEAST} 1"),
        ("max_new_tokens", True, TypeError, f"max_new_tokens=True is not an int; {AT_LEAST} 1"),
        ("max_new_tokens", None, TypeError, f"max_new_tokens=None is not an int; {AT_LEAST} 1"),
        ("min_new_tokens", -1, ValueError, f"min_new_tokens=-1 is below 0; {AT_LEAST} 0"),
        ("min_new_tokens", 10**6, ValueError,
         "min_new_tokens=1000000 is more than max_new_tokens=16384; give less, or raise max_new_tokens"),
        ("temperature", -0.1, ValueError, f"temperature=-0.1 is out of range; {A_NUMBER} 0..inf"),
        ("temperature", float("nan"), ValueError, f"temperature=nan is out of range; {A_NUMBER} 0..inf"),
        ("temperature", float("inf"), ValueError, f"temperature=inf is out of range; {A_NUMBER} 0..inf"),
        ("temperature", False, TypeError, "temperature=False is not a number; give one"),
        ("temperature", "hot", TypeError, "temperature='hot' is not a number; give one"),
        ("top_p", 1.01, ValueError, f"top_p=1.01 is out of range; {A_NUMBER} 0..1"),
        ("top_p", 0, ValueError, "top_p=0 leaves no token to choose; greedy=True takes the likeliest"),
        ("top_k", 0, ValueError, "top_k=0 leaves no token to choose; -1 is no limit"),
        ("top_k", -2, ValueError, f"top_k=-2 is below -1; {AT_LEAST} -1"),
        ("frequency_penalty", float("-inf"), ValueError,
         f"frequency_penalty=-inf is out of range; {A_NUMBER} -inf..inf"),
        ("n_samples", 0, ValueError, f"n_samples=0 is below 1; {AT_LEAST} 1"),
        ("seed", "1", TypeError, "seed='1' is not an int; give an integer"),
        ("greedy", "no", TypeError, f"greedy='no' is not a bool; {A_FLAG}"),
        ("ignore_eos", 1, TypeError, f"ignore_eos=1 is not a bool; {A_FLAG}"),
        ("skip_special_tokens", None, TypeError, f"skip_special_tokens=None is not a bool; {A_FLAG}"),
        ("lora_name", "", ValueError, "lora_name is an empty text; give one with something in it"),
        ("stop", ["a", ""], ValueError, "stop is an empty text; give one with something in it"),
        ("stop", [b"a"], TypeError, "stop=b'a' is not a str; give a text"),
        ("stop", None, TypeError, "stop=None is neither a text nor several; give () for none"),
        ("stop_token_ids", [1, True], TypeError, "stop_token_ids has a bool; give integers"),
        ("stop_token_ids", [-1], ValueError, "stop_token_ids has -1; give integers from 0 to 2**63-1"),
        ("stop_token_ids", 7, TypeError,
         f"stop_token_ids {ODD}: 'int' object is not iterable; give integers"),
        ("extra", [1], TypeError, f"extra=[1] is not a mapping; {FIELDS}"),
        ("extra", {1: 2}, TypeError, f"extra has the key 1, which is not a str; {FIELDS}"),
    ],
)  # fmt: skip
def test_hyperparameters_that_make_no_sense_are_refused_with_what_would_do(
    field: str, value: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        GenerationHyperparameters(**{field: value})
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"input_ids": []}, ValueError, "input_ids is empty; a prompt has at least one token"),
        ({"input_ids": [3, -7, 2]}, ValueError, "input_ids has -7; give integers from 0 to 2**63-1"),
        ({"input_ids": [2**63]}, ValueError,
         "input_ids has 9223372036854775808; give integers from 0 to 2**63-1"),
        ({"input_ids": [1, False]}, TypeError, "input_ids has a bool; give integers"),
        ({"input_ids": [1.0]}, TypeError,
         f"input_ids {ODD}: 'float' object {NO_TOKEN}"),
        ({"input_ids": "1, 2"}, TypeError,
         f"input_ids {ODD}: 'str' object {NO_TOKEN}"),
        ({"input_ids": None}, TypeError,
         f"input_ids {ODD}: 'NoneType' object is not iterable; give integers"),
        ({"input_ids": [1], "gconfig": {"temperature": 1}}, TypeError,
         "gconfig={'temperature': 1} is not a GenerationHyperparameters; give one"),
        ({"input_ids": [1], "rid": ""}, ValueError, "rid is an empty text; give one with something in it"),
        ({"input_ids": [1], "rid": 5}, TypeError, "rid=5 is not a str; give a text"),
        ({"input_ids": [1], "extra": "x"}, TypeError, f"extra='x' is not a mapping; {FIELDS}"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused_with_what_would_do(
    fields: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        ModelRequest(**fields)
    assert str(refused.value) == says


def test_a_row_of_a_matrix_is_a_prompt_and_a_matrix_is_none() -> None:
    matrix: Any = np.arange(6).reshape(2, 3)
    assert ModelRequest(matrix[0]).input_ids == [0, 1, 2]
    with pytest.raises(TypeError, match="input_ids has what is no token id"):
        ModelRequest(matrix)
    with pytest.raises(TypeError, match="input_ids has what is no token id"):
        ModelRequest(matrix[0] > 1)


def test_numbers_of_numpy_become_pythons_own_and_json_has_words_for_all_fields() -> None:
    wanted = GenerationHyperparameters(
        max_new_tokens=np.int32(9),  # type: ignore[arg-type]
        min_new_tokens=np.uint8(1),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=np.float64(0.25),
        top_k=np.int64(4),  # type: ignore[arg-type]
        seed=np.int64(7),  # type: ignore[arg-type]
        frequency_penalty=np.float16(0.5),  # type: ignore[arg-type]
        stop_token_ids=np.array([2, 3]),  # type: ignore[arg-type]
        stop="end",
    )
    assert wanted == GenerationHyperparameters(
        max_new_tokens=9, min_new_tokens=1, temperature=0.5, top_p=0.25, top_k=4, seed=7,
        frequency_penalty=0.5, stop_token_ids=(2, 3), stop=("end",),
    )  # fmt: skip
    msgspec.json.encode(dataclasses.asdict(wanted))
    tokens: list[Any] = [np.int64(1), np.uint16(2), 3]
    request = ModelRequest(tokens)
    assert list(map(type, request.input_ids)) == [int] * 3
    msgspec.json.encode(request.input_ids)


def test_what_the_caller_changes_later_changes_no_request() -> None:
    tokens, extra, stop = [1, 2], {"a": 1}, ["x"]
    wanted = GenerationHyperparameters(extra=extra, stop=stop)
    request = ModelRequest(tokens, wanted, extra=extra)
    tokens.append(3)
    extra["b"] = 2
    stop.append("y")
    assert (request.input_ids, request.extra, wanted.extra, wanted.stop) == (
        [1, 2],
        {"a": 1},
        {"a": 1},
        ("x",),
    )
    for one, field in ((wanted, "seed"), (request, "rid")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field, None)


def test_new_makes_a_changed_copy_and_checks_it() -> None:
    wanted = GenerationHyperparameters(max_new_tokens=5, stop=("x",))
    changed = wanted.new(temperature=0.0)
    assert (changed.max_new_tokens, changed.stop, changed.temperature, wanted.temperature) == (
        5,
        ("x",),
        0.0,
        1.0,
    )
    with pytest.raises(ValueError, match="max_new_tokens=-1 is below 1"):
        wanted.new(max_new_tokens=-1)


def a_response() -> ModelResponse:
    return ModelResponse(
        input_tokens=[1, 2],
        output_tokens=[3],
        output_logprobs=[-0.5],
        output_versions=[4],
        versions_exact=True,
        stop_reason="stop",
        latency=0.5,
        ttft=None,
    )


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_they_can_be_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    wanted = GenerationHyperparameters(stop="x", extra=MappingProxyType({"a": 1}))
    request = ModelRequest([1, 2], wanted, rid="talk", metadata={"a": 1}, extra=MappingProxyType({"b": 2}))
    for one in (wanted, request, a_response()):
        assert copied(one) == one


def test_a_prompt_is_not_in_what_a_request_looks_like() -> None:
    shown = repr(ModelRequest(list(range(32_000)), rid="talk"))
    assert "rid='talk'" in shown
    assert "31999" not in shown
    with pytest.raises(TypeError) as refused:
        GenerationHyperparameters(max_new_tokens=list(range(32_000)))  # type: ignore[arg-type]
    assert len(str(refused.value)) < 200


def test_a_response_counts_its_tokens() -> None:
    response = a_response()
    assert (response.input_len, response.output_len, response.segments) == (2, 1, 1)


def test_a_workflow_without_its_method_cannot_be_made() -> None:
    class Unfinished(RolloutWorkflow):
        pass

    with pytest.raises(TypeError, match="arun_episode"):
        Unfinished()  # type: ignore[abstract]
