"""The workflows that come with the library, on real servers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest

from areal_core import _record
from areal_core._record import EpisodeRecord
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.embedded import logprob_of, token_of
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.trajectory import check_trajectory_format
from areal_core.types import GenerationHyperparameters, ModelResponse, RolloutWorkflow
from areal_core.workflows import MultiTurnWorkflow, SingleTurnWorkflow, Transcript
from children import RunScript
from conftest import MakeRunner
from engine_tools import an_engine, check_balanced, lives, logs_of
from reused_servers import ReusedServer

LONG_S = 20.0
PROMPT = [104, 105, 63]
LENGTH = 6
GCONFIG = GenerationHyperparameters(max_new_tokens=LENGTH, ignore_eos=True, temperature=0.0)
WRONG = [33, 33]
"""Tokens of feedback, which no server makes."""
KEYS = ["input_ids", "attention_mask", "loss_mask", "logprobs", "versions", "rewards"]


@pytest.fixture
def servers(servers: list[ReusedServer]) -> list[ReusedServer]:
    return servers[:2]


@pytest.fixture
def engine(servers: list[ReusedServer]) -> Iterator[RemoteInfEngine]:
    with an_engine(*servers) as engine:
        yield engine
        check_balanced(engine)


class Playing:
    """Plays episodes on a runner."""

    def __init__(self, runner: AsyncTaskRunner[Any], engine: RemoteInfEngine) -> None:
        self.runner = runner
        self._engine = engine

    def play(self, workflow: RolloutWorkflow, data: Any) -> dict[str, Any]:
        """Return the trajectory of an episode that must succeed, of the right format."""
        task = self.runner.submit(workflow.arun_episode, self._engine, data)
        result = self.runner.wait_for_task(task, LONG_S)
        if result.error is not None:
            raise result.error
        trajectory: dict[str, Any] | None = result.data
        assert trajectory is not None
        check_trajectory_format(trajectory, batch_size=1, expected_keys=KEYS)
        return trajectory

    def error(self, workflow: RolloutWorkflow, data: Any) -> BaseException:
        """Return the error of an episode that must fail."""
        task = self.runner.submit(workflow.arun_episode, self._engine, data)
        result = self.runner.wait_for_task(task, LONG_S)
        assert (result.status, result.data) == ("failed", None)
        assert result.error is not None
        return result.error


@pytest.fixture
def playing(make_runner: MakeRunner, engine: RemoteInfEngine) -> Playing:
    return Playing(make_runner(100), engine)


def continued(prompt: Sequence[int], version: int = 0, count: int = LENGTH) -> list[int]:
    """Return what a server with weights of *version* says after *prompt*."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(token_of(version, tokens, may_end=False))
    return tokens[len(prompt) :]


def check_told_and_said(
    trajectory: dict[str, Any], pieces: Sequence[tuple[list[int], int | None]], reward: float
) -> None:
    """See that *trajectory* is *pieces* one behind the other: tokens, and the version that said them.

    Version None: they were told.
    """
    tokens: list[int] = []
    for piece, version in pieces:
        place = slice(len(tokens), len(tokens) + len(piece))
        said = version is not None
        assert trajectory["input_ids"][0, place].tolist() == piece
        assert trajectory["loss_mask"][0, place].tolist() == [int(said)] * len(piece)
        assert trajectory["versions"][0, place].tolist() == [version if said else -1] * len(piece)
        logprobs = []
        for token in piece:
            logprobs.append(logprob_of(version, tokens) if version is not None else 0.0)
            tokens.append(token)
        assert trajectory["logprobs"][0, place].tolist() == np.array(logprobs, np.float32).tolist()
    assert trajectory["attention_mask"].tolist() == [[1] * len(tokens)]
    assert trajectory["input_ids"].shape == (1, len(tokens))
    assert trajectory["rewards"].tolist() == [np.float32(reward)]


# Rewards. In a process they are imported from here.


def length_ratio(prompt: list[int], output: list[int], data: dict[str, Any]) -> float:
    return len(output) / len(prompt) + float(data["bonus"])


async def length_ratio_awaited(prompt: list[int], output: list[int], data: Any) -> float:
    await asyncio.sleep(0)
    return length_ratio(prompt, output, data)


def process_id(prompt: list[int], output: list[int], data: Any) -> float:
    return os.getpid()


def hang(prompt: list[int], output: list[int], data: Any) -> float:
    while True:
        pass


async def await_for_ever(prompt: list[int], output: list[int], data: Any) -> float:
    await asyncio.Event().wait()
    return 0.0


def fail(prompt: list[int], output: list[int], data: Any) -> float:
    raise LookupError("no answer is known")


def one(prompt: list[int], output: list[int], data: Any) -> float:
    return 1.0


def rewarded(value: Any) -> Any:
    return lambda prompt, output, data: value


# -- one turn


@pytest.mark.parametrize(
    ("reward_fn", "place"),
    [
        (length_ratio, "loop"),
        (length_ratio_awaited, "loop"),
        (length_ratio, "thread"),
        (length_ratio, "process"),
    ],
    ids=["loop", "awaited", "thread", "process"],
)
def test_a_trajectory_is_prompt_and_answer_with_what_tells_of_each_token(
    playing: Playing, reward_fn: Any, place: Any
) -> None:
    workflow = SingleTurnWorkflow(reward_fn, GCONFIG, reward_in=place)
    trajectory = playing.play(workflow, {"input_ids": PROMPT, "bonus": 0.5})
    check_told_and_said(trajectory, [(PROMPT, None), (continued(PROMPT), 0)], LENGTH / len(PROMPT) + 0.5)
    assert {key: str(value.dtype) for key, value in trajectory.items()} == {
        "input_ids": "int64",
        "attention_mask": "int32",
        "loss_mask": "int32",
        "logprobs": "float32",
        "versions": "int32",
        "rewards": "float32",
    }


def test_the_reward_is_computed_where_it_is_said(playing: Playing) -> None:
    threads: list[threading.Thread] = []

    def note(prompt: list[int], output: list[int], data: Any) -> float:
        threads.append(threading.current_thread())
        return 0.0

    data = {"input_ids": PROMPT}
    playing.play(SingleTurnWorkflow(note, GCONFIG, reward_in="loop"), data)
    playing.play(SingleTurnWorkflow(note, GCONFIG), data)
    assert threads[0] is playing.runner.thread
    assert threads[1] not in (playing.runner.thread, threading.current_thread())
    in_process = playing.play(SingleTurnWorkflow(process_id, GCONFIG, reward_in="process"), data)
    assert in_process["rewards"].tolist() not in ([float(os.getpid())], [0.0])


def test_the_reward_function_is_given_prompt_answer_and_the_item_itself(playing: Playing) -> None:
    calls: list[tuple[list[int], list[int], Any]] = []

    def note(*call: Any) -> float:
        calls.append(call)
        return 0.0

    data = {"input_ids": np.array(PROMPT), "answer": "42"}
    playing.play(SingleTurnWorkflow(note, GCONFIG), data)
    ((prompt, output, given),) = calls
    assert (prompt, output) == (PROMPT, continued(PROMPT))
    assert given is data


def test_with_tokenize_an_item_may_be_anything(playing: Playing) -> None:
    workflow = SingleTurnWorkflow(one, GCONFIG, lambda text: text.encode())
    trajectory = playing.play(workflow, "hi?")
    check_told_and_said(trajectory, [(PROMPT, None), (continued(PROMPT), 0)], 1.0)


@pytest.mark.parametrize("data", [{"prompt": "hi?"}, "hi?", [1, 2], None])
def test_without_it_an_item_has_tokens(playing: Playing, data: Any) -> None:
    error = playing.error(SingleTurnWorkflow(one, GCONFIG), data)
    assert isinstance(error, TypeError)
    assert str(error) == "data has no tokens under input_ids; put them there, or give `tokenize`"


@pytest.mark.parametrize(
    ("reward_fn", "place", "says"),
    [
        (hang, "process", "test_workflows.hang took longer than reward_timeout=0.3 s"),
        (await_for_ever, "loop", "test_workflows.await_for_ever took longer than reward_timeout=0.3 s"),
    ],
    ids=["process", "loop"],
)
def test_a_reward_that_takes_too_long_fails_its_episode(
    playing: Playing, reward_fn: Any, place: Any, says: str
) -> None:
    workflow = SingleTurnWorkflow(reward_fn, GCONFIG, reward_in=place, reward_timeout=0.3)
    error = playing.error(workflow, {"input_ids": PROMPT})
    assert isinstance(error, TimeoutError)
    assert says in str(error)


def test_so_does_one_whose_thread_hangs(playing: Playing) -> None:
    with ExitStack() as at_last:
        go_on = threading.Event()
        at_last.callback(go_on.set)

        def wait(prompt: list[int], output: list[int], data: Any) -> float:
            go_on.wait(LONG_S)
            return 0.0

        workflow = SingleTurnWorkflow(wait, GCONFIG, reward_timeout=0.05)
        error = playing.error(workflow, {"input_ids": PROMPT})
        assert isinstance(error, TimeoutError)
        playing.play(SingleTurnWorkflow(one, GCONFIG), {"input_ids": PROMPT})  # others go on meanwhile


@pytest.mark.parametrize("place", ["loop", "thread", "process"])
def test_the_error_of_a_reward_is_that_of_the_episode(playing: Playing, place: Any) -> None:
    error = playing.error(SingleTurnWorkflow(fail, GCONFIG, reward_in=place), {"input_ids": PROMPT})
    assert isinstance(error, LookupError)
    assert str(error) == "no answer is known"


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (None, TypeError, "reward_fn returned None; return a float"),
        ([1.0], TypeError, "reward_fn returned a list; return a float"),
        (float("nan"), ValueError, "reward_fn returned nan; return a finite number"),
        (float("inf"), ValueError, "reward_fn returned inf; return a finite number"),
        ("good", TypeError, "reward_fn returned a str; return a float"),
    ],
)
def test_a_reward_is_a_finite_number(playing: Playing, value: Any, kind: type[Exception], says: str) -> None:
    error = playing.error(SingleTurnWorkflow(rewarded(value), GCONFIG), {"input_ids": PROMPT})
    assert type(error) is kind
    assert str(error) == says


@pytest.mark.parametrize(
    ("value", "reward"), [(True, 1.0), (np.float32(0.25), 0.25), (np.array(2), 2.0), (-3, -3.0)]
)
def test_any_kind_of_number_will_do(playing: Playing, value: Any, reward: float) -> None:
    trajectory = playing.play(SingleTurnWorkflow(rewarded(value), GCONFIG), {"input_ids": PROMPT})
    assert trajectory["rewards"].tolist() == [reward]


def test_whoever_asks_is_told_that_it_waits_for_a_reward(playing: Playing) -> None:
    record = EpisodeRecord()
    stages: list[str] = []

    def note(prompt: list[int], output: list[int], data: Any) -> float:
        stages.append(record.stage)
        return 0.0

    _record.current.set(record)
    try:
        playing.play(SingleTurnWorkflow(note, GCONFIG), {"input_ids": PROMPT})
    finally:
        _record.current.set(None)
    assert [*stages, record.stage] == ["waiting for its reward", "playing its workflow"]


# -- several turns


def right_at(prompt: list[int], output: list[int], data: Any) -> float:
    """Be content with the answer in turn ``data["right_at"]``."""
    turn = prompt.count(WRONG[0]) // len(WRONG) + 1
    return 1.0 if turn == data["right_at"] else float(data.get("else", 0.0))


def feedback(data: Any, output: list[int]) -> list[int]:
    return WRONG


def conversation(turns: int) -> list[tuple[list[int], int | None]]:
    """Return the pieces of a conversation of *turns*."""
    pieces: list[tuple[list[int], int | None]] = [(PROMPT, None)]
    for turn in range(turns):
        if turn:
            pieces.append((WRONG, None))
        said = continued([token for piece, _ in pieces for token in piece])
        pieces.append((said, 0))
    return pieces


@pytest.mark.parametrize(("turn", "reward"), [(1, 1.0), (2, 0.5), (3, 0.25)])
def test_it_is_asked_until_the_answer_is_right(playing: Playing, turn: int, reward: float) -> None:
    workflow = MultiTurnWorkflow(right_at, GCONFIG, feedback, max_turns=3, discount=0.5)
    trajectory = playing.play(workflow, {"input_ids": PROMPT, "right_at": turn})
    check_told_and_said(trajectory, conversation(turn), reward)


def test_and_no_longer_than_for_its_turns(playing: Playing) -> None:
    workflow = MultiTurnWorkflow(right_at, GCONFIG, feedback, max_turns=3, discount=0.5)
    trajectory = playing.play(workflow, {"input_ids": PROMPT, "right_at": 4, "else": 0.8})
    check_told_and_said(trajectory, conversation(3), 0.2)


def test_what_is_enough_can_be_less_than_one(playing: Playing) -> None:
    workflow = MultiTurnWorkflow(right_at, GCONFIG, feedback, enough=0.8)
    trajectory = playing.play(workflow, {"input_ids": PROMPT, "right_at": 2, "else": 0.8})
    check_told_and_said(trajectory, conversation(1), 0.8)


def test_a_conversation_stays_on_one_server_and_others_are_others(
    playing: Playing, servers: list[ReusedServer]
) -> None:
    workflow = MultiTurnWorkflow(right_at, GCONFIG, feedback)
    for _ in range(4):
        playing.play(workflow, {"input_ids": PROMPT, "right_at": 3})
    attempts = lives(logs_of(*servers))
    where: dict[str, set[str]] = {}
    for life in attempts:
        where.setdefault(life.conversation, set()).add(life.server)
    assert len(attempts) == 12
    assert [len(seen) for seen in where.values()] == [1] * 4
    assert {server for seen in where.values() for server in seen} == {one.addr for one in servers}


def test_feedback_is_given_the_item_and_the_answer_and_may_answer_to_it(playing: Playing) -> None:
    def answer(data: Any, output: list[int]) -> Iterator[int]:
        return iter([*WRONG, output[-1], data["hint"]])

    data = {"input_ids": PROMPT, "right_at": 2, "hint": 120}
    trajectory = playing.play(MultiTurnWorkflow(right_at, GCONFIG, answer), data)
    first = continued(PROMPT)
    told = [*WRONG, first[-1], 120]
    second = continued(PROMPT + first + told)
    check_told_and_said(trajectory, [(PROMPT, None), (first, 0), (told, None), (second, 0)], 0.9)


def test_each_turn_has_the_version_that_said_it(
    playing: Playing, engine: RemoteInfEngine, weights_of: Any
) -> None:
    async def update_before_the_second(prompt: list[int], output: list[int], data: Any) -> float:
        if len(prompt) > len(PROMPT):
            return 1.0
        await engine.update_weights_from_disk(weights_of(1), 1)
        return 0.0

    workflow = MultiTurnWorkflow(update_before_the_second, GCONFIG, feedback, reward_in="loop")
    trajectory = playing.play(workflow, {"input_ids": PROMPT})
    first = continued(PROMPT)
    second = continued(PROMPT + first + WRONG, version=1)
    check_told_and_said(trajectory, [(PROMPT, None), (first, 0), (WRONG, None), (second, 1)], 0.9)


@pytest.mark.parametrize("place", ["thread", "process"])
def test_rewards_of_turns_can_be_elsewhere_too(playing: Playing, place: Any) -> None:
    workflow = MultiTurnWorkflow(right_at, GCONFIG, feedback, reward_in=place, discount=0.5)
    trajectory = playing.play(workflow, {"input_ids": PROMPT, "right_at": 2})
    check_told_and_said(trajectory, conversation(2), 0.5)


def test_many_at_once_share_a_workflow(playing: Playing, engine: RemoteInfEngine) -> None:
    workflow = MultiTurnWorkflow(right_at, GCONFIG, feedback, max_turns=3, discount=0.5)
    turns = [1 + number % 4 for number in range(40)]
    tasks = [
        playing.runner.submit(workflow.arun_episode, engine, {"input_ids": PROMPT, "right_at": turn})
        for turn in turns
    ]
    for task, turn in zip(tasks, turns, strict=True):
        trajectory = playing.runner.wait_for_task(task, LONG_S).data
        assert trajectory is not None
        check_told_and_said(trajectory, conversation(min(turn, 3)), (1.0, 0.5, 0.25, 0.0)[turn - 1])


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("max_turns", 0, "max_turns=0 is below 1"),
        ("max_turns", 1.5, "max_turns=1.5 is not an int"),
        ("discount", 1.1, r"discount=1.1 is out of range; give a finite number in 0\.\.1"),
        ("enough", "all", "enough='all' is not a number"),
        ("reward_in", "cloud", "reward_in='cloud' is no place"),
        ("reward_in", "process", "give what is returned here another name, or use reward_in='thread'"),
        ("reward_timeout", 0, "reward_timeout=0 leaves no time"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: Any, says: str) -> None:
    def reward(prompt: list[int], output: list[int], data: Any) -> float:
        return 1.0

    with pytest.raises((ValueError, TypeError), match=says):
        MultiTurnWorkflow(reward, GCONFIG, feedback, **{option: value})


@pytest.mark.any_loop
@pytest.mark.parametrize("workflow", [SingleTurnWorkflow, partial(MultiTurnWorkflow, feedback=feedback)])
@pytest.mark.parametrize(
    ("gconfig", "kind", "says"),
    [
        ("notaconfig", TypeError, "gconfig='notaconfig' is not a GenerationHyperparameters; give one"),
        (GCONFIG.new(n_samples=4), ValueError,
         ("gconfig has n_samples=4, and an episode has one conversation; "
          "give n_samples=1 here, and group_size=4 to the executor")),
    ],
)  # fmt: skip
def test_a_gconfig_that_every_episode_would_fail_with_is_refused(
    workflow: Callable[..., object], gconfig: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        workflow(right_at, gconfig)
    assert str(refused.value) == says


@pytest.mark.any_loop
def test_an_async_reward_function_wants_the_loop() -> None:
    with pytest.raises(TypeError, match=r"await_for_ever is async: .* use reward_in='loop'"):
        SingleTurnWorkflow(await_for_ever, GCONFIG)


# -- the transcript


def a_reply(prompt: list[int], output: list[int]) -> ModelResponse:
    return ModelResponse(
        input_tokens=prompt,
        output_tokens=output,
        output_logprobs=[-1.0] * len(output),
        output_versions=[2] * len(output),
        versions_exact=True,
        stop_reason="stop",
        latency=0.0,
        ttft=None,
    )


@pytest.mark.any_loop
def test_a_reply_to_something_else_does_not_belong_to_it() -> None:
    transcript = Transcript([1, 2])
    transcript.hear(a_reply([1, 2], [3]))
    with pytest.raises(ValueError, match="the reply is to 2 tokens that are not the 3 of this conversation"):
        transcript.hear(a_reply([1, 2], [3]))
    assert transcript.tokens == [1, 2, 3]


@pytest.mark.any_loop
def test_it_keeps_tokens_of_its_own() -> None:
    prompt, output = [1, 2], [3]
    transcript = Transcript(prompt)
    transcript.hear(a_reply([1, 2], output))
    transcript.tell(np.array([4, 5]))
    assert (prompt, output) == ([1, 2], [3])
    before = transcript.trajectory(0.0)
    transcript.tell([6])
    assert before["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert before["versions"].tolist() == [[-1, -1, 2, -1, -1]]
    assert set(map(type, transcript.tokens)) == {int}


@pytest.mark.any_loop
@pytest.mark.parametrize("tokens", ["text", [1.5], [-1], None])
def test_what_is_no_token_is_not_told(tokens: Any) -> None:
    transcript = Transcript([1])
    with pytest.raises((ValueError, TypeError), match=r"^tokens has"):
        transcript.tell(tokens)
    assert transcript.tokens == [1]


# -- the package


@pytest.mark.any_loop
def test_its_names_are_imported_on_first_use(run_script: RunScript) -> None:
    script = run_script("""
        import sys
        import areal_core.workflows as workflows
        print([name for name in ("numpy", "torch", "aiohttp", "asyncio") if name in sys.modules])
        print(sorted(set(workflows.__all__) - set(dir(workflows))))
        print(*(getattr(workflows, name).__module__ for name in workflows.__all__))
        print([name for name in ("torch", "aiohttp") if name in sys.modules])
    """)
    modules = "multi_turn areal_core.workflows.single_turn areal_core.workflows.transcript"
    assert (script.stdout, script.stderr) == (f"[]\n[]\nareal_core.workflows.{modules}\n[]\n", "")
