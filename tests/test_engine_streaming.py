"""Whether tokens are fetched as they come, and who is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from areal_core.types import ModelRequest
from conftest import MakeRunner
from engine_tools import Sending, a_request, an_engine, check_reply
from reused_servers import ReusedServer

BACKENDS = ("sglang", "vllm", "openai")


def overheard(request: ModelRequest) -> tuple[ModelRequest, list[list[int]]]:
    """Return *request* with somebody who is told of its tokens, and what that is told."""
    pieces: list[list[int]] = []
    return replace(request, on_tokens=lambda tokens: pieces.append(list(tokens))), pieces


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stream_replies", [True, False])
def test_tokens_are_told_as_they_come_and_each_once(
    make_runner: MakeRunner, servers: list[ReusedServer], backend: str, stream_replies: bool
) -> None:
    with an_engine(servers[0], backend=backend, stream_replies=stream_replies) as engine:
        sending = Sending(make_runner(), engine)
        request, pieces = overheard(a_request(most=12))
        reply = sending.reply(sending.send(request))
    assert [token for piece in pieces for token in piece] == reply.output_tokens
    assert len(pieces) > 1
    assert reply.ttft is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_streams_a_reply_comes_whole(
    make_runner: MakeRunner, servers: list[ReusedServer], backend: str
) -> None:
    with an_engine(servers[0], backend=backend, stream_replies=False) as engine:
        sending = Sending(make_runner(), engine)
        request = a_request(most=12)
        reply = sending.reply(sending.send(request))
    assert reply.ttft is None
    check_reply(reply, request, latest=0)


@pytest.mark.parametrize("stream_replies", [True, False])
def test_an_interrupted_reply_keeps_its_tokens_and_none_is_told_twice(
    make_runner: MakeRunner, servers: list[ReusedServer], stream_replies: bool
) -> None:
    servers[0].faults(["abort=5,next=2"])
    with an_engine(servers[0], stream_replies=stream_replies) as engine:
        sending = Sending(make_runner(), engine)
        told, pieces = overheard(a_request(most=16))
        plain = a_request(most=16)
        heard = sending.reply(sending.send(told))
        servers[0].faults(["abort=5,next=2"])
        reply = sending.reply(sending.send(plain))
    assert [token for piece in pieces for token in piece] == heard.output_tokens
    assert (heard.segments, reply.segments) == (3, 3)
    for one, request in ((heard, told), (reply, plain)):
        check_reply(one, request, latest=0)


def test_what_the_one_who_is_told_raises_ends_the_generation(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    def fail(tokens: Sequence[int]) -> None:
        raise LookupError("nobody listens")

    with an_engine(servers[0]) as engine:
        sending = Sending(make_runner(), engine)
        ending = sending.ending(sending.send(replace(a_request(most=2000), on_tokens=fail)))
        servers[0].stats(cancelled=1)
    assert isinstance(ending, LookupError)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(TypeError, match="on_tokens=7 cannot be called"):
        ModelRequest([1], on_tokens=7)  # type: ignore[arg-type]
