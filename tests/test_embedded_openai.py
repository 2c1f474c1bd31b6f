"""The embedded server as OpenAI: its own client talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from areal_core.embedded import EmbeddedServer
from areal_core.embedded._models.letters import END_TOKEN
from calls import call
from completions import complete, predict
from streams import stream

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
# How a chat is written: it ends where the reply begins.
HI_TOKENS = [*b"<|user|>\nhi", END_TOKEN, *b"\n<|assistant|>\n"]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once."""
    with EmbeddedServer(ms_per_token=0) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[openai.OpenAI]:
    """Share a client of that server."""
    with client_of(server) as client:
        yield client


def client_of(server: EmbeddedServer, max_retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=max_retries, timeout=10)


def text_of(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token != END_TOKEN).decode()


def test_a_chat_is_answered_with_log_probabilities_and_usage(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="mine", messages=HI, max_completion_tokens=5, logprobs=True, top_logprobs=2
    )
    tokens, logprobs = predict(HI_TOKENS, 5)
    (choice,) = reply.choices
    assert (reply.object, reply.model, reply.id[:9]) == ("chat.completion", "mine", "chatcmpl-")
    assert (choice.message.role, choice.message.content) == ("assistant", text_of(tokens))
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    for entry, token, logprob in zip(choice.logprobs.content, tokens, logprobs, strict=True):
        assert (entry.token, entry.bytes, entry.logprob) == (chr(token), [token], logprob)
        (alternative,) = entry.top_logprobs
        assert (alternative.token, alternative.logprob) == (entry.token, logprob)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (
        len(HI_TOKENS),
        5,
        len(HI_TOKENS) + 5,
    )


def test_a_chat_goes_on_to_its_end_without_a_limit_and_goes_on_from_its_reply(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="mine", messages=HI, extra_body={"return_token_ids": True})
    tokens = predict(HI_TOKENS, 10_000)[0]
    text = reply.choices[0].message.content
    assert (text, reply.choices[0].finish_reason) == (text_of(tokens), "stop")
    ids: Any = reply.to_dict()
    assert ids["prompt_token_ids"] == HI_TOKENS
    assert ids["choices"][0]["token_ids"] == tokens
    more: list[ChatCompletionMessageParam] = [
        *HI,
        {"role": "assistant", "content": text},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": " more"}]},
    ]
    second: Any = client.chat.completions.create(
        model="mine", messages=more, max_tokens=1, extra_body={"return_token_ids": True}
    ).to_dict()
    # Its prompt begins with all the tokens of the first turn.
    turn = [*b"\n<|user|>\nand more", END_TOKEN, *b"\n<|assistant|>\n"]
    assert second["prompt_token_ids"] == [*HI_TOKENS, *tokens, *turn]


def test_a_chat_is_streamed_with_log_probabilities_and_usage() -> None:
    with EmbeddedServer(ms_per_token=15, sigma=0) as server, client_of(server) as client:
        chunks = list(
            client.chat.completions.create(
                model="mine",
                messages=HI,
                max_tokens=8,
                logprobs=True,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    tokens, logprobs = predict(HI_TOKENS, 8)
    *pieces, usage = chunks
    assert len(pieces) > 2  # who speaks, and then tokens in more than one
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert (pieces[0].choices[0].delta.role, pieces[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == text_of(tokens)
    entries = [
        entry
        for chunk in pieces
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert [(entry.token, entry.logprob) for entry in entries] == [
        (chr(token), logprob) for token, logprob in zip(tokens, logprobs, strict=True)
    ]
    finishes = [chunk.choices[0].finish_reason for chunk in pieces]
    assert finishes == [None] * (len(pieces) - 1) + ["length"]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 8


def test_a_stream_of_a_chat_has_token_ids_if_asked(server: EmbeddedServer) -> None:
    body = {"messages": HI, "max_tokens": 3, "return_token_ids": True, "stop": ["zz"]}
    first, *pieces = stream(server, "/v1/chat/completions", body)
    assert first["prompt_token_ids"] == HI_TOKENS
    assert [token for piece in pieces for token in piece["choices"][0]["token_ids"]] == predict(HI_TOKENS, 3)[
        0
    ]


def test_a_completion_is_answered_and_streamed(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="mine", prompt=[21], logprobs=1, max_tokens=4)
    (choice,) = reply.choices
    tokens, logprobs = predict([21], 4)
    assert (choice.text, choice.finish_reason) == ("kpxm", "length")
    assert choice.logprobs is not None
    assert (choice.logprobs.token_logprobs, choice.logprobs.tokens) == (logprobs, list("kpxm"))
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    stream = client.completions.create(model="mine", prompt="hello", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text_of(predict(list(b"hello"), 4)[0])
    assert len(tokens) == 4


def test_a_chat_stops_at_a_string_and_takes_a_seed(client: openai.OpenAI) -> None:
    whole = complete(HI_TOKENS).tokens()
    stop = text_of(whole)[4:6]
    reply = client.chat.completions.create(
        model="mine", messages=HI, stop=[stop, "never"], seed=7, temperature=0, top_p=0.9, frequency_penalty=1
    )
    assert reply.choices[0].message.content == text_of(whole)[: text_of(whole).index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_a_policy_reads_what_was_said_and_nothing_else() -> None:
    with EmbeddedServer(ms_per_token=0, mode="policy") as server, client_of(server) as client:
        request: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "314="}]}
        reply: Any = client.chat.completions.create(
            **request, temperature=0, max_tokens=3, extra_body={"return_token_ids": True}
        ).to_dict()
        assert reply["prompt_token_ids"] == [3, 1, 4, 11]
        assert len(reply["choices"][0]["token_ids"]) <= 3
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="policy", messages=HI)
        with pytest.raises(openai.BadRequestError, match="the prompt has none"):
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": ""}])


def test_the_models_are_one(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("text", "model", "areal_core")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"messages": []}, "messages=[] is not a list of at least one message"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "messages[0].role='narrator' is none of system, ",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content=None is neither a text nor a list of parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type='image_url' is not text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]},
            "messages[0].tool_calls=[{...}] is more than this server reads",
        ),
        ({"n": 2}, "n=2 asks for something this server does not have"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools=[{...}] asks for something"),
        (
            {"response_format": {"type": "json_object"}},
            "response_format={'type': 'json_object'} asks for something",
        ),
        ({"top_logprobs": 1}, "top_logprobs=1 needs logprobs=true"),
        ({"max_tokens": 0}, "max_tokens=0 is not an integer in 1.."),
        ({"temperature": -1}, "temperature=-1 is not in 0..1e+09"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage=1 is not true or ",
        ),
    ],
)
def test_a_bad_request_is_the_clients_own_error(
    client: openai.OpenAI, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "mine", "messages": HI, **options})
    assert refused.value.body["message"].startswith(problem)  # type: ignore[index]
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", None)


def test_the_client_meets_faults_as_its_own_errors(server: EmbeddedServer) -> None:
    try:
        with client_of(server, max_retries=1) as client:
            server.faults([{"status": 429, "retry_after": "0.01", "next": 1}])
            reply = client.chat.completions.create(model="mine", messages=HI, max_tokens=1)
            assert reply.usage is not None
            assert reply.usage.completion_tokens == 1
        with client_of(server) as client:
            server.faults(["status=503"])
            with pytest.raises(openai.InternalServerError, match="the script of faults says so"):
                client.chat.completions.create(model="mine", messages=HI)
            server.faults(["disconnect"])
            with pytest.raises(openai.APIConnectionError):
                client.chat.completions.create(model="mine", messages=HI)
            server.faults(["abort=2"])
            aborted = client.chat.completions.create(model="mine", messages=HI)
            assert aborted.usage is not None
            assert (aborted.choices[0].finish_reason, aborted.usage.completion_tokens) == ("abort", 2)
    finally:
        server.faults([])


def test_an_unknown_path_is_told_and_a_wrong_method_in_openais_words(server: EmbeddedServer) -> None:
    status, reply = call(server, "GET", "/v1/chat/completions")
    assert (status, reply["error"]["type"], reply["error"]["code"]) == (405, "invalid_request_error", 405)
    assert call(server, "GET", "/v1/nowhere")[0] == 404
