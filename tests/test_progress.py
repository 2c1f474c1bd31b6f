"""The progress bar: what it says, where it is drawn, and that nobody's own lines suffer from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from areal_core._executor.books import RolloutLedger
from areal_core._executor.snapshot import Wait
from areal_core._observe.progress import progress_line
from areal_core._observe.rates import HISTORY_S, Rates
from areal_core.config import InferenceEngineConfig
from children import RunScript, StartScript
from conftest import MakeExecutor
from snapshots import ENGINE, SNAPSHOT, changed
from terminals import TerminalChild

# -- what it says ----------------------------------------------------------------------------------


def two_seconds(tokens: int = 2468, accepted: int = 4) -> Rates:
    """Return rates of which so much came in the last second."""
    rates, done = Rates(), SNAPSHOT.training
    rates.add(
        changed(
            uptime_s=SNAPSHOT.uptime_s - 1,
            training=replace(done, accepted=done.accepted - accepted),
            engine=replace(ENGINE, tokens=ENGINE.tokens - tokens),
        )
    )
    rates.add(SNAPSHOT)
    return rates


@pytest.mark.any_loop
def test_with_room_for_it_all_is_said_in_words() -> None:
    assert progress_line(SNAPSHOT, two_seconds(), 200) == (
        "v12 batch 24/32 |██████████████████████████████          | 00:02 left  "
        "1204 accepted, 47 rejected, 20 failed  66 in flight  staleness 0.8  2.47k tokens/s"
    )


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (77, "v12 24/32 |=| 00:02  1204 ok 47 rej 20 bad  66 run  stale 0.8  2.47k tok/s"),
        (76, "v12 24/32 |=| 00:02  1204 ok 47 rej 20 bad  66 run  2.47k tok/s"),
        (60, "v12 24/32 |=| 00:02  1204 ok 47 rej 20 bad  66 run"),
        (30, "v12 24/32 |=| 00:02"),
        (12, "v12 24/32"),
        (5, "v12 2"),
    ],
    ids=lambda value: value if isinstance(value, int) else "",
)
def test_with_less_room_it_says_less_of_what_is_past(columns: int, said: str) -> None:
    line = progress_line(SNAPSHOT, two_seconds(), columns)
    assert re.sub(r"\|[█▏▎▍▌▋▊▉ ]+\|", "|=|", line) == said


@pytest.mark.any_loop
@pytest.mark.parametrize("is_unicode", [True, False])
def test_no_line_is_longer_than_there_is_room(is_unicode: bool) -> None:
    for columns in range(1, 260):
        line = progress_line(SNAPSHOT, two_seconds(), columns, is_unicode)
        assert len(line) <= columns
        assert line.isascii() != is_unicode or "|" not in line


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("wait", "paused", "begins"),
    [
        (None, False, "v12 next batch 21/32 |"),
        (None, True, "v12 PAUSED 21/32 |"),
        (Wait(want="batch", is_eval=False, count=32, there=32, is_held=True), False,
         "v12 waits for stragglers 32/32 |"),
        (Wait(want="claimed", is_eval=True, count=8, there=2, is_held=False), False, "v12 evaluation 2/8 |"),
        (Wait(want="any", is_eval=False, count=3, there=1, is_held=False), False, "v12 rollouts 1/3 |"),
    ],
    ids=["nobody", "paused", "stragglers", "evaluation", "any"],
)  # fmt: skip
def test_it_says_what_is_waited_for(wait: Wait | None, paused: bool, begins: str) -> None:
    seen = changed(waits=() if wait is None else (wait,), is_paused=paused)
    assert progress_line(seen, Rates(), 200).startswith(begins)


@pytest.mark.any_loop
def test_a_batch_comes_before_others_that_wait() -> None:
    others = Wait(want="claimed", is_eval=True, count=8, there=2, is_held=False)
    assert progress_line(changed(waits=(others, *SNAPSHOT.waits)), Rates(), 200).startswith("v12 batch 24/32")


@pytest.mark.any_loop
def test_more_than_is_wanted_is_a_full_bar() -> None:
    line = progress_line(changed(waits=(), units_waiting=99), Rates(), 60)
    assert re.match(r"v12 next 99/32 \|█+\| ", line)


# -- how fast --------------------------------------------------------------------------------------


def at(second: float, tokens: int = 0, accepted: int = 0, **training: int) -> Any:
    """Return what was seen in a run at *second*."""
    return changed(
        uptime_s=second,
        training=RolloutLedger(accepted=accepted, finished=accepted, **training),
        evaluation=RolloutLedger(),
        engine=replace(ENGINE, tokens=tokens),
    )


def rates_of(*seen: Any) -> Rates:
    rates = Rates()
    for one in seen:
        rates.add(one)
    return rates


@pytest.mark.any_loop
def test_tokens_are_those_of_ten_seconds_and_endings_those_of_a_minute() -> None:
    rates = rates_of(*(at(second, tokens=100 * second, accepted=second // 10) for second in range(100)))
    assert rates.tokens_per_s == 100
    assert rates.accepted_per_s == 0.1
    rates = rates_of(*(at(second, tokens=min(50, second)) for second in range(100)))
    assert rates.tokens_per_s == 0


@pytest.mark.any_loop
def test_one_look_makes_no_rate_and_counters_that_begin_anew_no_negative_one() -> None:
    assert rates_of().tokens_per_s is None
    assert rates_of(at(1, tokens=5)).tokens_per_s is None
    anew = rates_of(at(1, tokens=500), at(2, tokens=900), at(3, tokens=0))
    assert anew.tokens_per_s is None
    anew.add(at(4, tokens=7))
    assert anew.tokens_per_s == 7


@pytest.mark.any_loop
def test_the_history_has_a_number_for_each_second_however_often_one_looks() -> None:
    often = rates_of(*(at(tick / 4, tokens=25 * tick) for tick in range(41)))
    assert often.tokens_history == (100.0,) * 10
    seldom = rates_of(at(0), at(5, tokens=500))
    assert seldom.tokens_history == (100.0,) * 5
    long = rates_of(*(at(second, tokens=second**2) for second in range(500)))
    assert len(long.tokens_history) == HISTORY_S
    assert long.tokens_history[-1] == 499**2 - 498**2


@pytest.mark.any_loop
def test_what_is_left_takes_as_long_as_what_came_lately() -> None:
    rates = rates_of(at(0), at(10, accepted=5, pending=1))
    batch, all_there = (
        Wait(want="batch", is_eval=False, count=8, there=there, is_held=there == 8) for there in (4, 8)
    )
    assert rates.left_s(batch) == 8.0
    assert rates.left_s(all_there) is None  # nobody knows how long stragglers take
    assert rates_of(at(0), at(10, pending=1)).left_s(batch) is None


@pytest.mark.any_loop
def test_where_nothing_more_starts_less_comes_as_less_runs() -> None:
    batch = Wait(want="batch", is_eval=False, count=8, there=4, is_held=False)
    wide = [at(second, accepted=second, running=40) for second in range(11)]
    assert rates_of(*wide).left_s(batch) == 4.0
    assert rates_of(*wide, at(11, accepted=11, running=4)).left_s(batch) == pytest.approx(4 * 37 / 4)
    assert rates_of(*wide, at(11, accepted=11, running=3)).left_s(batch) is None  # a fourth never comes
    assert rates_of(*wide, at(11, accepted=11, running=3, pending=1)).left_s(batch) == 4.0
    assert rates_of(*wide, at(11, accepted=11, running=80)).left_s(batch) == 4.0


# -- in a terminal ---------------------------------------------------------------------------------

BEGIN = """
import asyncio, importlib, logging, os, sys, threading

logging.basicConfig(format="%(message)s")
import numpy
from areal_core import *
from areal_core import types
from areal_core._observe import showing
from areal_core.embedded import EmbeddedServer

showing._BAR_EVERY_S, showing._BAR_FROM_S = 0.02, 0.0
plays = types.GenerationHyperparameters(max_new_tokens=4)


class Workflow(RolloutWorkflow):
    async def arun_episode(self, engine, data):
        await engine.agenerate(types.ModelRequest([1, 2], plays))
        if data == "parked":
            await asyncio.get_running_loop().create_future()
        return None if data == "rejected" else {"input_ids": numpy.ones((1, 2), "int64")}


server = EmbeddedServer(ms_per_token=1)
server.start()
config = InferenceEngineConfig(consumer_batch_size=4, cancel_grace=0.1, loop_block_warning=None)
engine = RemoteInfEngine(config, backend="sglang")
engine.initialize([server.addr])
loop_factory = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
executor = WorkflowExecutor(config, engine, loop_factory=loop_factory)
executor.initialize()
observer, looks = executor._shift.observer, threading.Semaphore(0)
real_look = observer.look


def look():
    looks.release()
    return real_look()


def wait_for_bar():
    "Return when what was to be drawn after this call has been."
    while looks.acquire(blocking=False):
        pass
    for _ in range(2):
        assert looks.acquire(timeout=20.0)


def prepare():
    try:
        executor.prepare_batch([["right", "right", "rejected", "parked"], ["parked"] * 4], Workflow())
    except (RunnerStoppedError, KeyboardInterrupt) as error:
        print(type(error).__name__)


observer.look = look
"""
END = """
executor.destroy()
engine.destroy()
server.stop()
"""
BAR = re.compile(r"v0 .*\d+/4 \|.*\|")


StartInTerminal = Callable[[int], TerminalChild]


@pytest.fixture
def start_in_terminal(tmp_path: Path, loop_name: str) -> Iterator[StartInTerminal]:
    """Start a program with an executor, whose rollouts a server answers, in a terminal of so many columns."""
    started: list[TerminalChild] = []

    def start(columns: int) -> TerminalChild:
        child = TerminalChild(tmp_path, loop_name, columns)
        started.append(child)
        child.do(BEGIN)
        return child

    yield start
    for child in started:
        child.close()


def has_bar(child: TerminalChild) -> bool:
    return BAR.match(child.last) is not None


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_shows_the_batch_that_is_waited_for(start_in_terminal: StartInTerminal, columns: int) -> None:
    child = start_in_terminal(columns)
    child.do("waiting = threading.Thread(target=prepare); waiting.start()")
    said = "2 ok 1 rej 0 bad" if columns == 80 else "2 accepted, 1 rejected, 0 failed"
    child.wait_for(lambda: " 2/4 |" in child.last and said in child.last and has_bar(child))
    assert len(child.last) <= columns - len("^C") - 1
    assert child.text.count("|") == 2, "there is one bar, and nothing left of those before"
    child.do(END + "waiting.join()")
    assert child.end() == 0
    assert child.lines == ["RunnerStoppedError"]


def test_no_line_of_the_program_is_torn_and_none_has_a_rest_of_the_bar(
    start_in_terminal: StartInTerminal,
) -> None:
    child = start_in_terminal(80)
    child.do(
        """
        for number in range(12):
            wait_for_bar()
            print("print", number, "of", 12)
            print("one more at once")
            wait_for_bar()
            logging.getLogger("program").warning("log line %d", number)
            sys.stderr.write("half ")
            sys.stderr.write("and half\\n")
        wait_for_bar()
        """
    )
    child.wait_for(lambda: has_bar(child))
    said = [
        line
        for number in range(12)
        for line in (f"print {number} of 12", "one more at once", f"log line {number}", "half and half")
    ]
    assert child.lines[:-1] == said
    child.do(END + "print('after')")
    assert child.end() == 0
    assert child.lines == [*said, "after"]


@pytest.mark.any_loop
def test_a_line_that_the_program_has_begun_is_its_own(start_in_terminal: StartInTerminal) -> None:
    child = start_in_terminal(80)
    child.do("wait_for_bar(); print('loading', end='', flush=True); wait_for_bar(); wait_for_bar()")
    child.wait_for(lambda: child.last == "loading")
    child.do("print(' done'); wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    assert child.lines[:-1] == ["loading done"]
    child.do(END)
    assert child.end() == 0


@pytest.mark.any_loop
def test_after_destroy_nothing_is_written_and_the_streams_are_as_they_were(
    start_in_terminal: StartInTerminal,
) -> None:
    child = start_in_terminal(80)
    child.do("streams = sys.stdout, sys.stderr; wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    child.do("assert all('write' in vars(one) for one in streams)")
    child.do(
        "executor.destroy(); print('destroyed')\n"
        "assert not any('write' in vars(one) for one in (sys.stdout, sys.stderr))\n"
        "assert streams == (sys.stdout, sys.stderr)"
    )
    child.wait_for(lambda: "destroyed" in child.text)
    before = child.written
    child.do("engine.destroy(); server.stop()")
    assert child.end() == 0
    assert child.written == before
    assert child.lines == ["destroyed"]


def test_a_ctrl_c_ends_what_waits_and_leaves_the_bar_and_the_terminal_well(
    start_in_terminal: StartInTerminal,
) -> None:
    child = start_in_terminal(80)
    child.begin("prepare()")
    child.wait_for(lambda: " 2/4 |" in child.last)
    child.type(b"\x03")
    child.wait_until_done()
    child.do("wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    assert child.lines[:-1] == ["KeyboardInterrupt"]
    child.begin("executor.prepare_batch([['parked']] * 99, Workflow())")
    child.wait_for(lambda: has_bar(child))
    child.type(b"\x03")
    assert child.wait_for_end() not in (0, None)
    assert child.lines[1].startswith("Traceback"), child.text
    assert child.last == "KeyboardInterrupt"
    assert not any(BAR.search(line) for line in child.lines)


@pytest.mark.any_loop
@pytest.mark.parametrize("close", ["sys.stderr.close()", "os.close(2)"])
def test_where_stderr_is_closed_nothing_is_written_to_what_gets_its_place(
    start_in_terminal: StartInTerminal, close: str
) -> None:
    child = start_in_terminal(80)
    child.do("wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    child.do(
        f"wait_for_bar(); {close}; file = open('precious', 'w')\n"
        "wait_for_bar(); wait_for_bar()\n"
        "executor.destroy(); file.close()\n"
        "with open('precious') as file: assert file.read() == ''\n"
        "os.dup2(1, 2)"
    )
    child.do("engine.destroy(); server.stop()")
    assert child.end() == 0


@pytest.mark.any_loop
def test_a_bar_is_as_wide_as_the_terminal_is_now(start_in_terminal: StartInTerminal) -> None:
    child = start_in_terminal(120)
    child.do("wait_for_bar()")
    child.wait_for(lambda: has_bar(child) and "accepted" in child.last)
    child.resize(50)
    child.do("print('narrow'); wait_for_bar()")
    child.wait_for(lambda: has_bar(child) and " ok " in child.last)
    assert len(child.last) < 50
    child.do(END)
    assert child.end() == 0


@pytest.mark.any_loop
def test_a_bar_of_the_program_and_ours_have_a_line_each(start_in_terminal: StartInTerminal) -> None:
    child = start_in_terminal(100)
    child.do("from tqdm import tqdm; tqdm.monitor_interval = 0; wait_for_bar()")
    child.do("mine = tqdm(total=4, desc='epoch'); mine.update(); mine.refresh(); wait_for_bar()")
    child.wait_for(
        lambda: len(child.lines) == 2 and any(line.startswith("epoch:  25%") for line in child.lines)
    )
    assert sum(BAR.match(line) is not None for line in child.lines) == 1
    child.do("print('a print'); wait_for_bar()")
    child.wait_for(lambda: len(child.lines) == 3 and "epoch:  25%" in child.text)
    child.do("tqdm.write('a write'); mine.update(); mine.refresh(); wait_for_bar()")
    child.wait_for(lambda: len(child.lines) == 4 and "epoch:  50%" in child.text)
    assert child.lines[:2] == ["a print", "a write"]
    child.do("mine.leave = False; mine.close(); wait_for_bar()")
    child.wait_for(lambda: len(child.lines) == 3 and has_bar(child))
    child.do(END)
    assert child.end() == 0
    assert child.lines == ["a print", "a write"]


@pytest.mark.any_loop
def test_a_prompt_that_has_the_terminal_to_itself_is_left_alone(start_in_terminal: StartInTerminal) -> None:
    child = start_in_terminal(80)
    child.do("import termios, tty; before = termios.tcgetattr(2); wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    child.do("tty.setcbreak(2); wait_for_bar(); os.write(2, b'\\r\\033[K(Pdb) ')")
    child.do("wait_for_bar(); wait_for_bar()")
    child.wait_for(lambda: child.last == "(Pdb)")
    child.do("termios.tcsetattr(2, termios.TCSANOW, before); print(); wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    child.do(END)
    assert child.end() == 0


@pytest.mark.any_loop
def test_two_executors_have_a_bar_each_and_how_processes_start_is_still_to_be_said(
    start_in_terminal: StartInTerminal,
) -> None:
    child = start_in_terminal(80)
    child.do("second = WorkflowExecutor(config, engine, loop_factory=loop_factory); second.initialize()")
    child.wait_for(lambda: len(child.lines) == 2 and all(map(BAR.match, child.lines)))
    child.do("import multiprocessing; multiprocessing.set_start_method('spawn')")
    child.do("second.destroy(); print('one left'); wait_for_bar()")
    child.wait_for(lambda: len(child.lines) == 2 and has_bar(child))
    assert child.lines[0] == "one left"
    child.do(END)
    assert child.end() == 0
    assert child.lines == ["one left"]


@pytest.mark.any_loop
def test_a_forked_child_writes_as_if_there_were_no_bar(start_in_terminal: StartInTerminal) -> None:
    child = start_in_terminal(80)
    child.do("wait_for_bar()")
    child.wait_for(lambda: has_bar(child))
    child.do(
        """
        import warnings
        wait_for_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if (forked := os.fork()) == 0:
                read, write = os.pipe()
                os.dup2(write, 1)
                print("forked")
                assert os.read(read, 99) == b"forked\\n"
                sys.exit()
        assert os.waitpid(forked, 0)[1] == 0
        wait_for_bar()
        """
    )
    child.wait_for(lambda: has_bar(child))
    child.do(END)
    assert child.end() == 0


# -- elsewhere -------------------------------------------------------------------------------------

PLAIN = """
    import sys
    from areal_core import *
    from areal_core._observe import showing

    class Engine:
        def get_version(self):
            return 0

    showing._BAR_FROM_S = 0.0
    executor = WorkflowExecutor(InferenceEngineConfig(progress={progress}), Engine())
    with executor:
        sys.stdin.read(1)
        assert "tqdm" in sys.modules or {progress} is not True
        assert "tqdm" not in sys.modules or {progress} is True
"""


@pytest.mark.parametrize("progress", [None, False])
def test_where_stderr_is_no_terminal_there_is_no_bar_and_no_thread(
    run_script: RunScript, progress: bool | None
) -> None:
    source = (
        PLAIN.format(progress=progress) + "        import threading\n        print(threading.enumerate())"
    )
    done = run_script(source)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "areal-core-showing" not in done.stdout


def test_where_stderr_is_no_terminal_and_progress_is_asked_for_there_are_lines(
    start_script: StartScript,
) -> None:
    child = start_script(PLAIN.format(progress=True))
    assert child.stderr is not None
    line = child.stderr.readline()
    assert re.fullmatch(r"v0 next batch 0/1 \| +\| 0 accepted, .*\n", line)
    out, err = child.communicate(input=".")
    assert (out, err, child.returncode) == ("", "", 0)


@pytest.mark.any_loop
def test_a_terminal_that_can_show_none_gets_no_bar(tmp_path: Path) -> None:
    master, slave = os.openpty()
    script = tmp_path / "script.py"
    script.write_text(
        "from areal_core._observe.showing import wants_progress\n"
        "print(wants_progress(None), wants_progress(True), wants_progress(False))"
    )
    for term, wanted in (("dumb", "False True False\n"), ("xterm", "True True False\n")):
        done = subprocess.run(
            [sys.executable, script], stderr=slave, stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "TERM": term}, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert done.stdout == wanted
    os.close(master)
    os.close(slave)


def test_a_bar_costs_no_thread_once_its_executor_has_ended(make_executor: MakeExecutor) -> None:
    executor = make_executor(progress=True)
    assert "areal-core-showing" in [thread.name for thread in threading.enumerate()]
    executor.destroy()
    assert "areal-core-showing" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.any_loop
def test_progress_is_a_flag_or_none() -> None:
    with pytest.raises(TypeError, match=r"^progress='yes' is not a bool; give True or False$"):
        InferenceEngineConfig(progress="yes")  # type: ignore[arg-type]
