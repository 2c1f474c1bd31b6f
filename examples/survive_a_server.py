"""A conversation of several turns goes on while a server dies and comes back.

    python examples/survive_a_server.py            # half a minute
    python examples/survive_a_server.py --quick    # a few seconds

`TwentyQuestions` is a workflow: it plays one episode, turn after turn, and each turn begins with all the
tokens of the turns before. A conversation has an id, `rid`, and stays on one of the two servers, where a
real one has its prefix in its cache. In the middle one server is killed, and later started again. Nothing
in the workflow knows of that; the table at the end says what became of it. The embedded servers make
their answers up.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from areal_core import (
    AsyncTaskRunner,
    GenerationHyperparameters,
    InferenceEngineConfig,
    ModelRequest,
    RemoteInfEngine,
    RolloutWorkflow,
    TimedResult,
)
from areal_core.embedded import EmbeddedServer
from areal_core.types import InferenceEngine

MOST_TURNS = 4


class Scale(NamedTuple):
    """How much to do, and how fast the servers are."""

    episodes: int = 480
    in_flight: int = 96
    batch: int = 24  # outcomes to wait for before as many new episodes begin
    ms_per_token: float = 16.0


QUICK = Scale(episodes=240, in_flight=32, batch=12, ms_per_token=4.0)


class TwentyQuestions(RolloutWorkflow):
    """Ask until the answer has the letter in it, a few times at most."""

    async def arun_episode(self, engine: InferenceEngine, data: dict[str, Any]) -> dict[str, Any]:
        """Return the tokens of the whole conversation, and what tells of each: mask, version, reward."""
        tokens: list[int] = []
        sampled: list[int] = []
        versions: list[int] = []
        segments, turn, right = 0, 0, False
        while not right and turn < MOST_TURNS:
            turn += 1
            question = list(f"Turn {turn}: say {data['letter']}. ".encode())  # the servers' tokens are bytes
            tokens += question
            sampled += [0] * len(question)
            versions += [-1] * len(question)
            reply = await engine.agenerate(
                ModelRequest(
                    tokens, GenerationHyperparameters(max_new_tokens=32), rid=f"episode-{data['number']}"
                )
            )
            tokens += reply.output_tokens
            sampled += [1] * reply.output_len
            versions += reply.output_versions
            segments += reply.segments
            right = ord(data["letter"]) in reply.output_tokens
        return {
            "input_ids": tokens,
            "loss_mask": sampled,
            "versions": versions,
            "reward": right / turn,
            "turns": turn,
            "segments": segments,
        }


def main() -> int:
    """Play the episodes, with a server lost in between; return the exit status."""
    parser = argparse.ArgumentParser(description="Play conversations while a server dies and comes back.")
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of half a minute")
    scale = QUICK if parser.parse_args().quick else Scale()
    logging.getLogger("areal_core").setLevel(logging.ERROR)  # it would say that a server is out of rotation

    workflow = TwentyQuestions()
    with (
        EmbeddedServer(ms_per_token=scale.ms_per_token) as steady,
        EmbeddedServer(ms_per_token=scale.ms_per_token) as unlucky,
        AsyncTaskRunner[dict[str, Any]](scale.episodes) as runner,
        RemoteInfEngine(InferenceEngineConfig(request_timeout=120), backend="sglang") as engine,
    ):
        engine.initialize([steady.addr, unlucky.addr])
        start = time.monotonic()

        def begin(numbers: Iterable[int]) -> None:
            for number in numbers:
                letter = "etaoinshrdlu"[number % 12]
                runner.submit(workflow.arun_episode, engine, {"number": number, "letter": letter})

        numbers = iter(range(scale.episodes))
        results: list[TimedResult[dict[str, Any]]] = []
        begin(itertools.islice(numbers, scale.in_flight))
        while len(results) < scale.episodes:
            batch = runner.wait(min(scale.batch, scale.episodes - len(results)), with_timing=True)
            results += batch
            begin(itertools.islice(numbers, len(batch)))
            if len(results) == scale.episodes // 4:
                cut_off = unlucky.stats().in_flight
                unlucky.kill()
                print(f"{unlucky.addr} was killed in the middle of {cut_off} generations", flush=True)
            elif len(results) == scale.episodes // 2:
                unlucky.start()
                print(f"{unlucky.addr} is back; {len(results)} episodes have ended by now", flush=True)
        show(results, time.monotonic() - start, {"steady": steady, "unlucky": unlucky})
    return 0


def show(
    results: Sequence[TimedResult[dict[str, Any]]], seconds: float, servers: dict[str, EmbeddedServer]
) -> None:
    """Print what became of every episode."""
    count = Counter(result.status for result in results)
    episodes = [result.data for result in results if result.data]
    turns = sum(episode["turns"] for episode in episodes)
    tokens = sum(sum(episode["loss_mask"]) for episode in episodes)
    resumed = sum(episode["segments"] - episode["turns"] for episode in episodes)
    seen = {name: server.stats().completed for name, server in servers.items()}
    print(f"""
episodes     {count["completed"]} completed, {len(results) - count["completed"]} not
turns        {turns}, {turns / len(episodes):.1f} an episode
tokens       {tokens:,}, each with its log-probability and its version
resumed      {resumed} replies were cut off in the middle and went on from the tokens that had come
served       {seen["steady"]} replies by the steady server, {seen["unlucky"]} by the other since it came back
mean reward  {sum(episode["reward"] for episode in episodes) / len(episodes):.2f}
wall time    {seconds:.1f} s

One of two servers was lost, {len(results) - count["completed"]} of {len(results)} episodes were.""")


if __name__ == "__main__":
    sys.exit(main())
