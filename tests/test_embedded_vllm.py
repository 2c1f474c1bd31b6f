"""The embedded server as vLLM: completions, tokens in and tokens out, and control."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from areal_core.embedded import EmbeddedServer, logprob_of, token_of, write_weights
from areal_core.embedded._models.letters import END_TOKEN
from calls import call, generate
from completions import predict
from streams import stream, streaming

KPX = [107, 112, 120, 109, 114, 110, 116, 97, 108, 103, END_TOKEN]
TOKENS_PATH = "/inference/v1/generate"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once."""
    with EmbeddedServer(ms_per_token=0) as server:
        yield server


@pytest.fixture
def slow() -> Iterator[EmbeddedServer]:
    """Run a server whose tokens depend on the version, and of which tests see one after another."""
    with EmbeddedServer(ms_per_token=10, sigma=0, mode="test") as server:
        yield server


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Run calls beside the test."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def complete(server: EmbeddedServer, **body: Any) -> Any:
    status, reply = call(server, "POST", "/v1/completions", {"prompt": [21]} | body)
    assert status == 200, reply
    return reply["choices"][0]


def tokens_of(server: EmbeddedServer, **body: Any) -> Any:
    status, reply = call(server, "POST", TOKENS_PATH, {"token_ids": [21]} | body)
    assert status == 200, reply
    return reply["choices"][0]


def control(server: EmbeddedServer, path: str, body: Any = None) -> Any:
    status, reply = call(server, "POST", path, body)
    assert status == 200, reply
    return reply


# What is generated


@pytest.mark.parametrize("mode", ["text", "test", "policy"])
def test_equal_prompts_get_equal_tokens_in_every_dialect(mode: str) -> None:
    prompt = [3, 1, 4, 11] if mode == "policy" else list(b"hello")
    with EmbeddedServer(ms_per_token=0, mode=mode) as server:
        sampling = {"max_new_tokens": 12, "temperature": 0}
        reply = generate(server, input_ids=prompt, sampling_params=sampling, return_logprob=True)
        ids, logprobs = (
            reply["output_ids"],
            [one for one, _, _ in reply["meta_info"]["output_token_logprobs"]],
        )
        common: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": 0}
        body = {"prompt": prompt, "return_token_ids": True, **common}
        choices = [complete(server, **body)]
        choices += [one["choices"][0] for one in stream(server, "/v1/completions", body)]
        assert [one["token_ids"] for one in choices] == [ids, ids]
        assert [one["logprobs"]["token_logprobs"] for one in choices] == [logprobs, logprobs]
        body = {"token_ids": prompt, "sampling_params": common}
        choices = [tokens_of(server, **body)]
        choices += [one["choices"][0] for one in stream(server, TOKENS_PATH, body)]
        assert [one["token_ids"] for one in choices] == [ids, ids]
        entries = [one["logprobs"]["content"] for one in choices]
        assert [[entry["logprob"] for entry in some] for some in entries] == [logprobs, logprobs]
        text = "314=" if mode == "policy" else "hello"
        assert complete(server, prompt=text, **common)["text"] == reply["text"]


def test_a_completion_has_the_fields_of_vllm(server: EmbeddedServer) -> None:
    body = {"prompt": [21], "model": "mine", "request_id": "r-1", "logprobs": 1, "return_token_ids": True}
    status, reply = call(server, "POST", "/v1/completions", body)
    assert status == 200
    assert reply.pop("created") > 1_700_000_000
    texts = [*"kpxmrntalg", "\x04"]
    logprobs = predict([21])[1]
    assert reply == {
        "id": "cmpl-r-1",
        "object": "text_completion",
        "model": "mine",
        "choices": [
            {
                "index": 0,
                "text": "kpxmrntalg",
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": KPX,
                "prompt_token_ids": [21],
                "logprobs": {
                    "tokens": texts,
                    "token_logprobs": logprobs,
                    "top_logprobs": [{text: one} for text, one in zip(texts, logprobs, strict=True)],
                    "text_offset": list(range(11)),
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 11, "total_tokens": 12},
    }
    bare = complete(server)
    assert (bare["logprobs"], "token_ids" in bare, "prompt_token_ids" in bare) == (None, False, False)
    named = complete(server, logprobs=0, return_tokens_as_token_ids=True)["logprobs"]
    assert named["tokens"] == [f"token_id:{token}" for token in KPX]
    # Without max_tokens there are sixteen.
    assert len(complete(server, prompt="hello", return_token_ids=True)["token_ids"]) == 16


@pytest.mark.parametrize(
    ("params", "tokens", "finish", "text"),
    [
        ({"max_tokens": 3}, KPX[:3], ("length", None), "kpx"),
        ({"stop": "xm"}, KPX[:4], ("stop", "xm"), "kp"),
        ({"stop": ["zz", "nt"]}, KPX[:7], ("stop", "nt"), "kpxmr"),
        ({"stop": ["xm"], "include_stop_str_in_output": True}, KPX[:4], ("stop", "xm"), "kpxm"),
        ({"stop_token_ids": [120]}, KPX[:3], ("stop", 120), "kp"),
        ({"include_stop_str_in_output": True}, KPX, ("stop", None), "kpxmrntalg"),
        (
            {"include_stop_str_in_output": True, "skip_special_tokens": False},
            KPX,
            ("stop", None),
            "kpxmrntalg\x04",
        ),
        ({"stop_token_ids": [120], "min_tokens": 4}, KPX, ("stop", None), "kpxmrntalg"),
        ({"stop": "alg\x04", "skip_special_tokens": False}, KPX, ("stop", None), "kpxmrntalg"),
        ({"stop": "lgx", "max_tokens": 10}, KPX[:10], ("length", None), "kpxmrntalg"),
    ],
)
def test_stops_end_a_completion_and_are_not_in_its_text(
    server: EmbeddedServer, params: dict[str, Any], tokens: list[int], finish: Any, text: str
) -> None:
    body = {"prompt": [21], "return_token_ids": True, **params}
    choice = complete(server, **body)
    assert (choice["token_ids"], choice["text"]) == (tokens, text)
    assert (choice["finish_reason"], choice["stop_reason"]) == finish


def test_one_prompt_may_stand_in_a_list(server: EmbeddedServer) -> None:
    assert (
        complete(server, prompt=[[21]])["text"] == complete(server, prompt=["\x15"])["text"] == "kpxmrntalg"
    )


def test_a_seed_decides_what_a_policy_draws() -> None:
    with EmbeddedServer(ms_per_token=0, mode="policy") as server:

        def draw(**params: Any) -> Any:
            body = {"prompt": [3, 1, 4, 11], "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
            return complete(server, **body, **params)["token_ids"]

        assert draw(seed=1) == draw(seed=1)
        assert len({tuple(draw(seed=seed)) for seed in range(5)}) > 1
        assert len({tuple(draw()) for _ in range(5)}) > 1
        assert len({tuple(draw(temperature=0)) for _ in range(5)}) == 1


def test_ignoring_the_end_goes_on_to_the_limit(server: EmbeddedServer) -> None:
    assert len(complete(server, ignore_eos=True, max_tokens=20, return_token_ids=True)["token_ids"]) == 20


def test_a_stream_has_the_new_tokens_in_each_piece_and_never_the_beginning_of_a_stop(
    slow: EmbeddedServer,
) -> None:
    body: dict[str, Any] = {"prompt": [21], "return_token_ids": True, "logprobs": 0, "stop": ["zzz", "alg"]}
    *pieces, usage = stream(slow, "/v1/completions", body | {"stream_options": {"include_usage": True}})
    choices = [piece["choices"][0] for piece in pieces]
    assert len(choices) > 1
    assert [token for choice in choices for token in choice["token_ids"]] == KPX[:10]
    assert "".join(choice["text"] for choice in choices) == "kpxmrnt"
    assert [one for choice in choices for one in choice["logprobs"]["text_offset"]] == list(range(10))
    assert [choice["prompt_token_ids"] for choice in choices] == [[21]] + [None] * (len(choices) - 1)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    # The text is never ahead of what may still become a stop.
    made, text = 0, ""
    for choice in choices[:-1]:
        made, text = made + len(choice["token_ids"]), text + choice["text"]
        assert text == "kpxmrntalg"[: max(0, made - 2)]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 10)


def test_tokens_in_and_tokens_out_has_the_fields_of_vllm(server: EmbeddedServer) -> None:
    body = {"token_ids": [21], "request_id": "r-1", "sampling_params": {"logprobs": 0, "max_tokens": 2}}
    status, reply = call(server, "POST", TOKENS_PATH, body)
    logprobs = predict([21])[1]
    content = [
        {"token": f"token_id:{token}", "logprob": logprob, "bytes": [token], "top_logprobs": []}
        for token, logprob in zip(KPX[:2], logprobs, strict=False)
    ]
    choice = {
        "index": 0,
        "token_ids": KPX[:2],
        "finish_reason": "length",
        "logprobs": {"content": content},
        "weight_versions": [{"version": "default", "start": 0, "end": 2}],
    }
    assert (status, reply) == (200, {"request_id": "r-1", "choices": [choice], "prompt_logprobs": None})
    assert tokens_of(server)["logprobs"] is None


def test_the_path_for_tokens_can_be_left_out() -> None:
    with EmbeddedServer(ms_per_token=0, tokens_in_tokens_out=False) as server:
        for method in ("GET", "POST"):
            assert call(server, method, TOKENS_PATH, {"token_ids": [21]})[0] == 404
        assert call(server, "POST", "/inference/v1/abort_requests", {"request_ids": []})[0] == 404
        assert complete(server)["text"] == "kpxmrntalg"
    with EmbeddedServer(ms_per_token=0) as server:
        assert call(server, "GET", TOKENS_PATH)[0] == 405


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/v1/completions", b"{", "body=b'{' is not JSON: "),
        ("/v1/completions", {}, "prompt=None is not a string of at least one character"),
        ("/v1/completions", {"prompt": []}, "prompt=[] is not one prompt; send a request for each"),
        ("/v1/completions", {"prompt": [[1], [2]]}, "prompt=[[...], [...]] is not one prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt[0]=-1 is not an integer in 0..9223372036854775807"),
        ("/v1/completions", {"prompt": [1], "n": 2}, "n=2 asks for something this server does not have"),
        ("/v1/completions", {"prompt": [1], "echo": True}, "echo=True asks for something"),
        ("/v1/completions", {"prompt": [1], "max_tokens": 0}, "max_tokens=0 is not an integer in 1.."),
        ("/v1/completions", {"prompt": [1] * 131_072}, "max_tokens=16 has no room after so long a prompt"),
        ("/v1/completions", {"prompt": [1], "top_p": 2}, "top_p=2 is not in 0..1"),
        ("/v1/completions", {"prompt": [1], "top_k": "x"}, "top_k='x' is not a number"),
        ("/v1/completions", {"prompt": [1], "logprobs": 21}, "logprobs=21 is not an integer in 0..20"),
        (
            "/v1/completions",
            {"prompt": [1], "stop_token_ids": 1},
            "stop_token_ids=1 is not a list of token ids",
        ),
        (TOKENS_PATH, {}, "token_ids=None is not a list of at least one token id"),
        (TOKENS_PATH, {"token_ids": ["a"]}, "token_ids[0]='a' is not an integer in 0.."),
        (
            TOKENS_PATH,
            {"token_ids": [1], "sampling_params": {"best": 1}},
            "sampling_params.best=1 is not a sampling ",
        ),
        (TOKENS_PATH, {"token_ids": [1], "sampling_params": {"n": 2}}, "sampling_params.n=2 is not 1"),
        (
            TOKENS_PATH,
            {"token_ids": [1], "sampling_params": {"min_tokens": 17}},
            "sampling_params.min_tokens=17 is ",
        ),
        ("/pause?mode=odd", None, "mode='odd' is not abort, wait or keep"),
        ("/abort_requests", {"request_ids": "r"}, "request_ids='r' is not a list of ids"),
        ("/collective_rpc", {"method": "exit"}, "method='exit' is not reload_weights"),
        ("/update_weight_version", {}, "new_version=None is not a string of at least one character"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_openais_words(
    server: EmbeddedServer, path: str, body: Any, problem: str
) -> None:
    status, reply = call(server, "POST", path, body)
    assert status == 400
    message = reply["error"].pop("message")
    assert message.startswith(problem)
    assert reply == {"error": {"type": "invalid_request_error", "param": None, "code": 400}}


# Control


def test_generations_are_aborted_by_their_ids_in_every_form(
    slow: EmbeddedServer, threads: ThreadPoolExecutor
) -> None:
    def begin(rid: str, path: str = "/v1/completions") -> Future[Any]:
        long = {"max_tokens": 10_000, "ignore_eos": True, "min_tokens": 10_000}
        body = {"prompt": [21], "return_token_ids": True, **long, "request_id": rid}
        if path == TOKENS_PATH:
            body = {"token_ids": [21], "sampling_params": long, "request_id": rid}
        return threads.submit(lambda: call(slow, "POST", path, body)[1]["choices"][0])

    one, two, three = begin("r-1"), begin("r-2"), begin("r-22")
    four = begin("r-4", TOKENS_PATH)
    slow.stats(in_flight=4)
    control(slow, "/inference/v1/abort_requests", {"request_ids": ["r-4", "generate-tokens-r-5"]})
    assert slow.stats().aborted == 0
    control(slow, "/inference/v1/abort_requests", {"request_ids": ["generate-tokens-r-4"]})
    assert four.result(10)["finish_reason"] == "abort"
    ids = {"request_ids": ["r-1", "cmpl-r-2-0", "unknown"]}
    assert control(slow, "/abort_requests", ids) == {"status": "aborted", "aborted": 2}
    for ended in (one, two):
        choice = ended.result(10)
        assert (choice["finish_reason"], choice["stop_reason"]) == ("abort", None)
        count = len(choice["token_ids"])
        assert choice["token_ids"] == [
            token_of(0, [21, *choice["token_ids"][:k]], False) for k in range(count)
        ]
    assert slow.stats().in_flight == 1
    assert control(slow, "/abort_requests", {}) == {"status": "aborted", "aborted": 1}
    assert three.result(10)["finish_reason"] == "abort"
    assert control(slow, "/abort_requests") == {"status": "aborted", "aborted": 0}


def test_a_pause_that_aborts_returns_what_there_is_and_lets_the_next_wait(
    slow: EmbeddedServer, threads: ThreadPoolExecutor
) -> None:
    body = {"token_ids": [21], "sampling_params": {"ignore_eos": True, "max_tokens": 10_000}}
    with streaming(slow, TOKENS_PATH, body) as events:
        assert next(events)["choices"][0]["finish_reason"] is None
        assert control(slow, "/pause") == {"status": "paused"}
        assert [event["choices"][0]["finish_reason"] for event in events][-1] == "abort"
    assert call(slow, "GET", "/is_paused") == (200, {"is_paused": True})
    waiting = threads.submit(tokens_of, slow)
    assert slow.stats(waiting=1).completed == 0
    assert control(slow, "/resume") == {"status": "resumed"}
    assert waiting.result(10)["token_ids"] == KPX
    assert call(slow, "GET", "/is_paused") == (200, {"is_paused": False})


def test_a_pause_that_waits_returns_when_all_have_ended(
    slow: EmbeddedServer, threads: ThreadPoolExecutor
) -> None:
    running = threads.submit(tokens_of, slow)
    slow.stats(in_flight=1)
    pause = threads.submit(control, slow, "/pause?mode=wait")
    assert slow.stats(paused=1).paused  # and yet the call waits for what runs
    assert pause.result(10) == {"status": "paused"}
    assert slow.stats().completed == 1
    assert running.result(10)["token_ids"] == KPX
    next_one = threads.submit(tokens_of, slow)
    slow.stats(waiting=1)
    control(slow, "/resume")
    assert next_one.result(10)["token_ids"] == KPX


def test_a_pause_that_keeps_lets_the_weights_change_between_two_tokens(
    slow: EmbeddedServer, tmp_path: Path
) -> None:
    write_weights(tmp_path / "weights", 4)
    # All in 0.2 s, if nothing kept them.
    sampling = {"ignore_eos": True, "max_tokens": 20, "logprobs": 0}
    with streaming(slow, TOKENS_PATH, {"token_ids": [21], "sampling_params": sampling}) as events:
        choices = [next(events)["choices"][0]]
        control(slow, "/pause?mode=keep&clear_cache=false")
        with pytest.raises(TimeoutError):
            slow.stats(0.3, completed=1)
        load = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "weights")}}
        assert control(slow, "/collective_rpc", load) == {"results": [None]}
        assert call(slow, "GET", "/weight_info") == (200, {"weight_version": "default"})
        control(slow, "/update_weight_version", {"new_version": "4"})
        assert call(slow, "GET", "/weight_info") == (200, {"weight_version": "4"})
        control(slow, "/resume")
        choices += [event["choices"][0] for event in events]
    tokens = [token for choice in choices for token in choice["token_ids"]]
    logprobs = [entry["logprob"] for choice in choices for entry in choice["logprobs"]["content"]]
    spans = [span for choice in choices for span in choice["weight_versions"]]
    versions: list[int] = []
    for span in spans:
        assert span["end"] > span["start"] == len(versions)
        versions += [{"default": 0, "4": 4}[span["version"]]] * (span["end"] - span["start"])
    assert versions == sorted(versions)
    assert {0, 4} == set(versions)
    assert tokens == [token_of(version, [21, *tokens[:k]], False) for k, version in enumerate(versions)]
    assert logprobs == [logprob_of(version, [21, *tokens[:k]]) for k, version in enumerate(versions)]
    assert control(slow, "/reset_prefix_cache") is None


def test_weights_that_cannot_be_loaded_change_nothing(server: EmbeddedServer, tmp_path: Path) -> None:
    load = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "nowhere")}}
    status, reply = call(server, "POST", "/collective_rpc", load)
    assert (status, reply["error"]["type"], reply["error"]["code"]) == (500, "server_error", 500)
    assert reply["error"]["message"].endswith("No such file or directory")
    assert complete(server)["text"] == "kpxmrntalg"


def test_an_id_in_use_is_refused_until_its_generation_has_ended(slow: EmbeddedServer) -> None:
    ended = threading.Event()

    def run() -> None:
        complete(slow, request_id="r-1", ignore_eos=True, max_tokens=10_000)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    slow.stats(in_flight=1)
    status, reply = call(slow, "POST", TOKENS_PATH, {"token_ids": [21], "request_id": "r-1"})
    assert (status, "is running already" in reply["error"]["message"]) == (400, True)
    control(slow, "/abort_requests", {"request_ids": ["r-1"]})
    assert ended.wait(10)
    thread.join()
    assert tokens_of(slow, request_id="r-1")["token_ids"] == KPX
