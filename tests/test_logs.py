"""`configure_logging`: lines for people and for programs, in which episode, without keys; and the events."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import logging
import os
import pickle
import pty
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from areal_core import _log
from areal_core._executor import bundle
from areal_core._log import get_logger, log
from areal_core.embedded import EmbeddedServer
from areal_core.logs import EpisodeFilter, configure_logging, forget
from areal_core.types import GenerationHyperparameters
from areal_core.workflows import SingleTurnWorkflow
from children import RunScript
from conftest import MakeExecutor
from doors import turn_loop
from engine_tools import a_request, an_engine
from executor_tools import WAIT_S, Engine, Playing, obeying, trajectory_of

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guides" / "metrics-and-logs.md"
OURS = logging.getLogger("areal_core")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    forget()
    structlog.reset_defaults()


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the lines of JSON on *stream*."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_rollout_is_one_line_of_json(make_executor: MakeExecutor) -> None:
    configure_logging(stream=(stream := io.StringIO()))
    executor = make_executor(Engine(4), consumer_batch_size=8)
    for task, data in enumerate((3, None)):
        executor.submit(data, obeying, task_id=task)
        executor.wait(1, WAIT_S)
    executor.submit({"data_id": "q7"}, Playing(_fails), task_id=7, is_eval=True, group_size=2)
    executor.wait_outcomes(1, WAIT_S, is_eval=True)
    turn_loop(executor.runner)
    accepted, rejected, failed = lines_of(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", accepted.pop("timestamp"))
    assert accepted.pop("seconds") > 0
    assert 0 < accepted.pop("queue_s") < WAIT_S
    assert accepted == {
        "level": "info",
        "event": "rollout_accepted",
        "rollout": 0,
        "workflow": "Playing",
        "version": 4,
        "origin": 4,
    }
    assert (rejected["event"], rejected["reason"]) == ("rollout_rejected", "the workflow returned None")
    named = {name: failed[name] for name in ("event", "level", "rollout", "data_id", "is_eval", "group_size")}
    assert named == {
        "event": "rollout_failed",
        "level": "error",
        "rollout": 7,
        "data_id": "q7",
        "is_eval": True,
        "group_size": 2,
    }
    assert "LookupError: no tool" in failed["exception"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have lines that can wait do so until there are three."""
    monkeypatch.setattr(bundle, "MOST", 3)
    monkeypatch.setattr(bundle, "WAIT_S", 3600.0)


@pytest.mark.usefixtures("held")
def test_lines_of_many_rollouts_are_written_at_once_and_all_are_before_the_end(
    make_executor: MakeExecutor,
) -> None:
    configure_logging(stream=(stream := io.StringIO()))
    executor = make_executor(consumer_batch_size=8)
    ends, shown = list[float](), list[int]()
    for number in range(4):
        executor.submit(number, obeying, task_id=number)
        executor.wait(1, WAIT_S)
        ends.append(time.time())
        turn_loop(executor.runner)
        shown.append(len(lines_of(stream)))
    assert shown == [0, 0, 3, 3]
    executor.destroy()
    lines = lines_of(stream)
    assert [line["rollout"] for line in lines] == [0, 1, 2, 3]
    for line, end in zip(lines, ends, strict=True):  # it says when it ended, not when that was written
        assert datetime.fromisoformat(line["timestamp"]).timestamp() <= end


@pytest.mark.usefixtures("held")
def test_a_line_that_asks_for_something_is_written_at_once_after_those_before_it(
    make_executor: MakeExecutor,
) -> None:
    configure_logging(stream=(stream := io.StringIO()))
    executor = make_executor(consumer_batch_size=8)
    for data in (1, OSError()):
        executor.submit(data, obeying)
        executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    assert [line["event"] for line in lines_of(stream)] == ["rollout_accepted", "rollout_failed"]


def test_lines_that_wait_are_written_by_the_exit_where_the_loop_does_not_turn(run_script: RunScript) -> None:
    done = run_script(
        """
        import sys, threading
        from areal_core import InferenceEngineConfig, RemoteInfEngine, RolloutWorkflow, WorkflowExecutor
        from areal_core._executor import bundle
        from areal_core.logs import configure_logging

        class Workflow(RolloutWorkflow):
            async def arun_episode(self, engine, data):
                if data == "blocks":
                    blocks.set()
                    threading.Event().wait()

        bundle.WAIT_S = 3600.0
        blocks = threading.Event()
        configure_logging(stream=sys.stdout)
        config = InferenceEngineConfig(loop_block_warning=None)
        executor = WorkflowExecutor(config, RemoteInfEngine(config))
        executor.initialize()
        executor.submit("ends", Workflow(), task_id=1)
        executor.wait(1)
        executor.submit("blocks", Workflow(), task_id=2)
        blocks.wait()
        """
    )
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["event"] == "rollout_rejected"


def test_a_line_waits_for_others_for_a_while_only(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "WAIT_S", 0.0)
    configure_logging(stream=(stream := io.StringIO()))
    executor = make_executor()
    executor.submit(1, obeying)
    executor.wait(1, WAIT_S)
    while not lines_of(stream):
        turn_loop(executor.runner)


def test_the_record_of_a_line_is_of_the_moment_that_it_tells_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "areal_core")
    then_s = 1_700_000_001 + 1023 / 1024
    log(get_logger(), "info", "now", {})
    log(get_logger(), "info", "then", {}, then_s)
    now, then = caplog.records
    assert (then.created, then.msecs) == (then_s, 999.0)
    assert (then.pathname, then.funcName, then.args) == (_log.__file__, "hand_on", ())
    ago_ms = (now.created - then_s) * 1000
    assert then.relativeCreated == pytest.approx(now.relativeCreated - ago_ms, abs=1.0)


def test_the_record_of_an_error_has_it_and_is_of_its_moment_too(caplog: pytest.LogCaptureFixture) -> None:
    error = LookupError("no tool")
    try:
        raise error
    except LookupError:
        log(get_logger(), "error", "it_failed", {"exc_info": error}, 1_700_000_001.5)
        log(get_logger(), "error", "it_failed", {"exc_info": True})
    given, found = caplog.records
    assert given.exc_info == found.exc_info == (LookupError, error, error.__traceback__)
    assert given.created == 1_700_000_001.5


def test_a_line_that_no_logger_takes_does_no_harm() -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            asked.append(record.getMessage().split()[0])
            raise OSError

    asked, handler = list[str](), Failing()
    logging.getLogger("areal_core").addHandler(handler)
    try:
        log(get_logger(), "warning", "it_happened", {})
    finally:
        logging.getLogger("areal_core").removeHandler(handler)
    assert asked == ["it_happened", "logger_raised"]


def test_the_line_of_a_rollout_says_where_its_time_went(make_executor: MakeExecutor) -> None:
    configure_logging(stream=(stream := io.StringIO()))
    gconfig = GenerationHyperparameters(max_new_tokens=8, ignore_eos=True)
    workflow = SingleTurnWorkflow(lambda *_: 1.0, gconfig)

    async def accept(_trajectory: Any) -> bool:
        return True

    with EmbeddedServer(mode="test", ms_per_token=2, sigma=0) as server, an_engine(server) as engine:
        executor = make_executor(engine, consumer_batch_size=8)
        for size in (1, 2):
            executor.submit({"input_ids": [1, 2]}, workflow, group_size=size, should_accept_fn=accept)
            executor.wait(1, WAIT_S)
        executor.destroy()
    one, two = [line for line in lines_of(stream) if line["event"] == "rollout_accepted"]
    for line, size in ((one, 1), (two, 2)):
        assert min(line[name] for name in ("queue_s", "reward_s", "accept_s")) > 0
        assert line["generate_s"] >= size * 8 * 0.002
        assert line["generate_s"] + line["reward_s"] <= size * line["seconds"]


def test_replies_that_are_generated_at_once_count_once(make_executor: MakeExecutor) -> None:
    configure_logging(stream=(stream := io.StringIO()))

    with EmbeddedServer(mode="test", ms_per_token=2, sigma=0) as server, an_engine(server) as engine:

        async def play(_data: Any) -> Any:
            await asyncio.gather(*(engine.agenerate(a_request(most=8)) for _ in range(4)))
            return trajectory_of(1)

        executor = make_executor(engine)
        executor.submit(1, Playing(play))
        executor.wait(1, WAIT_S)
        executor.destroy()
    (line,) = [line for line in lines_of(stream) if line["event"] == "rollout_accepted"]
    assert 0 < line["generate_s"] <= line["seconds"]
    assert "reward_s" not in line


async def _fails(_data: Any) -> Any:
    secret_of_a_local = "the prompt"  # noqa: F841 -- which no traceback may show
    raise LookupError("no tool")


@pytest.mark.any_loop
@pytest.mark.parametrize("json", [True, False])
def test_tracebacks_show_no_values_of_variables(make_executor: MakeExecutor, json: bool) -> None:
    configure_logging(stream=(stream := io.StringIO()), json=json)
    executor = make_executor()
    executor.submit(1, Playing(_fails))
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    assert "LookupError: no tool" in stream.getvalue()
    assert "raise LookupError" in stream.getvalue()
    assert stream.getvalue().count("the prompt") == 0


@pytest.mark.any_loop
def test_a_terminal_gets_colours_and_a_file_json_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shown(stream: io.StringIO, **options: Any) -> str:
        configure_logging(stream=stream, **options)
        _log.get_logger().warning("server_out_of_rotation", server="here", why="it is\nout")
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown(Terminal())
    assert "\x1b[" not in shown(io.StringIO(), json=False)
    assert "server_out_of_rotation" in shown(io.StringIO(), json=False)
    assert json.loads(shown(Terminal(), json=True))["why"] == "it is\\nout"
    assert json.loads(shown(io.StringIO()))["server"] == "here"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown(Terminal())
    assert len(shown(Terminal()).splitlines()) == 1


@pytest.mark.any_loop
def test_a_real_terminal_is_one() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as reader, os.fdopen(theirs, "w") as stream:
        configure_logging(stream=stream)
        OURS.warning("hello")
        assert b"\x1b[" in reader.read(1000)


@pytest.mark.any_loop
def test_it_can_be_called_again_and_configures_one_logger_alone() -> None:
    root, others = logging.getLogger(), logging.getLogger("somebody")
    before = (root.handlers[:], root.level, others.handlers[:], others.level, others.propagate)
    own = logging.NullHandler()
    OURS.addHandler(own)
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first)
    handler = configure_logging("ERROR", stream=second)
    OURS.warning("not shown")
    OURS.error("shown once")
    assert (first.getvalue(), [line["event"] for line in lines_of(second)]) == ("", ["shown once"])
    assert [one for one in OURS.handlers if one in (own, handler)] == [own, handler]
    assert (root.handlers, root.level, others.handlers, others.level, others.propagate) == before
    OURS.removeHandler(own)


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("level", "number"), [("debug", 10), ("INFO", 20), (logging.ERROR, 40), (15, 15)], ids=str
)
def test_levels_are_names_or_numbers(level: int | str, number: int) -> None:
    configure_logging(level, stream=io.StringIO())
    assert OURS.level == number


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"level": "LOUD"}, ValueError, "level='LOUD'"),
        ({"level": None}, TypeError, "level is a NoneType"),
        ({"level": True}, TypeError, "level is a bool"),
        ({"json": 1}, TypeError, "json"),
    ],
    ids=["no such level", "no level", "a bool", "json"],
)
def test_what_means_nothing_is_refused_and_changes_nothing(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    before = OURS.handlers[:]
    with pytest.raises(error, match=re.escape(words)):
        configure_logging(**options)
    assert OURS.handlers == before


def test_lines_of_user_code_in_an_episode_say_in_which(make_executor: MakeExecutor) -> None:
    configure_logging(stream=(ours := io.StringIO()))
    theirs, structured = io.StringIO(), []
    handler = logging.StreamHandler(theirs)
    handler.addFilter(EpisodeFilter())
    handler.setFormatter(logging.Formatter("%(rollout)s %(data_id)s %(version)s %(message)s"))
    logger = logging.getLogger("user")
    logger.addHandler(handler)

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        structured.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])

    async def play(data: Any) -> Any:
        logging.getLogger("areal_core.tools").warning("of %s", "ours")
        logger.warning("of the user's")
        structlog.get_logger().info("looked", at=data["at"])
        return trajectory_of(1)

    executor = make_executor(Engine(4), consumer_batch_size=8)
    for number in (5, 6):
        executor.submit({"data_id": f"q{number}", "at": number}, Playing(play), task_id=number)
    executor.submit({"at": 9}, Playing(play), task_id=9)  # it has no data_id
    executor.wait(3, WAIT_S)
    logger.warning("outside")
    logger.removeHandler(handler)
    assert theirs.getvalue().splitlines() == [
        "5 q5 4 of the user's",
        "6 q6 4 of the user's",
        "9  4 of the user's",
        "   outside",
    ]
    looked = {"event": "looked", "version": 4}
    assert structured == [
        {**looked, "rollout": 5, "data_id": "q5", "at": 5},
        {**looked, "rollout": 6, "data_id": "q6", "at": 6},
        {**looked, "rollout": 9, "at": 9},
    ]
    of_ours = [line for line in lines_of(ours) if line["event"] == "of ours"]
    assert [(line["rollout"], line.get("data_id"), line["version"], line["logger"]) for line in of_ours] == [
        (5, "q5", 4, "areal_core.tools"),
        (6, "q6", 4, "areal_core.tools"),
        (9, None, 4, "areal_core.tools"),
    ]


@pytest.mark.any_loop
def test_what_the_submitter_bound_is_on_the_lines_of_its_episodes(make_executor: MakeExecutor) -> None:
    configure_logging(stream=(stream := io.StringIO()))

    async def play(_data: Any) -> Any:
        OURS.warning("in it")
        return trajectory_of(1)

    executor = make_executor()
    with structlog.contextvars.bound_contextvars(step=12, data_id="not this one's"):
        executor.submit({}, Playing(play), task_id=3)
    executor.wait(1, WAIT_S)
    (line,) = [line for line in lines_of(stream) if line["event"] == "in it"]
    assert (line["step"], line["rollout"]) == (12, 3)
    assert "data_id" not in line


@pytest.mark.any_loop
@pytest.mark.parametrize("json", [True, False])
@pytest.mark.parametrize(
    "say",
    [
        lambda: _log.get_logger().error("e", headers={"Authorization": "Bearer key-0815", "Accept": "x"}),
        lambda: _log.get_logger().error("e", api_key="key-0815"),
        lambda: _log.get_logger().error("e", error="got 401 for Bearer key-0815, again"),
        lambda: _log.get_logger().error("e", error="Config(api_key='key-0815')"),
        lambda: _log.get_logger().error("e", nested=[{"openai_api_key": "key-0815"}]),
        lambda: _log.get_logger().error("e", headers={"X-API-Key": "key-0815", b"x-api-key": "key-0815"}),
        lambda: _log.get_logger().error("e", hf_token="key-0815", options={"access-token": "key-0815"}),
        lambda: _log.get_logger().error("e", error="?access_token=key-0815&x=1"),
        lambda: _log.get_logger().error("e", url="http://me:key-0815@host/"),
        lambda: _log.get_logger().error("e", url="https://key-0815@host/"),
        lambda: _log.get_logger().error("e", url="http://me:pa,key-0815@host:80/x"),
        lambda: _log.get_logger().error("e", url="http://me:pa'@key-0815@host/"),
        lambda: _log.get_logger().error("e", url="http://me:pa/key-0815@host/"),
        lambda: _log.get_logger().error("e", error="Authorization: Basic key-0815"),
        lambda: _log.get_logger().error("e", error="{'authorization': 'key-0815'}"),
        lambda: OURS.error("authorization: bearer %s", "key-0815"),
        lambda: OURS.error("e", exc_info=ValueError("x-api-key: key-0815")),
        lambda: _log.get_logger().error(
            "e", headers=[("Authorization", "Basic key-0815"), (b"Cookie", b"x")]
        ),
        lambda: _log.get_logger().error("e", password_="key-0815"),
        lambda: _log.get_logger().error("e", error="OPENAI_API_KEY=key-0815"),
    ],
    ids=[
        "header",
        "field",
        "text",
        "repr",
        "nested",
        "headers",
        "tokens",
        "query",
        "url",
        "bare",
        "a comma",
        "more in a password",
        "a slash in a password",
        "basic",
        "no scheme",
        "standard",
        "exception",
        "pairs",
        "underscore",
        "environment",
    ],
)
def test_keys_are_in_no_line(say: Callable[[], None], json: bool) -> None:
    configure_logging(stream=(stream := io.StringIO()), json=json)
    say()
    assert "***" in stream.getvalue()
    assert "key-0815" not in stream.getvalue()


HALF = "half \ud83d of a pair"


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


@pytest.mark.any_loop
@pytest.mark.parametrize("json", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {"exc_info": _raised(ValueError(HALF))},
        {"stack": f"one\n{HALF}"},
        {"counts": {HALF: 1}},
        {HALF: 1},
        {"why": HALF},
        {"headers": [{"x": {HALF: HALF}}]},
    ],
    ids=["traceback", "stack", "key", "name", "value", "nested"],
)
def test_half_a_surrogate_pair_costs_no_line(fields: dict[str, Any], json: bool, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        configure_logging(stream=stream, json=json)
        log(get_logger(), "error", "it_failed", fields)
    said = (tmp_path / "log").read_text("utf-8")
    assert "it_failed" in said
    assert re.search(r"half (\?|\\+ud83d) of a pair", said)
    assert "logger_raised" not in said


@pytest.mark.any_loop
def test_a_field_named_as_a_part_of_the_line_is_kept_under_another_name() -> None:
    configure_logging(stream=(stream := io.StringIO()), json=True)
    theirs = {"level": 3, "timestamp": "then", "exception": "theirs", "logger": "mine", "rollout": 7}
    bound = {"event": "race", "level_": "a name that is taken", "rollout": 1, "step": 2}
    with structlog.contextvars.bound_contextvars(**bound):
        log(get_logger(), "error", "it_failed", {**theirs, "exc_info": _raised(LookupError("no tool"))})
    (line,) = lines_of(stream)
    assert line.pop("timestamp") > "2026"
    assert "LookupError: no tool" in line.pop("exception")
    assert line == {
        "level": "error",
        "event": "it_failed",
        "level_": 3,
        "timestamp_": "then",
        "exception_": "theirs",
        "logger_": "mine",
        "rollout": 7,
        "event_": "race",
        "level__": "a name that is taken",
        "step": 2,
    }


@pytest.mark.any_loop
@pytest.mark.parametrize("json", [True, False])
def test_a_stack_that_is_asked_for_is_on_the_line(json: bool) -> None:
    configure_logging(stream=(stream := io.StringIO()), json=json)
    with structlog.contextvars.bound_contextvars(stack="of plates"):
        OURS.warning("here", stack_info=True)
    assert "Stack (most recent call last)" in stream.getvalue()
    assert "in test_a_stack_that_is_asked_for_is_on_the_line" in stream.getvalue()
    assert "of plates" in stream.getvalue()


@pytest.mark.any_loop
@pytest.mark.parametrize("json", [True, False])
@pytest.mark.parametrize("name", ["stack", "exc_info", "logger_name"])
@pytest.mark.parametrize("value", [5, None, {"a": 1}], ids=str)
def test_a_field_of_any_name_and_type_costs_no_line(name: str, value: Any, json: bool) -> None:
    configure_logging(stream=(stream := io.StringIO()), json=json)
    with structlog.contextvars.bound_contextvars(**{name: value}):
        OURS.error("it failed")
    if name != "exc_info":  # which is the error itself
        log(get_logger(), "error", "it failed too", {name: value})
    lines = stream.getvalue().splitlines()
    assert len(lines) == (1 if name == "exc_info" else 2)
    for line in lines:
        assert "it failed" in line
        assert f"{name}_" in line
        assert str(value) in line or "null" in line or '{"a":1}' in line


@pytest.mark.any_loop
def test_a_loggers_exception_is_an_error_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise LookupError("no tool")
    except LookupError as error:
        get_logger().exception("it_failed", seconds=1)
        raised = error
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "it_failed seconds=1")
    assert record.exc_info is not None
    assert record.exc_info[1] is raised


@pytest.mark.any_loop
def test_a_value_that_cannot_be_shown_costs_itself_alone() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    configure_logging(stream=(stream := io.StringIO()))
    _log.get_logger().error("e", odd=Odd(), number=float("nan"), many=(1, {2}), none=None)
    (line,) = lines_of(stream)
    assert line["odd"].startswith("<a ")
    assert (line["number"], line["many"], line["none"]) == (None, [1, [2]], None)


@contextlib.contextmanager
def records_of(logger: logging.Logger) -> Iterator[list[logging.LogRecord]]:
    """Give what handlers of *logger* are handed."""

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    records: list[logging.LogRecord] = []
    handler = Keeping()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.any_loop
def test_a_record_of_ours_is_text_to_handlers_that_send_it_elsewhere() -> None:
    with records_of(OURS) as records:
        _log.get_logger().warning("attempt_failed", server="here", again_after_s=0.5)
    (record,) = records
    assert record.getMessage() == "attempt_failed server=here again_after_s=0.5"
    assert pickle.loads(pickle.dumps(record)).msg == record.getMessage()


@pytest.mark.any_loop
def test_a_record_says_that_ours_made_it_wherever_the_line_comes_from() -> None:
    with records_of(OURS) as records:
        _log.log(_log.get_logger(), "warning", "attempt_failed", {"server": "here"})
    (record,) = records
    _, first = inspect.getsourcelines(_log._OurLogger.hand_on)
    assert (record.pathname, record.funcName, record.lineno) == (_log.__file__, "hand_on", first)
    assert record.args == ()


@pytest.mark.any_loop
def test_a_logger_of_ones_own_class_makes_its_records_itself() -> None:
    class Own(logging.Logger):
        def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
            asked.append(str(msg))

    asked: list[str] = []
    with records_of(own := Own("own")) as records:
        _log.log(_log.get_logger(own), "warning", "attempt_failed", {"server": "here"})
    assert (asked, records) == (["attempt_failed server=here"], [])


@pytest.mark.any_loop
def test_without_it_nothing_is_bound_and_only_what_is_wrong_is_said(run_script: RunScript) -> None:
    done = run_script("""
        import structlog
        from areal_core import InferenceEngineConfig, WorkflowExecutor

        class Engine:
            def get_version(self):
                return 0

        class Workflow:
            async def arun_episode(self, engine, data):
                print(structlog.contextvars.get_contextvars())
                return data and {"input_ids": data}

        with WorkflowExecutor(InferenceEngineConfig(consumer_batch_size=4), Engine()) as executor:
            executor.submit([1], Workflow())
            executor.submit(None, Workflow())
            executor.wait(2)
    """)
    assert (done.stdout, done.stderr) == ("{}\n{}\n", "")


# -- the table of events ---------------------------------------------------------------------------


_LEVELS = ("debug", "info", "warning", "error", "exception")
_EVENT = re.compile(r"[a-z]+(_[a-z]+)+")
_ENDINGS = {"rollout_": ("accepted", "rejected", "cancelled", "stale"), "task_": ("cancelled", "timed_out")}
"""Those of events whose names end with a status."""


class Event:
    """What the calls that log one event say of it."""

    def __init__(self) -> None:
        self.levels: set[str] = set()
        self.fields: set[str] = set()


def events_in_code() -> dict[str, Event]:
    """Return the events that any call of a logger's names."""
    found: dict[str, Event] = {}
    for path in (ROOT / "areal_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            level, name = _logged(node) if isinstance(node, ast.Call) else ("", "")
            for one in [name + ending for ending in _ENDINGS.get(name, ("",)) if name]:
                event = found.setdefault(one, Event())
                event.levels.add("error" if level == "exception" else level)
                event.fields |= _fields(node)  # type: ignore[arg-type]
    return found


def _logged(call: ast.Call) -> tuple[str, str]:
    """Return level and event of what *call* logs; "" where it logs nothing."""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    has_logger_first = isinstance(call.func, ast.Name) and method == "log"
    first, second = [*map(_text, call.args[has_logger_first:][:2]), "", ""][:2]
    if method == "_say" and _EVENT.fullmatch(first):
        return "warning", first
    if method in _LEVELS:
        return method, first if _EVENT.fullmatch(first) else ""
    if first in _LEVELS or method in ("line", "line_of"):
        return first or "info", second if second in _ENDINGS or _EVENT.fullmatch(second) else ""
    return "", ""


def _fields(call: ast.Call) -> set[str]:
    """Return the names of what *call* says beside the event, by keyword or in a dict."""
    said = {word.arg for word in call.keywords if word.arg}
    return said.union(*(map(_text, filter(None, one.keys)) for one in call.args if isinstance(one, ast.Dict)))


def _text(node: ast.AST) -> str:
    """Return the text that *node* is, or with which one that is put together begins; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


class Row(NamedTuple):
    """One event, as the guide describes it."""

    level: str
    fields: set[str]


def rows_of_the_guide() -> dict[str, Row]:
    """Return what the guide says of each event."""
    rows = {}
    for line in GUIDE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4 and cells[1] in _LEVELS:
            (name,) = re.findall(r"`(\w+)`", cells[0])
            assert name not in rows, name
            rows[name] = Row(cells[1], set(re.findall(r"`(\w+)`", cells[2])))
    return rows


@pytest.mark.any_loop
def test_the_guide_has_each_event_with_its_level_and_fields() -> None:
    events, rows = events_in_code(), rows_of_the_guide()
    assert len(events) > 50
    assert sorted(rows) == sorted(events)
    for name, event in events.items():
        assert event.levels == {rows[name].level}, name
        assert event.fields - {"exc_info"} <= rows[name].fields, name


@pytest.mark.any_loop
def test_times_and_sizes_in_lines_say_their_units() -> None:
    fields = {field for row in rows_of_the_guide().values() for field in row.fields}
    assert [one for one in fields if re.search(r"(^|_)(time|duration|latency|age|delay|ms)$", one)] == []


def test_a_line_of_text_is_one_line_but_for_its_stack() -> None:
    line = _log.Line("it_happened", {"stack": "a\nb", "error": "c\nd"})

    assert str(line) == "it_happened stack=a\nb error=c\\nd"


def test_a_value_whose_repr_raises_is_named_by_its_type_and_its_error() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise LookupError

    assert _log.text_of(Odd()).endswith("Odd whose repr raises LookupError>")
    assert _log.text_of(Odd()).startswith("<a test_a_value_whose")


def test_an_error_that_carries_a_whole_prompt_is_cut() -> None:
    described = _log.describe(ValueError("a" * 1000))

    assert described == "ValueError: " + "a" * 488
