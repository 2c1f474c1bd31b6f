"""Who plays in the agents' benchmark: a program with the agents, a trainer, a server; and their CPU time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _children import MeasurementError
from areal_core.agents import ChatFormat
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import ChatTokenizer, EmbeddedServer
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import InferenceEngine, RolloutWorkflow
from areal_core.workflow_context import HttpConfig, configure_http
from areal_core.workflow_executor import WorkflowExecutor

PROCESSES = ("agents", "trainer", "server")

_MODE = "test"  # each reply is a function of its prompt: both ways have the same work
_MS_PER_TOKEN = 2.0
_SIGMA = 0.5
_KEEP_S = 60.0
_CALLS = 3


@dataclass(frozen=True)
class Manner:
    """How the agents ask, and how the engine does for them."""

    stream: bool = False
    stream_replies: bool = False
    arguments: tuple[str, ...] = ()
    """For the program."""
    collector: tuple[int, int, int] | None = None
    """How seldom the trainer collects garbage; None: as Python does."""


class Program:
    """The agents' program, with what its sessions wait for."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        script = Path(__file__).with_name("_agent_program.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(_CALLS), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="answers", daemon=True)
        self._reader.start()

    async def play(self, base_url: str, api_key: str, data: Mapping[str, Any]) -> str:
        """Have it play a session, and return what stands for the replies. Raises MeasurementError."""
        number = next(self._ids)
        order = {"id": number, "base_url": base_url, "api_key": api_key, **data}
        self._waiting[number] = asyncio.get_running_loop().create_future()
        if self._ended:
            raise MeasurementError("the agents' program has ended")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return await self._waiting[number]

    def close(self) -> None:
        """End it; it has nothing to do any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            _tell(self._waiting.pop(said["id"]), said["digest"])
        self._ended = True
        for waiting in list(self._waiting.values()):
            _tell(waiting, None)


def _tell(waiting: asyncio.Future[str], digest: str | None) -> None:
    def tell() -> None:
        if waiting.done():
            return
        if digest is None:
            waiting.set_exception(MeasurementError("the agents' program has ended"))
        else:
            waiting.set_result(digest)

    waiting.get_loop().call_soon_threadsafe(tell)


class FarAgent:
    """An agent that is played by the program, through the gateway."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.digests: dict[str, str] = {}

    async def run(self, data: Any, *, base_url: str, api_key: str, http_client: object) -> float:
        """Have the program play."""
        self.digests[data["topic"]] = await self._program.play(base_url, api_key, data)
        return 1.0


class DirectWorkflow(RolloutWorkflow):
    """Has the program ask the server itself. What it returns for a trajectory has nothing in it."""

    def __init__(self, program: Program, base_url: str) -> None:
        self._program = program
        self._base_url = base_url
        self.digests: dict[str, str] = {}

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any]:
        """Have the program play."""
        self.digests[data["topic"]] = await self._program.play(self._base_url, "none", data)
        ones = np.ones((1, 1), np.int32)
        mask = {"attention_mask": ones, "loss_mask": ones}
        return {"input_ids": ones.astype(np.int64), **mask, "versions": ones * 0, "rewards": np.ones(1)}


class Stage:
    """All of them together, for rounds of *sessions* conversations. Raises MeasurementError."""

    def __init__(
        self,
        manner: Manner,
        sessions: int,
        server: EmbeddedServer,
        program: Program,
        executor: WorkflowExecutor,
    ) -> None:
        self._server = server
        self._pids = dict(zip(PROCESSES, (program.pid, os.getpid(), server.pid), strict=True))
        self._executor = executor
        self._data = [{"topic": str(number), "stream": manner.stream} for number in range(sessions)]
        self._rounds = itertools.count()
        self._direct = DirectWorkflow(program, f"{server.url}/v1")
        self._gateway = FarAgent(program)

    def direct(self) -> dict[str, float]:
        """Play a round at the server itself; return the seconds of CPU of a call, by process."""
        return self._round(self._direct)

    def gateway(self) -> dict[str, float]:
        """Play a round through the gateway; return the seconds of CPU of a call, by process."""
        return self._round(self._gateway)

    def check_same(self) -> None:
        """Raise MeasurementError unless the same was said in the last round of either."""
        if self._direct.digests != self._gateway.digests:
            raise MeasurementError("the gateway's agents were told something else than the server's own")

    def _round(self, workflow: DirectWorkflow | FarAgent) -> dict[str, float]:
        asked = self._server.stats().generations
        number = next(self._rounds)
        data = [{**one, "round": number} for one in self._data]
        before = {name: cpu_s(pid) for name, pid in self._pids.items()}
        brought = self._executor.rollout_batch(data, workflow)
        taken = {name: cpu_s(pid) - before[name] for name, pid in self._pids.items()}
        calls = _CALLS * len(self._data)
        if None in brought or self._server.stats().generations - asked != calls:
            raise MeasurementError(f"some of {calls} calls failed, or were made again")
        return {name: seconds / calls for name, seconds in taken.items()}


@contextmanager
def staged(manner: Manner, sessions: int, at_once: int) -> Iterator[Stage]:
    """Start them all, for rounds of *sessions* of which so many are *at_once*; end them with the block."""
    config = InferenceEngineConfig(
        consumer_batch_size=sessions,
        max_concurrent_rollouts=at_once,
        stream_replies=manner.stream_replies,
        progress=False,
    )
    with ExitStack() as stack:
        if manner.collector is not None:
            stack.callback(gc.set_threshold, *gc.get_threshold())
            gc.set_threshold(*manner.collector)
        server = stack.enter_context(
            EmbeddedServer(mode=_MODE, slots=0, ms_per_token=_MS_PER_TOKEN, sigma=_SIGMA)
        )
        engine = stack.enter_context(RemoteInfEngine(config, chat=ChatFormat(ChatTokenizer(_MODE))))
        engine.initialize(server.addr)
        program = Program(manner.arguments)
        stack.callback(program.close)
        executor = stack.enter_context(WorkflowExecutor(config, engine))
        executor.runner.run(_keep_connections)
        yield Stage(manner, sessions, server, program, executor)


async def _keep_connections() -> None:
    """Have the trainer's pool outlive the rounds in which agents ask the server themselves."""
    configure_http(HttpConfig(keepalive_expiry=_KEEP_S))


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has taken, of all its threads and the kernel for them."""
    return time.clock_gettime(~pid << 3 | 2)  # Linux's number for the clock that clock_getcpuclockid(3) gives
