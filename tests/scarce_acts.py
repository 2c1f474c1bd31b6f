"""Acts for `scarcity`, and the command that plays one: names of act and shortage, address, directory."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# All that an act imports at its first time, as far as it can be known: an import that finds no descriptor
# says so, and is another story.
import areal_core._agents.completer
import areal_core._agents.gateway
import areal_core._engine.backends.sglang
import areal_core._engine.running
import areal_core._executor.journaling
import areal_core._http.pool
import areal_core._http.transport  # noqa: F401
import offload_jobs
import scarcity
from agent_tools import a_chat, ask, user
from areal_core import offload, workflow_context
from areal_core._journal.records import Committed, Queued
from areal_core._journal.store import Store
from areal_core._journal.writer import Writer
from areal_core._trajectory.dump import TrajectoryDump
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.errors import JournalError
from areal_core.journal import resumable_steps
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import SingleTurnWorkflow
from executor_tools import Engine, Playing

WAIT_S = 20.0
_TASKS = 4

Wrong = list[BaseException]


class Acts:
    """The acts, with a server and a directory of their own to play them at."""

    def __init__(self, addr: str, directory: Path) -> None:
        self._addr = addr
        self._directory = directory
        self._durable: set[int] = set()
        self._committed: set[int] = set()
        self._checkpoints: dict[int, list[tuple[int, int]]] = {}

    def runner(self) -> Wrong:
        """Run tasks that open files, sockets and threads."""
        runner = AsyncTaskRunner[int](16, loop_factory=scarcity.new_loop)
        try:
            runner.initialize()
        except (OSError, RuntimeError) as error:
            runner.destroy()
            return [error]
        try:
            ids = [runner.submit(self._task, number) for number in range(_TASKS)]
            outcomes = [runner.wait_for_task(task_id, WAIT_S) for task_id in ids]
            assert all(one.data == number for number, one in enumerate(outcomes) if one.error is None)
        finally:
            runner.destroy(timeout=WAIT_S)
        stats = runner.stats()
        assert (stats.submitted, stats.collected, stats.abandoned) == (_TASKS, _TASKS, 0)
        return _errors(one.error for one in outcomes)

    async def _task(self, number: int) -> int:
        await asyncio.to_thread(Path(os.devnull).read_bytes)
        session = await workflow_context.get_aiohttp_session()
        async with session.get(f"http://{self._addr}/health") as reply:
            assert reply.status == 200
        return number

    def offloading(self) -> Wrong:
        """Call functions in threads and in worker processes."""
        runner = AsyncTaskRunner[Any](16, loop_factory=scarcity.new_loop)
        try:
            runner.initialize()
        except (OSError, RuntimeError) as error:
            return [error]
        try:
            for number in range(1, _TASKS):
                runner.submit(_call_everywhere, number)
            outcomes = list(runner.as_completed(WAIT_S))
        finally:
            runner.destroy(timeout=WAIT_S)
        assert len(outcomes) == _TASKS - 1
        assert offload.abandoned_threads() == 0
        return _errors(one.error for one in outcomes)

    def rollouts(self) -> Wrong:
        """Roll out on an engine, with rewards in threads."""
        workflow = SingleTurnWorkflow(_reward, GenerationHyperparameters(max_new_tokens=4))
        return self._roll_out([{"input_ids": [1, 2, number]} for number in range(_TASKS)], workflow)

    def agents(self) -> Wrong:
        """Play agents that ask through the gateway."""
        return self._roll_out(["hello"] * _TASKS, _Agent())

    def _roll_out(self, data: list[Any], workflow: Any) -> Wrong:
        config = InferenceEngineConfig(
            consumer_batch_size=_TASKS,
            request_timeout=5.0,
            setup_timeout=1.0,
            control_timeout=2.0,
            request_retries=1,
        )
        with RemoteInfEngine(config, chat=a_chat()) as engine:
            try:
                engine.initialize(self._addr)
            except (OSError, RuntimeError) as error:
                return [error]
            executor = WorkflowExecutor(config, engine, loop_factory=scarcity.new_loop)
            try:
                executor.initialize()
            except (OSError, RuntimeError) as error:
                executor.destroy(WAIT_S)
                return [error]
            try:
                for item in data:
                    executor.submit(item, workflow)
                outcomes = executor.wait_outcomes(len(data), WAIT_S)
            finally:
                executor.destroy(WAIT_S)
            assert len(outcomes) == len(data)
            assert all((one.trajectory is None) == (one.error is not None) for one in outcomes)
            return _errors(one.error for one in outcomes)

    def dump(self) -> Wrong:
        """Write records to files; those that were written are there whole."""
        before = self._dumped()
        with TrajectoryDump(self._directory / str(os.getpid()), max_waiting_bytes=2**30) as dump:
            for number in range(_TASKS):
                dump.write(0, {"number": number, "text": "x" * 4_000})
            assert dump.flush(WAIT_S)
        assert dump.written + dump.failed + dump.dropped == _TASKS
        assert self._dumped() - before == dump.written
        return [OSError("not all were written")] if dump.written < _TASKS else []

    def _dumped(self) -> int:
        file = self._directory / str(os.getpid()) / "0.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return sum(_is_record(line) for line in lines)

    def journal(self) -> Wrong:
        """Go on with a journal: what was durable is there, and a commit that is not says so."""
        try:
            with Store(self._directory / str(os.getpid())) as store:
                steps = store.steps()
                assert self._durable <= {max(steps, default=0), *range(max(steps, default=0))}
                store.read(max(steps, default=None))
                with Writer(store) as writer:
                    step = (store.last_step or 0) + 1
                    for number in range(_TASKS):
                        writer.put(Queued(f"{step}:{number}", 0), bytes(20_000))
                    writer.put(Committed(step))
                    writer.flush(WAIT_S)
                    self._durable.add(step)
        except JournalError as error:
            return [error]
        return []

    def training(self) -> Wrong:
        """Train for a few steps, from the last one that can be resumed; nothing is trained twice."""
        directory = self._directory / f"training-{os.getpid()}"
        try:
            steps = [step for step in resumable_steps(directory) if step in self._checkpoints]
            assert not self._committed or max(self._committed) in steps
            return self._train(directory, max(steps, default=None))
        except (OSError, JournalError) as error:
            return [error]

    def _train(self, directory: Path, step: int | None) -> Wrong:
        engine = Engine(0 if step is None else step + 1)
        config = InferenceEngineConfig(
            consumer_batch_size=_TASKS, max_head_offpolicyness=1, journal_dir=directory, stall_timeout=5.0
        )
        trained = [] if step is None else self._checkpoints[step]
        executor = WorkflowExecutor(config, engine, resume_from=step, loop_factory=scarcity.new_loop)
        try:
            executor.initialize()
            assert executor.resumed is not None
            items = _Passes(executor.resumed.epoch)
            for _ in range(3):
                batch = executor.prepare_batch(items, _WORKFLOW)
                trained = trained + [tuple(one["input_ids"][0, :2].tolist()) for one in batch]
                engine.version += 1
                self._checkpoints[engine.version - 1] = trained
                executor.commit(engine.version - 1, WAIT_S)
                self._committed.add(engine.version - 1)
                executor.on_version_changed()
        except (OSError, RuntimeError) as error:
            return [error]
        finally:
            executor.destroy(WAIT_S)
            assert len(set(trained)) == len(trained), f"trained twice: {trained}"
        return []


class _Passes:
    """A dataloader whose items are numbered; each iteration of it is the next pass."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        for first in range(0, 12, 3):
            yield [(epoch, place) for place in range(first, first + 3)]


async def _play(data: Any) -> Any:
    await asyncio.sleep(0)
    prompt = np.zeros((1, 300), np.int64)
    prompt[0, :2] = data
    return {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}


_WORKFLOW = Playing(_play)


class _Agent:
    async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> float:
        client = await workflow_context.get_openai_client(base_url, api_key=api_key)
        await ask(client, [user(data)])
        return 1.0


def _reward(*_: Any) -> float:
    return 1.0


async def _call_everywhere(number: int) -> Any:
    in_thread = offload.offloaded(offload_jobs.give, to="thread")
    in_process = offload.offloaded(offload_jobs.give, to="process")
    return [await call(number) for call in (in_thread, in_process, in_process, in_thread)]


def _errors(errors: Iterable[BaseException | None]) -> Wrong:
    return [error for error in errors if error is not None]


def _is_record(line: str) -> bool:
    try:
        return bool(json.loads(line)["text"])
    except ValueError:
        return False


def main() -> None:
    """Play what the command line says."""
    act, shortage, addr, directory = sys.argv[1:]
    scarcity.play(getattr(Acts(addr, Path(directory)), act), getattr(scarcity, shortage))


if __name__ == "__main__":
    main()
