from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from areal_core._engine.backend import HttpCall, ReplyError
from areal_core._engine.backends import backend_named
from areal_core.types import GenerationHyperparameters
from replies import an_ask, body_of

_SGLANG, _VLLM, _OPENAI = map(backend_named, ("sglang", "vllm", "openai"))
_TOKENS = _VLLM.variant(405)

_ALL_FIELDS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.75,
    "top_k": 20,
    "stop": ["\n", "end"],
    "stop_token_ids": [2, 3],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "seed": 0,
    "lora_name": "adapter",
    "frequency_penalty": -0.5,
}


def test_sglang_is_asked_for_a_stream_with_log_probabilities() -> None:
    call = _SGLANG.generate(an_ask())
    assert (call.method, call.path) == ("POST", "/generate")
    assert body_of(call) == {
        "rid": "talk-1",
        "input_ids": [5, 6, 7],
        "sampling_params": {"max_new_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": -1},
        "return_logprob": True,
        "stream": True,
    }


def test_sglang_is_told_all_that_was_chosen() -> None:
    body = body_of(_SGLANG.generate(an_ask(9, 4, **_ALL_FIELDS)))
    assert body["lora_path"] == "adapter"
    assert body["sampling_params"] == {
        "max_new_tokens": 9,
        "min_new_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 20,
        "stop": ["\n", "end"],
        "stop_token_ids": [2, 3],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "sampling_seed": 0,
        "frequency_penalty": -0.5,
    }


def test_vllm_is_asked_for_a_stream_of_token_ids_with_log_probabilities() -> None:
    call = _VLLM.generate(an_ask())
    assert (call.method, call.path) == ("POST", "/v1/completions")
    assert body_of(call) == {
        "prompt": [5, 6, 7],
        "request_id": "talk-1",
        "max_tokens": 64,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 0,
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def test_openai_is_asked_for_no_more_than_is_needed() -> None:
    call = _OPENAI.generate(an_ask(model="m"))
    assert (call.method, call.path) == ("POST", "/v1/completions")
    assert body_of(call) == {
        "model": "m",
        "prompt": [5, 6, 7],
        "max_tokens": 64,
        "temperature": 1.0,
        "top_p": 1.0,
        "logprobs": 1,
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def test_vllms_tokens_path_is_asked_for_a_stream_with_log_probabilities() -> None:
    call = _TOKENS.generate(an_ask(model="m"))
    assert (call.method, call.path) == ("POST", "/inference/v1/generate")
    assert body_of(call) == {
        "model": "m",
        "token_ids": [5, 6, 7],
        "sampling_params": {"max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "logprobs": 0},
        "request_id": "talk-1",
        "stream": True,
    }


@pytest.mark.parametrize("backend", [_VLLM, _OPENAI, _TOKENS], ids=["vllm", "openai", "tokens"])
def test_servers_of_completions_are_told_all_that_was_chosen(backend: Any) -> None:
    body = body_of(backend.generate(an_ask(9, 4, model="m", **_ALL_FIELDS)))
    assert body["model"] == "adapter"
    chosen = {
        "max_tokens": 9,
        "min_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 20,
        "stop": ["\n", "end"],
        "stop_token_ids": [2, 3],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "seed": 0,
        "frequency_penalty": -0.5,
    }
    parameters = body.get("sampling_params", body)
    assert {name: parameters.get(name) for name in chosen} == chosen


_EVERY = pytest.mark.parametrize(
    "backend", [_SGLANG, _VLLM, _OPENAI, _TOKENS], ids=["sglang", "vllm", "openai", "tokens"]
)


@_EVERY
def test_greedy_is_temperature_zero(backend: Any) -> None:
    body = body_of(backend.generate(an_ask(greedy=True, temperature=0.7)))
    assert body.get("sampling_params", body)["temperature"] == 0.0


@_EVERY
def test_extra_fields_of_the_ask_go_over_those_of_the_gconfig_and_those_over_ours(backend: Any) -> None:
    of_gconfig = {"stream": False, "priority": 1, "cache_salt": "a", "sampling_params": {"x": 1, "y": 1}}
    of_ask = {"cache_salt": "b", "sampling_params": {"y": 2}}
    ask = replace(an_ask(extra=of_ask), gconfig=GenerationHyperparameters(extra=of_gconfig))
    body = body_of(backend.generate(ask))
    assert (body["stream"], body["priority"], body["cache_salt"]) == (False, 1, "b")
    assert (body["sampling_params"]["x"], body["sampling_params"]["y"]) == (1, 2)


@pytest.mark.parametrize("backend", [_SGLANG, _TOKENS], ids=["sglang", "tokens"])
def test_extra_sampling_parameters_are_added_to_ours(backend: Any) -> None:
    plain = body_of(backend.generate(an_ask()))["sampling_params"]
    body = body_of(backend.generate(an_ask(extra={"sampling_params": {"min_p": 0.1, "top_p": 0.5}})))
    assert body["sampling_params"] == {**plain, "min_p": 0.1, "top_p": 0.5}


@_EVERY
def test_a_field_that_cannot_be_sent_is_a_type_error(backend: Any) -> None:
    with pytest.raises(TypeError):
        backend.generate(an_ask(extra={"thing": object()}))


def _call(call: HttpCall | None) -> tuple[object, ...] | None:
    if call is None:
        return None
    return call.name, None if call.body is None else json.loads(call.body), dict(call.params), call.optional


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (partial(_SGLANG.abort, "a-1"), ("POST /abort_request", {"rid": "a-1"}, {}, False)),
        (_SGLANG.abort_all, ("POST /abort_request", {"abort_all": True, "rid": ""}, {}, False)),
        (_SGLANG.pause, ("POST /pause_generation", {"mode": "abort"}, {}, False)),
        (_SGLANG.resume, ("POST /continue_generation", {}, {}, False)),
        (_SGLANG.health, ("GET /health", None, {}, False)),
        (_SGLANG.weight_version, ("GET /get_model_info", None, {}, True)),
        (_SGLANG.probe, None),
        (
            partial(_VLLM.abort, "a-1"),
            ("POST /abort_requests", {"request_ids": ["a-1", "cmpl-a-1-0"]}, {}, True),
        ),
        (_VLLM.abort_all, ("POST /abort_requests", {}, {}, False)),
        (_VLLM.pause, ("POST /pause", None, {"mode": "abort"}, False)),
        (_VLLM.resume, ("POST /resume", None, {}, False)),
        (_VLLM.health, ("GET /health", None, {}, False)),
        (_VLLM.weight_version, ("GET /weight_info", None, {}, True)),
        (_VLLM.probe, ("GET /inference/v1/generate", None, {}, False)),
        (
            partial(_TOKENS.abort, "a-1"),
            ("POST /inference/v1/abort_requests", {"request_ids": ["generate-tokens-a-1"]}, {}, True),
        ),
        (_TOKENS.abort_all, ("POST /abort_requests", {}, {}, False)),
        (_TOKENS.pause, ("POST /pause", None, {"mode": "abort"}, False)),
        (_TOKENS.probe, None),
        (partial(_OPENAI.abort, "a-1"), None),
        (_OPENAI.abort_all, None),
        (_OPENAI.pause, None),
        (_OPENAI.resume, None),
        (_OPENAI.health, ("GET /v1/models", None, {}, False)),
        (_OPENAI.weight_version, None),
        (_OPENAI.probe, None),
    ],
)
def test_control_calls_are_those_of_the_protocol(
    ask: Callable[[], HttpCall | None], expected: tuple[object, ...] | None
) -> None:
    assert _call(ask()) == expected


def test_sglang_loads_and_labels_weights_in_one_call() -> None:
    (call,) = _SGLANG.update_weights("/checkpoints/4", 4)
    assert _call(call) == (
        "POST /update_weights_from_disk",
        {
            "model_path": "/checkpoints/4",
            "weight_version": "4",
            "flush_cache": True,
            "abort_all_requests": True,
        },
        {},
        False,
    )


def test_vllm_loads_weights_and_then_labels_them_if_it_can() -> None:
    load, label = _VLLM.update_weights("/checkpoints/4", 4)
    rpc = {"method": "reload_weights", "kwargs": {"weights_path": "/checkpoints/4"}}
    assert _call(load) == ("POST /collective_rpc", rpc, {}, False)
    assert _call(label) == ("POST /update_weight_version", {"new_version": "4"}, {}, True)


def test_openai_loads_no_weights() -> None:
    assert tuple(_OPENAI.update_weights("/checkpoints/4", 4)) == ()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"success": true, "message": "Succeeded", "num_paused_requests": 0}', None),
        (b'{"success": true}', None),
        (b'{"success": false, "message": "no such file"}', "no such file"),
        (b'{"success": false, "message": null}', "it does not say why"),
        (b'{"success": false}', "it does not say why"),
    ],
)
def test_sglang_says_in_a_200_whether_weights_loaded(body: bytes, said: str | None) -> None:
    assert _SGLANG.check_update(body) == said


@pytest.mark.parametrize("body", [b"", b"{}", b'{"success": 1}', b"null"])
def test_an_answer_that_does_not_say_whether_weights_loaded_is_refused(body: bytes) -> None:
    with pytest.raises(ReplyError):
        _SGLANG.check_update(body)


@pytest.mark.parametrize("backend", [_VLLM, _OPENAI])
def test_where_the_status_says_it_the_body_of_an_update_is_not_read(backend: Any) -> None:
    assert backend.check_update(b"") is None


@pytest.mark.parametrize(
    ("backend", "body", "version"),
    [
        (_SGLANG, b'{"model_path": "m", "weight_version": "4"}', 4),
        (_SGLANG, b'{"weight_version": 4}', 4),
        (_SGLANG, b'{"weight_version": "default"}', None),
        (_SGLANG, b'{"weight_version": null}', None),
        (_SGLANG, b'{"weight_version": [4]}', None),
        (_SGLANG, b"{}", None),
        (_VLLM, b'{"weight_version": "4"}', 4),
        (_VLLM, b'{"version": 0}', 0),
        (_VLLM, b'{"weight_version": "5", "version": "0.20"}', 5),
        (_VLLM, b'{"version": {"step": 4}}', None),
        (_VLLM, b"{}", None),
        (_OPENAI, b"anything", None),
    ],
)
def test_the_version_of_weights_is_read_back_where_it_is_an_integer(
    backend: Any, body: bytes, version: int | None
) -> None:
    assert backend.read_weight_version(body) == version


@pytest.mark.parametrize("status", [200, 400, 405, 422])
def test_a_vllm_that_knows_the_tokens_path_is_asked_there(status: int) -> None:
    variant = _VLLM.variant(status)
    assert variant.generate(an_ask()).path == "/inference/v1/generate"
    assert variant.name == "vllm"
    assert variant.variant(404) is variant


@pytest.mark.parametrize("status", [401, 403, 404, 501])
def test_a_vllm_that_does_not_is_asked_for_completions(status: int) -> None:
    assert _VLLM.variant(status) is _VLLM


@pytest.mark.parametrize("backend", [_SGLANG, _OPENAI])
def test_others_have_one_variant(backend: Any) -> None:
    assert backend.variant(200) is backend
