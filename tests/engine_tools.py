"""Generations on real servers, and judging them: by their tokens, and by the servers' own logs.

A server in the mode "test" makes each token a function of the version of its weights and of all tokens
before, in letters that tell versions less than 27 apart. So a token that is missing, doubled, or from
other weights shows in the tokens themselves.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import EmbeddedServer, logprob_of, token_of
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters, ModelRequest, ModelResponse

END_TOKEN = 4
LETTERS = b" abcdefghijklmnopqrstuvwxyz"
DISTINCT_VERSIONS = len(LETTERS)
"""Versions from 0 to before this never make the same letter after the same tokens."""


@contextmanager
def an_engine(
    *servers: EmbeddedServer | str, backend: Any = "sglang", **config: Any
) -> Iterator[RemoteInfEngine]:
    """Give an initialized engine on *servers* for the block; *config* goes over short timeouts."""
    options = {"request_timeout": 30.0, "setup_timeout": 20.0, "control_timeout": 20.0, **config}
    engine = RemoteInfEngine(InferenceEngineConfig(**options), backend)
    try:
        engine.initialize([one if isinstance(one, str) else one.addr for one in servers])
        yield engine
    finally:
        engine.destroy()


def a_request(
    prompt: Sequence[int] = (1, 2, 3), most: int = 20, *, rid: str | None = None, **gconfig: Any
) -> ModelRequest:
    """Return a request for exactly *most* tokens, unless *gconfig* says otherwise."""
    wanted = {"max_new_tokens": most, "ignore_eos": True, "temperature": 0.0, **gconfig}
    return ModelRequest(input_ids=list(prompt), gconfig=GenerationHyperparameters(**wanted), rid=rid)


class Sending:
    """Send generations of *engine* on *runner*, and collect what became of them."""

    def __init__(self, runner: AsyncTaskRunner[Any], engine: RemoteInfEngine) -> None:
        self._runner = runner
        self._engine = engine

    def send(self, request: ModelRequest) -> int:
        """Begin a generation; return the number of its task."""
        return self._runner.submit(self._engine.agenerate, request)

    def cancel(self, task: int) -> None:
        """Cancel a generation."""
        self._runner.cancel(task)

    def ending(self, task: int, timeout: float = 30.0) -> ModelResponse | BaseException:
        """Wait for a generation; return its reply, or what it raised."""
        result = self._runner.wait_for_task(task, timeout)
        if result.error is not None:
            return result.error
        assert isinstance(result.data, ModelResponse)
        return result.data

    def reply(self, task: int, timeout: float = 30.0) -> ModelResponse:
        """Wait for a generation that must succeed."""
        ending = self.ending(task, timeout)
        if isinstance(ending, BaseException):
            raise ending
        return ending

    def replies(self, requests: Iterable[ModelRequest], timeout: float = 30.0) -> list[ModelResponse]:
        """Send all *requests* at once; return their replies in that order. All must succeed."""
        return [self.reply(task, timeout) for task in [self.send(one) for one in requests]]


# By the tokens


def true_version(token: int, prefix: Sequence[int]) -> int | None:
    """Return which version made *token* after *prefix*, as if there were 27; None: the token is any's."""
    if token == END_TOKEN:
        return None
    at_0 = token_of(0, prefix, may_end=False)
    return (LETTERS.index(token) - LETTERS.index(at_0)) % DISTINCT_VERSIONS


def true_versions(reply: ModelResponse) -> list[int | None]:
    """Return which version made each token of *reply*."""
    prefix = list(reply.input_tokens)
    versions: list[int | None] = []
    for token in reply.output_tokens:
        versions.append(true_version(token, prefix))
        prefix.append(token)
    return versions


def check_reply(reply: ModelResponse, request: ModelRequest, *, latest: int) -> None:
    """See that *reply* continues its prompt, with tokens of versions up to *latest*, and says no wrong one.

    With fewer than 27 versions in a test, a token that is missing or doubled makes all behind it look as if
    from versions that there never were.
    """
    assert reply.input_tokens == list(request.input_ids)
    count = len(reply.output_tokens)
    assert len(reply.output_logprobs) == len(reply.output_versions) == count
    wanted = request.gconfig
    ended = bool(count) and reply.output_tokens[-1] == END_TOKEN
    assert reply.stop_reason == ("stop" if ended else "length")
    assert ended or count == wanted.max_new_tokens, (count, reply)
    prefix = list(reply.input_tokens)
    for place, (token, told) in enumerate(zip(reply.output_tokens, reply.output_versions, strict=True)):
        true = true_version(token, prefix)
        where = f"token {place} of {count}: told {told}, made by {true}, {reply.segments} segments"
        may_end = not wanted.ignore_eos and place + 1 >= wanted.min_new_tokens
        assert token == token_of(true or 0, prefix, may_end), where
        if true is not None:
            assert true <= latest, where
            assert told <= true, where
            assert not reply.versions_exact or told == true, where
            # The log-probability came with its token.
            assert reply.output_logprobs[place] == logprob_of(true, prefix), where
        prefix.append(token)


def check_replies(pairs: Iterable[tuple[ModelRequest, ModelResponse]], *, latest: int) -> None:
    """Do that with many."""
    for request, reply in pairs:
        check_reply(reply, request, latest=latest)


# By the servers' logs


class Life:
    """One attempt, as its server saw it."""

    def __init__(self, server: str, start: Mapping[str, Any]) -> None:
        self.server = server
        self.wire_id: str = start["id"]
        self.conversation = self.wire_id.rpartition("-")[0]
        self.prompt_tokens: int = start["prompt_tokens"]
        self.began: float = start["at"]
        self.ended: float | None = None
        """None: it was live when the log was read."""
        self.how: str | None = None
        self.versions: list[list[int]] = []
        self.tokens = 0

    def end(self, event: Mapping[str, Any]) -> None:
        self.ended, self.how = event["at"], event["how"]
        self.versions, self.tokens = event["versions"], event["tokens"]

    def __repr__(self) -> str:
        return (
            f"<{self.wire_id} at {self.server}: {self.prompt_tokens}+{self.tokens}, "
            f"{self.began:.4f} to {self.ended}, {self.how}>"
        )


def lives(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Life]:
    """Return all attempts in *logs*, which are by server, in the order in which they began."""
    found: list[Life] = []
    for server, log in logs.items():
        open_ones: dict[str, Life] = {}
        for event in log:
            if event["event"] == "start":
                open_ones[event["id"]] = Life(server, event)
                found.append(open_ones[event["id"]])
            elif event["event"] == "end":
                open_ones.pop(event["id"]).end(event)
    return sorted(found, key=lambda life: life.began)


def logs_of(*servers: EmbeddedServer) -> dict[str, list[dict[str, Any]]]:
    """Return what each of the running *servers* wrote down."""
    return {server.addr: server.log() for server in servers if server.running}


def by_conversation(attempts: Iterable[Life]) -> dict[str, list[Life]]:
    """Return the attempts of each conversation, in their order."""
    found: dict[str, list[Life]] = defaultdict(list)
    for life in attempts:
        found[life.conversation].append(life)
    return found


def check_one_at_a_time(attempts: Iterable[Life]) -> None:
    """See that of each conversation no two attempts were ever live at once."""
    for of_one in by_conversation(attempts).values():
        for before, after in pairwise(of_one):
            assert before.ended is not None, (before, after)
            assert before.ended <= after.began, (before, after)


def check_none_live(*servers: EmbeddedServer, within_s: float = 5.0) -> None:
    """See that soon nothing runs at the *servers*: one whose client hung up takes a moment to notice."""
    for server in servers:
        deadline = time.monotonic() + within_s
        while server.running and server.stats().in_flight:
            live = [one for one in lives(logs_of(server)) if one.ended is None]
            assert time.monotonic() < deadline, live


def check_balanced(engine: RemoteInfEngine) -> None:
    """See that an engine with no generation under way holds no slot, waiter, attempt or pin in use."""
    state = engine._state
    assert state is not None
    assert not state.generations
    router = state.router
    for server in router.servers:
        assert (server.in_flight, set(server.calls)) == (0, set()), server
        assert not [waiter for waiter in server.queue if not waiter.gone], server
    assert not [waiter for waiter in router._queue if not waiter.gone]
    assert not router._busy_pins
    assert all(not pin.in_flight for pin in router._idle_pins.values())
