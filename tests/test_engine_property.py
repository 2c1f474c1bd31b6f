"""Generations, whatever happens to them: no token lost, doubled, or said to be of another version."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.embedded import EmbeddedServer, write_weights
from areal_core.embedded.pytest_plugin import MakeEmbeddedServer
from areal_core.errors import ControlError, InferenceError
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import ModelRequest, ModelResponse
from conftest import MakeRunner
from engine_tools import (
    DISTINCT_VERSIONS,
    Life,
    a_request,
    an_engine,
    by_conversation,
    check_balanced,
    check_none_live,
    check_one_at_a_time,
    check_reply,
    lives,
    logs_of,
    true_versions,
)

# AREAL_TEST_SEEDS="5,100" looks for new examples, those with the seeds from 5 to 99.
SEEDS = range(*map(int, os.environ.get("AREAL_TEST_SEEDS", "0,1").split(",")))


@dataclass
class Turn:
    """One generation of a conversation."""

    request: ModelRequest
    began: float
    ended: float = 0.0
    ending: ModelResponse | BaseException | None = None


@dataclass
class Talk:
    """A conversation: each turn has all before in its prompt."""

    rid: str | None
    plan: list[dict[str, Any]]
    turns: list[Turn] = field(default_factory=list)

    async def go(self, engine: RemoteInfEngine) -> None:
        """Have the conversation, and write down what became of each turn."""
        prompt = [*map(ord, self.rid or "none"), 1]
        for wanted in self.plan:
            turn = Turn(a_request(prompt, rid=self.rid, **wanted), time.monotonic())
            self.turns.append(turn)
            try:
                turn.ending = await engine.agenerate(turn.request)
            except BaseException as error:
                turn.ending = error
                raise
            finally:
                turn.ended = time.monotonic()
            prompt = [*prompt, *turn.ending.output_tokens, 1]


def some_talks(dice: random.Random, count: int) -> list[Talk]:
    """Return conversations of up to three turns, some of whose ids begin like another's."""

    def turn() -> dict[str, Any]:
        most = dice.choice([1, 2, 10, 20, 60])
        least = dice.choice([0, 0, most // 2, most])
        return {"most": most, "ignore_eos": dice.random() < 0.7, "min_new_tokens": least}

    return [
        Talk(
            dice.choice([f"talk{number}", f"talk{number}", f"talk{number}-b", None]),
            [turn() for _ in range(dice.choice([1, 2, 3]))],
        )
        for number in range(count)
    ]


Task: TypeAlias = tuple[AsyncTaskRunner[Any], int]


class Chaos:
    """What happens to an engine and its servers, chosen by *dice*."""

    def __init__(
        self,
        dice: random.Random,
        engine: RemoteInfEngine,
        runner: AsyncTaskRunner[Any],
        servers: list[EmbeddedServer],
        folder: Path,
    ) -> None:
        self._dice = dice
        self._engine = engine
        self._runner = runner
        self._servers = servers
        self._folder = folder
        self._removed: list[EmbeddedServer] = []
        self.latest = 0
        """The version of the last update."""
        self.before_kills: list[Life] = []
        """Attempts at servers that were killed, as those last told."""
        self.gaps: list[tuple[float, float]] = []
        """From when to when a server did what it told nobody before it was killed."""

    def happen(self, tasks: list[Task]) -> str:
        """Do one thing, or two, and return its name."""
        act = self._dice.choice(
            [
                *[self._update, self._fault, self._kill] * 2,
                *[self._pause, self._abort_all, self._exchange, self._fail_to_update],
            ]
        )
        act()
        if self._dice.random() < 0.3:
            runner, task = self._dice.choice(tasks)
            runner.cancel(task)
        self._let_go_on()
        return act.__name__

    def end(self) -> None:
        """Let all go on that can."""
        for server in self._servers:
            server.start()
            server.faults([])
        self._update()  # some may have none that anybody knows, since one failed
        self._run(self._engine.continue_generation)  # one that failed everywhere has left it closed

    def _let_go_on(self) -> None:
        """Let a server be asked for some generations more; it may be out of use."""
        server = self._dice.choice(self._servers)
        with suppress(TimeoutError):
            server.stats(0.2, generations=server.stats().generations + self._dice.choice([1, 3, 6]))

    def _run(self, call: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        with suppress(ControlError):
            self._runner.run(call, *arguments)

    def _pause(self) -> None:
        self._run(self._engine.pause_generation)
        self._run(self._engine.continue_generation)

    def _update(self) -> None:
        self.latest += 1
        path = self._folder / str(self.latest)
        write_weights(path, self.latest)
        self._run(self._engine.update_weights_from_disk, path, self.latest)

    def _fail_to_update(self) -> None:
        if self._engine.get_version():  # else there is nothing to go back to
            self._run(self._engine.update_weights_from_disk, self._folder / "none", self.latest + 1)

    def _abort_all(self) -> None:
        self._run(self._engine.abort_all_requests)

    def _fault(self) -> None:
        size, tokens = self._dice.choice([0, 1, 500, 2000, 6000]), self._dice.choice([0, 1, 5])
        fault = self._dice.choice(
            [
                f"disconnect={size}",
                f"disconnect={size},reset",
                f"disconnect={size},path=*",
                "status=503,retry_after=0",
                "status=500,path=*",
                f"abort={tokens}",
                "race",
                "race,path=*",
            ]
        )
        self._dice.choice(self._servers).faults([f"{fault},next={self._dice.choice([1, 2, 4])}"])

    def _kill(self) -> None:
        """Kill a server and restart it, with the weights it began with; it may miss an update."""
        server = self._dice.choice(self._servers)
        at = time.monotonic()
        found = lives({server.addr: server.log()})
        server.kill()
        self.gaps.append((at, time.monotonic()))
        for life in found:
            if life.ended is None:  # later in truth, and nobody knows with how many tokens
                life.ended, life.how = at, "killed"
        self.before_kills += found
        if self._dice.random() < 0.3:
            self._update()
        server.start()

    def _exchange(self) -> None:
        """Remove a server, or add the one that was removed."""
        if self._removed:
            self._engine.add_server(self._removed.pop().addr)
        else:
            self._removed.append(self._dice.choice(self._servers))
            self._engine.remove_server(self._removed[0].addr)


@pytest.mark.any_loop
@pytest.mark.parametrize("backend", ["sglang", "sglang with spans", "vllm", "vllm with tokens"])
@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_are_those_of_their_versions_whatever_happens(
    make_runner: MakeRunner,
    make_embedded_server: MakeEmbeddedServer,
    tmp_path: Path,
    backend: str,
    seed: int,
) -> None:
    dice = random.Random(f"{backend}, {seed}")
    options: dict[str, Any] = {
        "incremental_streaming_output": dice.random() < 0.5,
        "weight_version_spans": "spans" in backend,
        "tokens_in_tokens_out": "tokens" in backend,
    }
    servers = [
        make_embedded_server(mode="test", ms_per_token=4, **options) for _ in range(dice.choice([2, 3]))
    ]
    runners, slots = [make_runner(), make_runner()], dice.choice([None, 8])
    with an_engine(
        *servers,
        backend=backend.split()[0],
        max_inflight_per_server=slots,
        control_timeout=2.0,
        setup_timeout=10.0,
    ) as engine:
        chaos = Chaos(dice, engine, runners[0], servers, tmp_path)
        talks = some_talks(dice, 30)
        tasks = [
            (runner, runner.submit(talk.go, engine))
            for talk, runner in zip(talks, itertools.cycle(runners), strict=False)
        ]
        for _ in range(10):
            chaos.happen(tasks)
        chaos.end()
        for runner, task in tasks:
            error = runner.wait_for_task(task, 30.0).error
            assert error is None or isinstance(error, InferenceError | asyncio.CancelledError), error
        check_balanced(engine)
        check_none_live(*servers)
        attempts = sorted([*chaos.before_kills, *lives(logs_of(*servers))], key=lambda life: life.began)
        check_one_at_a_time(attempts)
        check_talks(talks, attempts, chaos)


def check_talks(talks: list[Talk], attempts: list[Life], chaos: Chaos) -> None:
    assert chaos.latest < DISTINCT_VERSIONS
    of_talk = by_conversation(attempts)
    replies = 0
    for talk in talks:
        for turn in talk.turns:
            if isinstance(turn.ending, ModelResponse):
                replies += 1
                check_reply(turn.ending, turn.request, latest=chaos.latest)
                told = all(turn.ended < begin or end < turn.began for begin, end in chaos.gaps)
                if talk.rid is not None and told:
                    check_log(turn, turn.ending, of_talk[talk.rid])
    assert replies > len(talks) / 2  # or nothing much was tested


def check_log(turn: Turn, reply: ModelResponse, attempts: list[Life]) -> None:
    """See that by the servers' logs the attempts at *turn* made the tokens of *reply*, in its order."""
    mine = [one for one in attempts if turn.began <= one.began <= turn.ended]
    prompt, count = len(reply.input_tokens), len(reply.output_tokens)
    assert mine[0].prompt_tokens == prompt
    borders = [*(one.prompt_tokens - prompt for one in mine), count]
    made_by = true_versions(reply)
    for one, (start, end) in zip(mine, itertools.pairwise(borders), strict=True):
        assert start <= end, (one, borders)
        assert end - start <= one.tokens, (one, borders)
        versions = [version for version, tokens in one.versions for _ in range(tokens)]
        for version, by_token in zip(versions, made_by[start:end], strict=False):
            assert by_token in (version, None), one
