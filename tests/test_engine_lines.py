"""Of whom the engine's lines speak: of one episode, or of all."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from areal_core._engine.events import Events
from areal_core._log import EPISODE
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import EmbeddedServer
from areal_core.logs import configure_logging, forget
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters, InferenceEngine, ModelRequest, RolloutWorkflow
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import Transcript
from doors import turn_loop

WAIT_S = 20.0
GCONFIG = GenerationHyperparameters(max_new_tokens=150, ignore_eos=True)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    forget()
    structlog.reset_defaults()


class Counting(RolloutWorkflow):
    """Asks for tokens, and notes for which items some have come."""

    def __init__(self, came: set[str]) -> None:
        self._came = came

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        transcript = Transcript(data["prompt"])
        request = ModelRequest(
            transcript.tokens, GCONFIG, on_tokens=lambda _: self._came.add(data["data_id"])
        )
        transcript.hear(await engine.agenerate(request))
        return transcript.trajectory(1.0)


def test_a_server_that_goes_is_told_of_as_itself_and_each_failed_request_with_its_item(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    stream, came = io.StringIO(), set[str]()
    configure_logging(json=True, stream=stream)
    config = InferenceEngineConfig(consumer_batch_size=6)
    with (
        EmbeddedServer(ms_per_token=4, sigma=0) as one,
        EmbeddedServer(ms_per_token=4, sigma=0) as other,
        RemoteInfEngine(config) as engine,
        WorkflowExecutor(config, engine, loop_factory=loop_factory) as executor,
    ):
        engine.initialize([one.addr, other.addr])
        for number in range(6):
            item = {"prompt": [1, 2, number], "data_id": f"q{number}"}
            executor.submit(item, Counting(came), task_id=number)
        while len(came) < 6:
            turn_loop(executor.runner)
        one.kill()
        assert None not in executor.wait(6, WAIT_S)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (out,) = [line for line in lines if line["event"] == "server_out_of_rotation"]
    assert out["server"] == one.addr
    assert not set(EPISODE) & out.keys()
    failed = [line for line in lines if line["event"] == "attempt_failed"]
    assert failed
    for line in failed:
        assert line["data_id"] == f"q{line['rollout']}"


@pytest.mark.any_loop
def test_what_concerns_all_episodes_has_nothing_of_the_one_that_met_it_first(loop_name: str) -> None:
    seen: list[dict[str, Any]] = []

    class Noting:
        def warning(self, event: str, **fields: Any) -> None:
            seen.append({"event": event, **structlog.contextvars.get_contextvars()})

        info = warning

    events = Events(Noting())
    with structlog.contextvars.bound_contextvars(data_id="q7"):
        events.server_out("here", "it hung up")
        events.server_stays_out("here", "it hung up")
        events.server_in("here", 3)
        events.waits_for_open_generation(1.0, 2, "resume()")
        events.attempt_failed("talk", "here", ValueError("no"), 0.5)
    assert [line["event"] for line in seen if "data_id" in line] == ["attempt_failed"]
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("length", "shown"), [(200, "x" * 200), (201, "x" * 200 + "...")], ids=["all of it", "its beginning"]
)
@pytest.mark.any_loop
def test_a_long_error_of_an_attempt_is_said_to_go_on(loop_name: str, length: int, shown: str) -> None:
    errors: list[str] = []

    class Noting:
        def warning(self, event: str, **fields: Any) -> None: ...

        def info(self, event: str, **fields: Any) -> None:
            errors.append(fields["error"])

    Events(Noting()).attempt_failed("talk", "here", ValueError("x" * length), 0.5)
    assert errors == [shown]
