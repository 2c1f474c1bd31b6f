"""What the embedded inference server says: tokens, the dialect of SGLang, errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core.embedded import EmbeddedServer, logprob_of, token_of
from areal_core.embedded._models.letters import END_TOKEN
from areal_core.embedded._models.tokens import Finish, Sampling
from areal_core.embedded._stats import COUNTERS
from calls import call, generate
from completions import complete, predict

# [21] is answered by eleven tokens: ten letters and the end.
KPX = [107, 112, 120, 109, 114, 110, 116, 97, 108, 103, END_TOKEN]
# b"hello" goes on for more than 128.
HELLO = list(b"hello")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once."""
    with EmbeddedServer(ms_per_token=0) as server:
        yield server


def finish(reply: Any) -> tuple[list[int], Any]:
    return reply["output_ids"], reply["meta_info"]["finish_reason"]


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20), st.integers(0, 128), st.integers(0, 2**63)
)
def test_a_generation_resumed_from_its_first_tokens_continues_as_if_it_had_not_stopped(
    prompt: list[int], cut: int, version: int
) -> None:
    whole = complete(prompt, version=version)
    head = complete(prompt, Sampling(max_new_tokens=cut), version)
    if head.drafted is not None and head.drafted.kind == "stop":
        assert head.tokens() == whole.tokens()
        return
    tail = complete(prompt + head.tokens(), Sampling(max_new_tokens=128 - cut), version)
    assert head.tokens() + tail.tokens() == whole.tokens()
    assert head.logprobs() + tail.logprobs() == whole.logprobs()
    assert tail.drafted == whole.drafted


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20), st.integers(0, 2**63), st.integers(1, 26)
)
def test_versions_less_than_27_apart_never_make_the_same_letter_and_end_at_the_same_tokens(
    prefix: list[int], version: int, more: int
) -> None:
    letters = [token_of(one, prefix, may_end=False) for one in (version, version + more)]
    assert letters[0] != letters[1]
    assert set(letters) <= set(b" abcdefghijklmnopqrstuvwxyz")
    assert logprob_of(version, prefix) != logprob_of(version + more, prefix)
    for letter, one in zip(letters, (version, version + more), strict=True):
        assert token_of(one, prefix) in (letter, END_TOKEN)
    assert (token_of(version, prefix) == END_TOKEN) == (token_of(version + more, prefix) == END_TOKEN)


def test_the_same_prompt_gets_the_same_answer_from_every_server(server: EmbeddedServer) -> None:
    with EmbeddedServer(ms_per_token=0, seed=5) as other:
        answers = [finish(generate(one, input_ids=[21])) for one in (server, other)]
    assert answers == [(KPX, {"type": "stop", "matched": END_TOKEN})] * 2
    assert predict(HELLO, 8)[0] == list(b"bxde ywr")


def test_lengths_spread_up_to_the_limit_and_a_third_of_them_reaches_it() -> None:
    completions = [complete([first]) for first in range(2000)]
    lengths = [len(one) for one in completions]
    assert 75 < statistics.mean(lengths) < 87  # 81: 128 draws that each end it with probability 1/128
    assert 0.32 < sum(one.drafted == Finish("length") for one in completions) / 2000 < 0.42
    assert min(lengths) <= 3
    for one in completions:
        assert (one.drafted == Finish("length")) == (one.tokens()[-1] != END_TOKEN)
        assert all(-23 < logprob <= 0 for logprob in one.logprobs())


def test_a_reply_has_the_fields_of_sglang(server: EmbeddedServer) -> None:
    reply = generate(server, input_ids=[21], rid="r-1", return_logprob=True)
    assert reply["meta_info"].pop("e2e_latency") >= 0
    _, logprobs = predict([21])
    assert reply == {
        "text": "kpxmrntalg",
        "output_ids": KPX,
        "meta_info": {
            "id": "r-1",
            "finish_reason": {"type": "stop", "matched": END_TOKEN},
            "prompt_tokens": 1,
            "completion_tokens": 11,
            "cached_tokens": 0,
            "weight_version": "default",
            "input_token_logprobs": [],
            "output_token_logprobs": [[one, token, None] for one, token in zip(logprobs, KPX, strict=True)],
        },
    }
    assert "output_token_logprobs" not in generate(server, input_ids=[21])["meta_info"]
    with_text = generate(server, input_ids=[21], return_logprob=True, return_text_in_logprobs=True)
    assert with_text["meta_info"]["output_token_logprobs"][0][1:] == [107, "k"]


def test_a_text_prompt_is_its_bytes(server: EmbeddedServer) -> None:
    reply = generate(server, text="hello")
    assert finish(reply) == (predict(HELLO)[0], {"type": "length", "length": 128})
    assert reply["text"].startswith("bxde ywr")
    assert generate(server, text="Ω")["meta_info"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "text"),
    [
        ({"max_new_tokens": 3}, KPX[:3], {"type": "length", "length": 3}, "kpx"),
        ({"max_new_tokens": 0}, [], {"type": "length", "length": 0}, ""),
        ({"max_new_tokens": 11}, KPX, {"type": "stop", "matched": END_TOKEN}, "kpxmrntalg"),
        ({"stop_token_ids": [120]}, KPX[:3], {"type": "stop", "matched": 120}, "kp"),
        ({"stop_token_ids": [120], "no_stop_trim": True}, KPX[:3], {"type": "stop", "matched": 120}, "kpx"),
        ({"stop": "xm"}, KPX[:4], {"type": "stop", "matched": "xm"}, "kp"),
        ({"stop": ["zz", "xm"]}, KPX[:4], {"type": "stop", "matched": "xm"}, "kp"),
        ({"stop": "xm", "no_stop_trim": True}, KPX[:4], {"type": "stop", "matched": "xm"}, "kpxm"),
        ({"stop_token_ids": [107], "min_new_tokens": 2}, None, None, None),
        ({"min_new_tokens": 11}, KPX, {"type": "stop", "matched": END_TOKEN}, "kpxmrntalg"),
        ({"no_stop_trim": True}, KPX, {"type": "stop", "matched": END_TOKEN}, "kpxmrntalg"),
        (
            {"no_stop_trim": True, "skip_special_tokens": False},
            KPX,
            {"type": "stop", "matched": END_TOKEN},
            "kpxmrntalg\4",
        ),
        (
            {"temperature": 0.0, "top_p": 0.9, "top_k": None},
            KPX,
            {"type": "stop", "matched": 4},
            "kpxmrntalg",
        ),
    ],
)
def test_sampling_parameters_end_a_generation_as_sglang_does(
    server: EmbeddedServer, params: dict[str, Any], tokens: list[int] | None, reason: Any, text: str | None
) -> None:
    reply = generate(server, input_ids=[21], sampling_params=params)
    if tokens is None:
        assert len(reply["output_ids"]) > 1
        return
    assert finish(reply) == (tokens, reason)
    assert reply["text"] == text


@pytest.mark.parametrize("params", [{"ignore_eos": True}, {"min_new_tokens": 40}])
def test_a_generation_that_may_not_end_yet_goes_on(server: EmbeddedServer, params: dict[str, Any]) -> None:
    tokens, reason = finish(generate(server, input_ids=[21], sampling_params={"max_new_tokens": 50} | params))
    assert tokens[:10] == KPX[:10]
    assert (len(tokens), reason["type"]) == (50, "length")
    assert END_TOKEN not in tokens


def test_a_batch_is_answered_by_a_list_in_its_order(server: EmbeddedServer) -> None:
    batch = generate(
        server,
        input_ids=[[21], HELLO],
        rid=["a", "b"],
        sampling_params=[{"max_new_tokens": 2}, {"max_new_tokens": 3}],
        return_logprob=[True, False],
    )
    assert [one["output_ids"] for one in batch] == [KPX[:2], list(b"bxd")]
    assert [one["meta_info"]["id"] for one in batch] == ["a", "b"]
    assert ["output_token_logprobs" in one["meta_info"] for one in batch] == [True, False]
    shared = generate(server, text=["x", "y"], rid="r", sampling_params={"max_new_tokens": 1})
    assert [(one["meta_info"]["id"], len(one["output_ids"])) for one in shared] == [("r_0", 1), ("r_1", 1)]
    (alone,) = generate(server, input_ids=[[21]])
    assert alone["output_ids"] == KPX


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "body=[] is not an object"),
        (b"", "body=b'' is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[1 2]", "body=b'[1 2]' is not JSON: Expecting ',' delimiter: line 1 column 4 (char 3)"),
        ({}, "input_ids=None is no prompt; give input_ids or text"),
        ({"text": "x", "input_ids": [1]}, "text='x' and input_ids are two prompts; give one of them"),
        ({"text": ""}, "text='' is not a string of at least one character"),
        ({"text": []}, "text=[] is empty; give at least one prompt"),
        ({"text": ["x", 1]}, "text[1]=1 is not a string of at least one character"),
        ({"input_ids": []}, "input_ids=[] is not a list of at least one token id"),
        ({"input_ids": "x"}, "input_ids='x' is not a list of at least one token id"),
        ({"input_ids": [1, -1]}, f"input_ids[1]=-1 is not an integer in 0..{2**63 - 1}"),
        ({"input_ids": [2**63]}, f"input_ids[0]={2**63} is not an integer in 0..{2**63 - 1}"),
        ({"input_ids": [True]}, f"input_ids[0]=True is not an integer in 0..{2**63 - 1}"),
        ({"input_ids": [[1], [1.5]]}, f"input_ids[1][0]=1.5 is not an integer in 0..{2**63 - 1}"),
        ({"input_ids": [[1], 2]}, "input_ids[1]=2 is not a list of at least one token id"),
        ({"text": "x", "rid": 7}, "rid=7 is not a string of at least one character"),
        ({"text": "x", "rid": ""}, "rid='' is not a string of at least one character"),
        ({"text": ["x", "y"], "rid": ["a"]}, "rid=['a'] has 1 values for 2 prompts"),
        ({"text": ["x", "y"], "rid": ["a", ""]}, "rid[1]='' is not a string of at least one character"),
        (
            {"text": ["x", "y"], "rid": ["a", "a"]},
            "rid='a' is running already; abort it first, or use another id",
        ),
        ({"text": "x", "return_logprob": "yes"}, "return_logprob='yes' is not true or false"),
        ({"text": "x", "stream": "yes"}, "stream='yes' is not true or false"),
        (
            {"text": "x", "image_data": "x"},
            "image_data='x' asks for something this server does not have",
        ),
        (
            {"text": "x", "logprob_start_len": 0},
            "logprob_start_len=0 asks for something this server does not have",
        ),
        ({"text": "x", "sampling_params": 1}, "sampling_params=1 is not an object"),
        ({"text": ["x"], "sampling_params": [1]}, "sampling_params[0]=1 is not an object"),
    ],
)
def test_a_malformed_request_is_told_the_field_and_its_value(
    server: EmbeddedServer, body: Any, problem: str
) -> None:
    assert call(server, "POST", "/generate", body) == (400, {"error": {"message": problem}})


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("max_new_tokens", -1, "is not an integer in 0..131072"),
        ("max_new_tokens", 131073, "is not an integer in 0..131072"),
        (
            "max_new_tokens",
            131072,
            "after a prompt of 1 tokens is more than the 131072 there is room for",
        ),
        ("max_new_tokens", 1.0, "is not an integer in 0..131072"),
        ("max_new_tokens", True, "is not an integer in 0..131072"),
        ("min_new_tokens", 129, "is not an integer in 0..128"),
        ("max_tokens", 7, "is not a sampling parameter of this server"),
        ("temperature", "hot", "is not a number"),
        ("temperature", -1, "is not in 0..1e+09"),
        ("temperature", math.inf, "is not in 0..1e+09"),
        ("top_p", 1.5, "is not in 0..1"),
        ("top_k", "x", "is not a number"),
        ("sampling_seed", 0.5, f"is not an integer in {-(2**63)}..{2**63 - 1}"),
        ("top_p", True, "is not a number"),
        ("ignore_eos", 1, "is not true or false"),
        ("n", 2, "is not 1; send a batch of prompts"),
        ("stop", 3, "is not a string of at least one character"),
        ("stop_token_ids", 3, "is not a list of token ids"),
    ],
)
def test_a_malformed_sampling_parameter_is_told_by_its_path(
    server: EmbeddedServer, name: str, value: Any, problem: str
) -> None:
    status, reply = call(server, "POST", "/generate", {"text": "x", "sampling_params": {name: value}})
    assert (status, reply["error"]["message"]) == (400, f"sampling_params.{name}={value!r} {problem}")


def test_an_error_does_not_repeat_a_long_value(server: EmbeddedServer) -> None:
    deep = b"[" * 100_000
    for body in (
        deep,
        {"input_ids": "7" * 100_000},
        {"text": "x", "sampling_params": {"stop": [[[[["7" * 60] * 9] * 9] * 9] * 9]}},
    ):
        status, reply = call(server, "POST", "/generate", body)
        assert (status, len(reply["error"]["message"]) < 600) == (400, True)


def test_long_prompts_and_lone_surrogates_are_answered(server: EmbeddedServer) -> None:
    assert len(generate(server, text=["x" * 100_000] * 20, sampling_params={"max_new_tokens": 1})) == 20
    assert generate(server, text="\ud800", rid="\ud800")["meta_info"]["id"] == "\ud800"
    stopping = generate(server, input_ids=[21], sampling_params={"stop": ["\ud800", "xm"]})
    assert finish(stopping) == (KPX[:4], {"type": "stop", "matched": "xm"})


def test_other_paths_and_methods_are_errors_in_json(server: EmbeddedServer) -> None:
    assert call(server, "GET", "/health") == (200, None)
    assert call(server, "GET", "/nowhere") == (404, {"error": {"message": "GET /nowhere: Not Found"}})
    assert call(server, "GET", "/generate") == (
        405,
        {"error": {"message": "GET /generate: Method Not Allowed"}},
    )
    problem = "in_flight='x' is not a number to wait for"
    assert call(server, "GET", "/stats?in_flight=x") == (400, {"error": {"message": problem}})
    problem = f"bogus='1' is not a counter; there are {', '.join(COUNTERS)}"
    assert call(server, "GET", "/stats?bogus=1") == (400, {"error": {"message": problem}})
