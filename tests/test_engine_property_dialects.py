"""The same generations through every dialect."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from areal_core.embedded import EmbeddedServer
from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from areal_core.types import ModelRequest, ModelResponse
from conftest import MakeRunner
from engine_tools import Sending, a_request, an_engine, check_balanced, check_reply


class Dialects:
    """Sends the same requests in each dialect, to servers that have all of them, or all but one."""

    def __init__(self, make_runner: MakeRunner, make_server: MakeEmbeddedServer, mode: str) -> None:
        self._runner = make_runner()
        self.servers = [
            make_server(mode=mode, ms_per_token=1, tokens_in_tokens_out=tokens) for tokens in (False, True)
        ]

    def replies(self, requests: Sequence[ModelRequest]) -> dict[str, list[ModelResponse]]:
        """Return the replies by dialect."""
        old, new = self.servers
        return {
            "sglang": self._replies(requests, old, "sglang"),
            "vllm's completions": self._replies(requests, old, "vllm"),
            "vllm's tokens": self._replies(requests, new, "vllm"),
            "openai": self._replies(requests, old, "openai"),
        }

    def _replies(
        self, requests: Sequence[ModelRequest], server: EmbeddedServer, backend: str
    ) -> list[ModelResponse]:
        with an_engine(server, backend=backend) as engine:
            replies = Sending(self._runner, engine).replies(requests)
            check_balanced(engine)
            return replies


def check_alike(found: dict[str, list[ModelResponse]]) -> None:
    first = found["sglang"]
    assert len({tuple(reply.output_tokens) for reply in first}) > 2
    for dialect, replies in found.items():
        for reply, other in zip(replies, first, strict=True):
            assert reply.output_tokens == other.output_tokens, dialect
            assert reply.output_logprobs == pytest.approx(other.output_logprobs, rel=1e-6), dialect
            assert reply.stop_reason == other.stop_reason, dialect
            assert reply.output_versions == [0] * len(reply.output_tokens)
            assert reply.versions_exact
            assert reply.ttft is not None


def test_all_dialects_give_the_likeliest_tokens_of_a_policy(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer
) -> None:
    requests = [a_request([digit, 9 - digit, 11], 8, ignore_eos=False) for digit in range(10)]
    check_alike(Dialects(make_runner, make_embedded_server, "policy").replies(requests))


@pytest.mark.parametrize("fault", ["abort=3,every=3", "disconnect=1500,every=3"])
@pytest.mark.any_loop
def test_all_dialects_give_the_same_tokens_whatever_they_meet(
    make_runner: MakeRunner, make_embedded_server: MakeEmbeddedServer, fault: str
) -> None:
    requests = [a_request([1, most], most, ignore_eos=most % 2 == 0) for most in range(1, 40, 3)]
    dialects = Dialects(make_runner, make_embedded_server, "test")
    for server in dialects.servers:
        server.faults([fault])
    found = dialects.replies(requests)
    check_alike(found)
    assert [sum(server.stats().faults.values()) >= 4 for server in dialects.servers] == [True, True]
    for request, reply in zip(requests, found["sglang"], strict=True):
        check_reply(reply, request, latest=0)
