"""The agent as a program of its own: of the trainer it knows a URL and a key for each episode."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import httpx

_AGENT = sys.executable, str(Path(__file__).with_name("agent.py"))
_TO_END_S = 5.0
"""How long the program may take to end when there is nothing left to play."""


class AgentProgramError(Exception):
    """An episode failed in the program, or the program ended in the middle of it."""


class AgentProgram:
    """Runs *command* for as long as a ``with`` block; its `run` has it play episodes.

    One program plays them all, however many at once: to start Python takes longer than an episode.
    """

    def __init__(self, *command: str) -> None:
        self._command = command or _AGENT
        self._ids = itertools.count()
        self._ended: str | None = None
        self._waiting: dict[int, asyncio.Future[float]] = {}
        # Whoever holds it finds the loop of each future in `_waiting` running: none leaves without it.
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # a Ctrl-C is for this process, which ends the other
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), name="agent")
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stdin.close()  # which tells it to end
            self._process.wait(_TO_END_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
        self._listener.join()

    async def run(self, data: str, *, base_url: str, api_key: str, http_client: httpx.AsyncClient) -> float:
        """Have the program play one episode on the digits *data*. Raises AgentProgramError."""
        number, reward = next(self._ids), asyncio.get_running_loop().create_future()
        with self._lock:
            if self._ended is not None:
                raise AgentProgramError(self._ended)
            self._waiting[number] = reward
        try:
            self._say(id=number, digits=data, base_url=base_url, api_key=api_key)
            return float(await reward)
        finally:
            with self._lock:
                del self._waiting[number]

    def _say(self, **episode: Any) -> None:
        try:
            self._stdin.write(f"{json.dumps(episode)}\n")
            self._stdin.flush()
        except BrokenPipeError:  # it has ended: whoever waits is told so when its output is at its end
            pass

    def _listen(self, lines: IO[str]) -> None:
        """Pass on what the program says, until it ends."""
        with lines:
            for line in lines:
                self._hear(line)
        with self._lock:
            self._ended = f"the agent's program has ended, with status {self._process.wait()}"
            waiting = list(self._waiting)
        for number in waiting:
            self._tell(number, error=self._ended)

    def _hear(self, line: str) -> None:
        try:
            said = json.loads(line)
            number = said.pop("id")
        except (ValueError, AttributeError, KeyError):
            sys.stderr.write(line)  # what an agent prints besides is for people
        else:
            self._tell(number, **said)

    def _tell(self, number: int, *, reward: float = 0.0, error: str | None = None) -> None:
        with self._lock:
            episode = self._waiting.get(number)
            if episode is not None:
                episode.get_loop().call_soon_threadsafe(_finish, episode, reward, error)


def _finish(episode: asyncio.Future[float], reward: float, error: str | None) -> None:
    if episode.done():  # cancelled meanwhile
        return
    if error is None:
        episode.set_result(reward)
    else:
        episode.set_exception(AgentProgramError(error))
