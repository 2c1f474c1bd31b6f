"""``python -m areal_core.top``: what it shows of a run, whatever became of that, and how it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from msgspec.structs import replace as replaced
from textual.pilot import Pilot

from areal_core._engine.speeds import Speed
from areal_core._engine.stats import ServerStats
from areal_core._executor.snapshot import LoopBlame, Reason, Snapshot, Straggler, decode, encode
from areal_core._observe.lately import LATE_S, Calls, Held
from areal_core._observe.runs import Run, State, Status, read_run
from areal_core._offload.stats import OffloadStats
from areal_core.top import main
from areal_core.top._app import ChoiceScreen, HelpScreen, RunsApp
from areal_core.top._frame import frame
from areal_core.top._panels import PANELS
from areal_core.top._text import (
    Piece,
    bar,
    chart,
    cut,
    fitting,
    length_of,
    number,
    plain,
    seconds,
    stacked,
    wrapped,
)
from children import RunScript, StartScript
from snapshots import ENGINE, SNAPSHOT, changed, status_of, write_status

pytestmark = pytest.mark.any_loop

TITLES = [title for title, _ in PANELS.values()]
Sizes = pytest.mark.parametrize(("columns", "rows"), [(80, 24), (80, 50), (120, 36), (200, 24), (200, 50)])


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have status files be looked for in a directory of the test's own, and return it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "areal_core"


def run_of(snapshot: Snapshot = SNAPSHOT, **changes: Any) -> Run:
    status = status_of(snapshot, **changes)
    return Run(Path("status"), status, State.LIVE)


def dead(snapshot: Snapshot = SNAPSHOT) -> Status:
    """Return the last word of a run whose process id has another one now."""
    return status_of(snapshot, process_start="some-boot:1")


def said_of(run: Run) -> dict[str, tuple[str, str]]:
    """Return what is said of who waits, by its first words: the rest, and the style of those."""
    lines = PANELS["waiting"][1](run, 500, 99)
    return {line[0].text: (plain(line[1:]).removeprefix(": "), line[0].style) for line in lines}


# -- one frame -------------------------------------------------------------------------------------


def test_a_frame_says_all_there_is_to_know() -> None:
    text = frame(run_of(), 120)
    for said in (
        "train.py", f"pid {os.getpid()}", "up 1:02:03", "version 12", "LIVE",
        "accepted 1204  rejected 47  failed 20  stale 0",
        "pending 83  running 64  ready 21  delivered 1183",
        "24/32  16 s left", "64/64", "85/96  64 run + 21 ready + 0 delivered",
        "mean 0.8, max 2 of 2", "40 at 0  20 at 1  4 over 2  (what runs, by versions",
        "4 ms  journal 2 KiB waiting  (the event loop's delay, at worst)",
        "evaluation: pending 0  running 2  accepted 6  failed 0",
        "█ 50 generating  ▓ 14 waiting for its reward",
        "10.0.0.2:30000", "out: it hung up", " 4.1k 137 each   ██", "30+2  v12",
        "12.3k tokens/s  0.5 accepted/s  123k in all", "50 generations run, 0 wait for a slot",
        "1300 ended, 2 failed, 40 cancelled, 1400 requests",
        "45 s        gsm8k/7", "waiting for its reward, 12 s  SingleTurnWorkflow",
        "trainer: waits for a batch of 32: 24 are there. It waits 25 % of the time",
        "slots full: 64 samples of training run; one has to end",
    ):  # fmt: skip
        assert said in text, text
    assert [line.strip("─ ") for line in text.splitlines() if line.startswith("──")] == TITLES


def test_cancelled_rollouts_are_among_the_ends_where_there_are_any() -> None:
    ended = changed(training=replace(SNAPSHOT.training, cancelled=39))
    assert "stale 0  cancelled 39" in frame(run_of(ended), 120)
    assert "cancelled 39" not in frame(run_of(), 120)


def test_ages_are_bars_of_stages_in_their_order() -> None:
    lines = frame(run_of(), 80).splitlines()
    ages = {line[:8].strip(): line[8:] for line in lines if re.match(r" *(<|older)", line)}
    assert list(ages) == ["< 1 s", "< 10 s", "< 1 min", "< 5 min", "< 30 min", "older"]
    assert [re.sub(r"(.)\1*", r"\1", ages[age]).strip() for age in ("< 1 s", "< 10 s", "< 1 min")] == [
        "█ 20", "█▓ 24", "█▓ 20",
    ]  # fmt: skip
    assert ages["older"].strip() == ""
    assert ages["< 10 s"].count("█") == round(64 * 20 / 24)  # of 20 + 4, which fill 64 columns


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_no_line_is_wider_than_asked_for(columns: int) -> None:
    assert max(map(len, frame(run_of(), columns).splitlines())) <= columns


def test_a_run_in_which_nothing_goes_on_and_an_engine_that_tells_nothing_can_be_shown() -> None:
    empty = changed(
        stages={}, ages={}, lags={}, stragglers=(), waits=(), callers=(), reasons=(), batch=0,
        engine=None, journal=None, loop_lag_s=None, most_samples=None, most_units=0, age_p50_s=None,
    )  # fmt: skip
    text = frame(run_of(empty, tokens_per_s=None, tokens_history=()), 80)
    for said in ("nothing runs", "the engine tells of none", "the engine does not count them", "at rest"):
        assert said in text
    assert "what is pending starts in a moment" in text


def test_why_nothing_starts_has_what_the_engine_knows_too() -> None:
    out = ServerStats(name="a:1", why_out="gone", in_flight=0, waiting=0, version=None, departures=1)
    paused = replace(ENGINE, is_paused=True, servers=(out, out))
    text = frame(run_of(changed(engine=paused, is_paused=True)), 100)
    assert "no server in rotation: all 2 are out" in text
    assert "generation paused: 50 wait" in text
    assert "PAUSED" in text


@pytest.mark.parametrize(("columns", "said"), [(38, "  4.1k █ 30+2  v12"), (100, "  4.1k 132 each   ████")])
def test_each_server_has_its_speed_and_the_slow_one_is_marked_and_above_the_others(
    columns: int, said: str
) -> None:
    names = ("a:1", "b:2", "c:3", "d:4")
    found = tuple(replace(ENGINE.servers[0], name=name) for name in names)
    out = replace(found[3], why_out="it hung up")
    speeds = {
        "a:1": Speed(tokens_per_s=4096.0, each=132.0),
        "b:2": Speed(tokens_per_s=12.0, each=0.4, is_slow=True),
    }
    run = run_of(changed(engine=replace(ENGINE, servers=(*found[:3], out))), servers=speeds)
    text = [plain(line) for line in PANELS["servers"][1](run, columns, 9)]
    assert [line[:3] for line in text] == ["d:4", "b:2", "a:1", "c:3"]
    assert ["SLOW" in line for line in text] == [False, True, False, False]
    assert said in text[2]
    assert "    ? " in text[3]
    assert max(map(len, text)) <= columns
    assert all("30+2" in line for line in text[1:])


def test_a_full_budget_is_as_it_should_be_while_the_trainer_is_at_work() -> None:
    full = changed(reasons=(Reason("staleness", "all of the budget is in use"),))
    at_work = said_of(run_of(msgspec.structs.replace(full, waits=(), callers=()), trainer_busy_s=41.0))
    assert at_work["budget full"] == ("as it should be while the trainer is at work", "good")
    assert at_work["trainer"][0].startswith("has not asked for a batch for 41 s. ")
    waits = said_of(run_of(full))
    assert waits["budget full"] == ("more start as what runs is delivered and the version rises", "strong")
    stalled = said_of(run_of(msgspec.structs.replace(full, units_running=0)))
    assert stalled["budget full"] == ("nothing can start before the version rises", "warn")
    of_evaluation = msgspec.structs.replace(
        full, waits=(msgspec.structs.replace(full.waits[0], is_eval=True),)
    )
    assert said_of(run_of(of_evaluation))["budget full"][1] == "good"


@pytest.mark.parametrize(
    ("busy_s", "share", "says"),
    [
        (None, None, "has asked for nothing yet"),
        (3.0, None, "has not asked for a batch for 3.0 s"),
        (3.0, 0.3, "has not asked for a batch for 3.0 s. It waits 30 % of the time"),
        (3.0, 0.02, "… batch for 3.0 s. It waits 2 % of the time: it is what takes long itself"),
        (3.0, 0.9, "… batch for 3.0 s. It waits 90 % of the time: generation is what takes long …"),
    ],
    ids=["never", "at first", "both", "trainer", "generation"],
)  # fmt: skip
def test_it_says_what_the_trainer_does_and_who_takes_long(
    busy_s: float | None, share: float | None, says: str
) -> None:
    run = run_of(changed(waits=(), callers=()), trainer_busy_s=busy_s, trainer_waits=share)
    assert said_of(run)["trainer"] == (
        says.replace("… batch", "has not asked for a batch").replace("…", "(78 % of the rollouts)"),
        "strong",
    )


def test_several_callers_and_the_end_of_a_run() -> None:
    two = run_of(changed(callers=("a caller waits for a batch of 4: 1 are there", "a caller waits for any")))
    assert said_of(two)["trainer"][0].startswith("waits for a batch of 4: 1 are there; 1 more wait. It ")
    slow = {"a:1": Speed(tokens_per_s=9.0, each=1.0, is_slow=True)}
    assert [*said_of(run_of(changed(has_ended=True), servers=slow))] == ["slots full"]


def test_slow_servers_and_too_few_workers_come_before_the_trainer() -> None:
    workers = OffloadStats(place="thread", workers=4, busy=4, waiting=9, longest_wait_s=0.2)
    speeds = {f"{n}:1": Speed(tokens_per_s=9.0, each=1.0 + n, is_slow=n < 4) for n in range(9)}
    said = said_of(run_of(changed(offloaded=(workers,)), servers=speeds))
    assert [*said][:3] == ["slow server", "too few workers", "trainer"]
    assert said["slow server"] == (
        "0:1 1, 1:1 2, 2:1 3 and 1 more tokens/s a request; the fastest gives 9", "warn",
    )  # fmt: skip
    assert said["too few workers"] == (str(workers), "warn")


@pytest.mark.parametrize(
    ("busy", "waiting", "stage", "is_said"),
    [(4.0, 5.0, 0.0, True), (4.0, 2.0, 2.0, False), (4.0, 2.0, 30.0, True), (0.0, 0.0, 0.0, False)],
    ids=["more than are made", "few", "much of what runs", "none"],
)
def test_too_few_workers_are_told_by_the_share_that_waited_lately(
    busy: float, waiting: float, stage: float, is_said: bool
) -> None:
    now = OffloadStats(place="process", workers=4, busy=4)  # none waits at this moment
    held = Held(
        late=0.0,
        stages={"generating": 64.0 - stage, "waiting for a worker process": stage},
        calls={"process": Calls(busy=busy, waiting=waiting)},
    )
    said = said_of(run_of(changed(offloaded=(now,)), held=held))
    assert ("too few workers" in said) == is_said
    if is_said:
        assert said["too few workers"][0].startswith("4 of 4 worker processes busy with offloaded functions")
        assert said["too few workers"][0].endswith(now.advice())


# -- what takes long -------------------------------------------------------------------------------

BLAME = LoopBlame(
    function="rewards.burning_score", where="/home/me/rewards.py:13", seconds=2.0, share=0.9, ago_s=12.0
)


def held_by(late: float = 0.0, **stages: float) -> Held:
    """Return averages of the last seconds; spaces in the names of *stages* are written as underscores."""
    return Held(late=late, stages={name.replace("_", " "): n for name, n in stages.items()}, calls={})


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (held_by(generating=60, waiting_for_its_reward=4), "generation is what takes long (94 % of the"),
        (held_by(generating=4, waiting_for_its_reward=12), "the reward function is what takes long (75 %"),
        (held_by(waiting_for_a_worker_process=9, generating=1), "the wait for a worker is what takes long"),
        (held_by(waiting_for_a_server=9, generating=1), "the wait for a server's slot is what takes long"),
        (held_by(generating=5, waiting_for_its_reward=5), "most of it is generation (50 %) and the reward"),
        (held_by(generating_on_the_moon=5), "generating on the moon is what takes long (100 %"),
        (held_by(late=0.5, generating=64), "the loop is what takes long. While it is late, tokens/s a"),
    ],
    ids=["generation", "reward", "worker", "slot", "both", "unknown", "loop"],
)  # fmt: skip
def test_what_takes_long_is_what_most_rollouts_were_at_lately(held: Held, says: str) -> None:
    said = said_of(run_of(trainer_waits=0.9, held=held))["trainer"][0]
    assert said.partition(" of the time: ")[2].startswith(says)


def test_where_nothing_ran_or_the_trainer_hardly_waits_nothing_is_said_to_take_long() -> None:
    for held, waits in ((held_by(), 0.9), (held_by(generating=9), 0.4)):
        assert said_of(run_of(trainer_waits=waits, held=held))["trainer"][0].endswith(" % of the time")
    busy = said_of(run_of(trainer_waits=0.05, held=held_by(late=1.0, generating=9)))
    assert busy["trainer"][0].endswith(": it is what takes long itself")


def test_without_averages_the_snapshot_alone_is_judged() -> None:
    late = said_of(run_of(changed(loop_lag_s=LATE_S), trainer_waits=0.9))
    assert ": the loop is what takes long" in late["trainer"][0]
    assert (
        ": generation is what" in said_of(run_of(changed(loop_lag_s=0.24), trainer_waits=0.9))["trainer"][0]
    )


def test_a_late_loop_is_said_first_with_the_function_that_is_to_blame() -> None:
    slow = {"a:1": Speed(tokens_per_s=9.0, each=1.0, is_slow=True)}
    out = replace(ENGINE, servers=ENGINE.servers[1:])
    run = run_of(changed(loop_lag_s=2.0, loop_blame=BLAME, engine=out), servers=slow)
    said = said_of(run)
    assert [*said][:3] == ["loop late", "no server in rotation", "trainer"]  # and no slow one
    assert said["loop late"] == ("2.0 s, mostly in rewards.burning_score (rewards.py:13)", "bad")
    assert "loop late" not in said_of(run_of(changed(loop_lag_s=2.0, has_ended=True)))


@pytest.mark.parametrize(
    ("lag_s", "blame", "kind", "says"),
    [
        (2.0, None, "loop late", "2.0 s; who is to blame is found within some seconds"),
        (2.0, replaced(BLAME, share=0.3), "loop late",
         "2.0 s, more in rewards.burning_score (rewards.py:13) than elsewhere (30 %)"),
        (0.1, BLAME, "loop was late", "2.0 s, 12 s ago, in rewards.burning_score (rewards.py:13)"),
        (None, BLAME, "loop was late", "2.0 s, 12 s ago, in rewards.burning_score (rewards.py:13)"),
    ],
    ids=["nobody yet", "several", "over", "at rest"],
)  # fmt: skip
def test_what_is_known_of_a_late_loop_is_said(
    lag_s: float | None, blame: LoopBlame | None, kind: str, says: str
) -> None:
    assert said_of(run_of(changed(loop_lag_s=lag_s, loop_blame=blame)))[kind][0] == says


def test_a_snapshot_of_a_version_that_blamed_nobody_can_be_read() -> None:
    old = json.loads(encode(SNAPSHOT))
    del old["loop_blame"]
    assert decode(json.dumps(old).encode()).loop_blame is None
    again = decode(encode(changed(loop_blame=BLAME)))
    assert again.loop_blame == BLAME


@pytest.mark.parametrize(
    ("running", "pending", "left_s", "says"),
    [
        (1, 0, None, "12/16  12 there, waits for the last one that runs"),
        (3, 0, None, "12/16  12 there, waits for the last 3 that run"),
        (0, 0, None, "12/16  nothing runs"),
        (3, 1, None, "12/16"),
        (4, 0, 7.0, "12/16  7.0 s left"),
        (4, 0, None, "12/16"),
    ],
    ids=["one", "some", "none", "more start", "enough", "enough at first"],
)
def test_a_batch_that_cannot_be_filled_says_what_it_waits_for(
    running: int, pending: int, left_s: float | None, says: str
) -> None:
    wait = msgspec.structs.replace(SNAPSHOT.waits[0], count=16, there=12)
    training = replace(SNAPSHOT.training, running=running, pending=pending)
    run = run_of(changed(waits=(wait,), training=training), left_s=(left_s,))
    (line,) = (plain(one) for one in PANELS["progress"][1](run, 100, 99) if plain(one).startswith("batch"))
    assert line.endswith(f" {says}")
    if running and says.startswith("12/16  12"):
        (line,) = (plain(one) for one in PANELS["progress"][1](run, 38, 99) if plain(one).startswith("batch"))
        assert line.endswith(f"12/16  last {running} run")


FULL = Reason("staleness", "all of the budget is in use")


@pytest.mark.parametrize("kind", ["nothing pending", "concurrency", "paused", "queue", "failures"])
def test_a_full_budget_is_not_named_beside_what_holds_starts_back_anyway(kind: str) -> None:
    said = said_of(run_of(changed(reasons=(Reason(kind, "so it is"), FULL))))
    assert "budget full" not in said
    assert len(said) == 2


def test_slots_of_evaluation_hold_no_training_back() -> None:
    reasons = (Reason("concurrency", "64 samples of evaluation run"), FULL)
    assert "budget full" in said_of(run_of(changed(reasons=reasons, samples=63)))


def test_what_was_run_in_vain_is_said_where_there_is_any() -> None:
    assert "in vain" not in frame(run_of(), 100)
    again = replace(SNAPSHOT.training, requeued=3)
    assert "in vain    3 run again, 0.0 s of episodes too old" in frame(run_of(changed(training=again)), 100)
    wasted = replace(SNAPSHOT.staleness, wasted_seconds=75.0)
    assert "in vain    0 run again, 1:15 of episodes too old" in frame(run_of(changed(staleness=wasted)), 100)


def test_the_oldest_rollouts_at_the_same_on_one_server_are_one_line() -> None:
    of_a = replaced(SNAPSHOT.stragglers[0], server="http://a:1", stage="generating on http://a:1")
    found = [replaced(of_a, data_id=f"q{n}", age_s=50.0 - n, stage_s=float(n)) for n in range(9)]
    found.insert(1, replaced(of_a, server="http://b:2", data_id="other"))
    found += [replaced(of_a, is_eval=True, data_id="judged"), SNAPSHOT.stragglers[0]]
    lines = [plain(one) for one in PANELS["stragglers"][1](run_of(changed(stragglers=tuple(found))), 160, 99)]
    assert len(lines) == 5
    assert lines[1].startswith("    50 s   9 x  q0 ")
    assert lines[1].endswith(
        "generating on a:1, up to 8.0 s  SingleTurnWorkflow  also q1, q2, q3, q4, q5, q6, q7, q8"
    )
    assert lines[2].endswith("generating on b:2, 12 s  SingleTurnWorkflow")
    assert "judged" in lines[3]
    assert "(evaluation)" in lines[3]
    assert "gsm8k/7" in lines[4]
    narrow = PANELS["stragglers"][1](run_of(changed(stragglers=tuple(found))), 80, 3)
    assert len(narrow) == 3
    assert plain(narrow[1]).endswith("generating on a:1, up to 8.0 s")


def test_what_comes_from_data_moves_no_cursor_and_is_no_markup() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[b]bold[/b]\r\n日本"
    straggler = Straggler(
        task_id=1, data_id=evil, workflow=evil, is_eval=False, age_s=1.0, stage=evil, stage_s=1.0,
        server=None, segments=0,
    )  # fmt: skip
    server = ServerStats(name=evil, why_out=evil, in_flight=0, waiting=0, version=None, departures=0)
    found = changed(
        program=evil, stragglers=(straggler,), engine=replace(ENGINE, servers=(server,)), callers=(evil,),
        reasons=(Reason(evil, evil),), ages={evil: (1, 0, 0, 0, 0, 0)},
    )  # fmt: skip
    text = frame(run_of(found, host=evil), 200)
    assert all(line.isprintable() for line in text.splitlines())
    assert "[b]bold" in text


def test_where_blocks_cannot_be_written_there_is_ascii() -> None:
    text = frame(run_of(), 80, "ascii")
    assert text.isascii()
    assert "##" in text
    assert "?" not in text


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (41.4, "41 s"), (59.6, "1:00"), (185, "3:05"), (7385, "2:03:05"),
     (356400, "4 d 03 h"), (None, "?")],
)  # fmt: skip
def test_times_are_short(value: float | None, said: str) -> None:
    assert seconds(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.25, "0.2"), (12.34, "12.3"), (999, "999"), (999.7, "1.0k"), (12345, "12.3k"), (4e6, "4M"),
     (7.25e9, "7.2G"), (None, "?")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, said: str) -> None:
    assert number(value) == said


def test_what_has_no_room_is_left_out_whole_but_for_the_first() -> None:
    line = [Piece("12.3k"), Piece(" in all"), Piece(" or so")]
    assert [plain(fitting(line, columns)) for columns in (18, 17, 11, 3)] == [
        "12.3k in all or so", "12.3k in all", "12.3k", "12…",
    ]  # fmt: skip


def test_pictures_are_as_large_as_they_are_to_be() -> None:
    assert [bar(share, 4) for share in (0.0, 0.5, 0.53, 1.0, 7.0)] == ["    ", "██  ", "██▏ ", "████", "████"]
    assert "".join(piece.text for piece in stacked([(1, ""), (1000, "")], 1001, 10)) == "█▓▓▓▓▓▓▓▓▓"
    assert chart([0, 4, 8], 3, 1) == ["▁▄█"]
    assert chart([1, 2, 8], 2, 2) == [" █", "▄█"]
    assert chart([0, 0], 5, 2) == ["  ", "▁▁"]
    assert chart([], 5, 1) == [""]
    assert (cut("日本語", 5), cut("abc", 3), cut("abcd", 3), cut("ab", 0)) == ("日本…", "abc", "ab…", "")
    assert wrapped("one two three", 7) == ["one two", "  three"]


# -- the command -----------------------------------------------------------------------------------


def test_a_live_run_is_found_and_shown_once(
    start_script: StartScript, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = start_script(
        """
        import sys
        from areal_core import InferenceEngineConfig, RemoteInfEngine, WorkflowExecutor
        from areal_core.embedded import EmbeddedServer

        config = InferenceEngineConfig(status_file=True)
        with EmbeddedServer() as server, RemoteInfEngine(config, "sglang") as engine:
            engine.initialize(server.addr)
            with WorkflowExecutor(config, engine) as executor:
                print(server.addr, flush=True)
                sys.stdin.read(1)
        """,
        env={"XDG_RUNTIME_DIR": str(directory.parent)},
    )
    assert child.stdout is not None
    address = child.stdout.readline().strip()
    deadline = time.monotonic() + 20
    while not list(directory.glob("*.json")):
        assert time.monotonic() < deadline
    assert main(["--once"]) == 0
    by_itself = capsys.readouterr().out
    assert main(["--once", str(child.pid)]) == 0
    for out in (by_itself, capsys.readouterr().out):
        assert f"pid {child.pid}" in out
        assert "LIVE" in out
        assert address in out
    child.communicate(".")
    assert main(["--once", str(child.pid)]) == 0
    assert "ENDED" in capsys.readouterr().out


def test_live_runs_come_before_dead_ones_and_the_newest_first(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(directory / "dead-1-1.json", dead(changed(program="dead", uptime_s=1.0)))
    assert main(["--once"]) == 3
    assert "DIED about " in capsys.readouterr().out
    write_status(directory / "old-2-1.json", status_of(changed(program="old", uptime_s=99.0)))
    write_status(directory / "new-3-1.json", status_of(changed(program="new", uptime_s=9.0)))
    assert main(["--once"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.partition(" ")[0] for line in lines[::2]] == ["new", "old"]
    assert lines[1::2] == [f"    {directory}/new-3-1.json", f"    {directory}/old-2-1.json"]
    assert said.err == "2 runs live; give a process id, or a status file, to see one\n"
    write_status(directory / "mute-4-1.json", status_of(changed(program="mute", taken_at=time.time() - 30)))
    assert main(["--once"]) == 4


def test_a_path_is_shown_wherever_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = write_status(tmp_path / "anything", dead(changed(taken_at=time.time() - 7200)))
    assert main(["--once", str(path)]) == 3
    said = r"^ DIED about 2:00:0\d ago: .*: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$"
    assert re.search(said, capsys.readouterr().out, re.MULTILINE)


_ODD = "日本語" * 20
_CROWD = tuple(replace(ENGINE.servers[n % 2], name=f"{_ODD}:{n}") for n in range(9))


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize(
    "snapshot",
    [
        SNAPSHOT,
        changed(engine=None, stages={}, ages={}, stragglers=(), waits=(), reasons=(), callers=()),
        changed(engine=replace(ENGINE, servers=())),
        changed(engine=replace(ENGINE, is_paused=True, servers=_CROWD), is_paused=True),
        changed(ages={_ODD: (9,) * 6, "generating": (1,) * 6}, callers=(_ODD,) * 3),
        changed(stragglers=(replaced(SNAPSHOT.stragglers[0], data_id=_ODD, stage=_ODD),) * 5),
    ],
    ids=["usual", "nothing", "no servers", "crowd", "stages", "stragglers"],
)
def test_no_panel_takes_more_than_there_is(snapshot: Snapshot, name: str) -> None:
    run = run_of(snapshot)
    for columns in (0, 1, 2, 5, 13, 20, 40, 80):
        for rows in (0, 1, 2, 3, 9):
            lines = PANELS[name][1](run, columns, rows)
            assert len(lines) <= rows
            assert max(map(length_of, lines), default=0) <= columns


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (lambda: status_of(SNAPSHOT), 0),
        (lambda: status_of(changed(has_ended=True)), 0),
        (dead, 3),
        (lambda: status_of(changed(taken_at=time.time() - 30)), 4),
    ],
    ids=["live", "ended", "died", "silent"],
)
def test_the_exit_status_says_what_became_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Callable[[], Status], status: int
) -> None:
    assert main(["--once", str(write_status(tmp_path / "status", run()))]) == status
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(rf"^{status}  ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("piped", [0, 1, 2], ids=["stdin", "stdout", "stderr"])
def test_where_a_stream_is_no_terminal_it_prints_one_frame(tmp_path: Path, piped: int) -> None:
    path = write_status(tmp_path / "status", status_of(SNAPSHOT))
    with Terminal(path, piped=piped) as terminal:
        said = terminal.process.communicate(timeout=WAIT_S)
        text = (said[0] or b"") + terminal.read()
        assert terminal.process.returncode == 0
    assert "accepted 1204" in text.decode()
    assert "Quit" not in text.decode()


def test_in_a_terminal_it_shows_the_view_until_q(tmp_path: Path) -> None:
    with Terminal(write_status(tmp_path / "status", status_of(SNAPSHOT))) as terminal:
        terminal.read_until("Quit")
        terminal.write("q")
        terminal.read()
        assert terminal.process.wait(WAIT_S) == 0


WAIT_S = 20.0


class Terminal:
    """The command, with a status file, in a terminal; but for the stream *piped*: 0, 1 or 2."""

    def __init__(self, path: Path, piped: int | None = None) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        streams = [subprocess.PIPE if piped == number else slave for number in range(3)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "areal_core.top", str(path)],
            stdin=streams[0], stdout=streams[1], stderr=streams[2],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self._master)

    def write(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read_until(self, words: str) -> bytes:
        """Read until *words* have come."""
        said = b""
        while words.encode() not in said:
            assert select.select([self._master], [], [], WAIT_S)[0], said
            said += os.read(self._master, 65536)
        return said

    def read(self) -> bytes:
        """Read until the program has left the terminal."""
        said = b""
        with contextlib.suppress(OSError):  # EIO: nobody has it any more
            while select.select([self._master], [], [], WAIT_S)[0]:
                said += os.read(self._master, 65536)
        return said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no run has a status file in "),
        (["4194305"], "no run of process 4194305 has a status file in "),
        (["nowhere.json"], "nowhere.json: [Errno 2]"),
        ([__file__], f"{__file__}: "),
    ],
    ids=["none", "process", "path", "garbage"],
)
def test_where_there_is_nothing_to_see_it_says_so(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["--once", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(says)


def test_without_textual_the_view_says_what_to_install_and_one_frame_can_be_had(
    run_script: RunScript, tmp_path: Path
) -> None:
    path = write_status(tmp_path / "status", status_of(SNAPSHOT))
    source = """
        import sys

        sys.modules["textual"] = sys.modules["rich"] = sys.modules["tqdm"] = None
        from areal_core.top import _command

        if "--once" not in sys.argv:
            _command._is_on_terminal = lambda: True
        sys.exit(_command.main())
    """
    once = run_script(source, "--once", str(path))
    assert (once.returncode, once.stderr) == (0, "")
    assert "accepted 1204" in once.stdout
    view = run_script(source, str(path))
    assert (view.returncode, view.stdout) == (1, "")
    assert view.stderr == (
        "the view needs textual: pip install 'areal-core[top]'; --once prints one frame without it\n"
    )


# -- the view --------------------------------------------------------------------------------------


def play(
    runs: list[Run], size: tuple[int, int], act: Callable[[Pilot[None]], Awaitable[None]], **options: Any
) -> None:
    """Run the view in a terminal of *size*, and *act* in it."""

    async def run() -> None:
        app = RunsApp(runs, **{"only": True, **options})
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(pilot)

    asyncio.run(run())


def screen_of(pilot: Pilot[None]) -> list[str]:
    """Return the lines that are seen."""
    return [
        "".join(segment.text for segment in strip) for strip in pilot.app.screen._compositor.render_strips()
    ]


@Sizes
def test_all_parts_are_seen_in_a_terminal_of_any_size(tmp_path: Path, columns: int, rows: int) -> None:
    many = tuple(replaced(SNAPSHOT.stragglers[0], data_id=f"q{n}", stage=f"at {n}") for n in range(20))
    seen = changed(stragglers=many)
    run = read_run(write_status(tmp_path / "status", status_of(seen)))

    async def act(pilot: Pilot[None]) -> None:
        lines = screen_of(pilot)
        while "q Quit" not in lines[-1]:  # its last line comes when all else is there
            await pilot.pause()
            lines = screen_of(pilot)
        text = "\n".join(lines)
        assert len(lines) == rows
        assert {len(line) for line in lines} == {columns}
        for said in (*TITLES, "train.py", "version 12", "LIVE", "1204", "24/32", "50 generating",
                     "10.0.0.1:30000", "out: it hung up", "12.3k tokens/s", "q0", "slots full: 64",
                     "q Quit", "? Help"):  # fmt: skip
            assert said in text, text
        assert ("q12" in text) == (rows == 50)
        assert offers(pilot, "Scroll") == (rows < 50)

    play([run], (columns, rows), act)


def test_a_run_that_has_died_has_a_banner_and_its_last_state(tmp_path: Path) -> None:
    run = read_run(write_status(tmp_path / "status", dead()))

    async def act(pilot: Pilot[None]) -> None:
        await until_seen(pilot, "DIED about")
        lines = screen_of(pilot)
        assert "DIED" in lines[0]
        assert re.search(r"DIED about \d+(\.\d)? s ago", lines[1])
        text = "\n".join(lines)
        for said in (*TITLES, "1204", "gsm8k/7", "slots full: 64"):
            assert said in text, text

    play([run], (80, 24), act)


def test_the_view_follows_the_file_and_keeps_what_it_said_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_status(tmp_path / "status", status_of(SNAPSHOT))
    look, has_looked = RunsApp._look, asyncio.Event()

    def looking(app: RunsApp) -> None:
        look(app)
        has_looked.set()

    async def until_looked(pilot: Pilot[None]) -> None:
        """Wait until it has looked at the file as it is, and shown what it saw."""
        for _ in range(2):  # when it looks again, all of the first time is drawn
            has_looked.clear()
            async with asyncio.timeout(WAIT_S):
                await has_looked.wait()
        await pilot.pause()

    monkeypatch.setattr(RunsApp, "_look", looking)

    async def act(pilot: Pilot[None]) -> None:
        assert "version 12" in screen_of(pilot)[0]
        write_status(path, status_of(changed(version=13, has_ended=True)))
        await until_seen(pilot, "version 13")
        await until_seen(pilot, "Ended ")
        assert re.search(r"Ended \d+(\.\d)? s ago", screen_of(pilot)[1])
        path.write_bytes(b"{")
        await until_looked(pilot)
        assert "version 13" in screen_of(pilot)[0]
        path.unlink()
        await until_looked(pilot)
        assert "version 13" in screen_of(pilot)[0]

    play([read_run(path)], (80, 24), act)


def offers(pilot: Pilot[None], what: str) -> bool:
    """Return whether there is a key for it now, among those that are told."""
    bindings = pilot.app.screen.active_bindings.values()
    return any(one.binding.description == what and one.binding.show and one.enabled for one in bindings)


async def until_seen(pilot: Pilot[None], words: str, times: int | None = None) -> None:
    """Wait until *words* are seen; so many *times*, if that is said."""
    for _ in range(200):
        count = "\n".join(screen_of(pilot)).count(words)
        if count == times if times is not None else count:
            return
        await pilot.pause(0.05)
    raise AssertionError(f"{words} was not seen in\n" + "\n".join(screen_of(pilot)))


def test_several_runs_are_a_list_to_choose_from_and_arrows_go_on(directory: Path) -> None:
    paths = [
        write_status(directory / f"{name}-{n}-1.json", status_of(changed(program=name, uptime_s=10.0 + n)))
        for n, name in enumerate(("first", "second", "third"))
    ]

    async def act(pilot: Pilot[None]) -> None:
        assert isinstance(pilot.app.screen, ChoiceScreen)
        await pilot.press("down", "enter")
        await until_seen(pilot, "second  pid")
        assert offers(pilot, "List")
        await pilot.press("right")
        await until_seen(pilot, "third  pid")
        await pilot.press("right")
        await until_seen(pilot, "first  pid")
        await pilot.press("left")
        await until_seen(pilot, "third  pid")
        await pilot.press("l")
        await until_seen(pilot, "Runs: enter shows one")
        await pilot.press("escape")
        await until_seen(pilot, "third  pid", times=1)
        await pilot.press("l", "enter")
        await until_seen(pilot, "third  pid", times=1)

    play([read_run(path) for path in paths], (80, 24), act, only=False)


def test_the_one_run_that_lives_is_shown_at_once_whatever_died_before(directory: Path) -> None:
    write_status(directory / "dead-1-1.json", dead(changed(program="dead", uptime_s=1.0)))
    live = write_status(directory / "live-2-1.json", status_of(changed(program="live", uptime_s=99.0)))

    async def act(pilot: Pilot[None]) -> None:
        assert not isinstance(pilot.app.screen, ChoiceScreen)
        await until_seen(pilot, " live  pid")
        await pilot.press("l")
        await until_seen(pilot, "DIED")

    play([read_run(live)], (80, 24), act, only=False)


def test_each_file_is_read_once_at_each_look(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def reading(path: Path) -> Run:
        read.append(path)
        return read_run(path)

    monkeypatch.setattr("areal_core._observe.runs.read_run", reading)
    monkeypatch.setattr("areal_core.top._app.read_run", reading)
    paths = [write_status(directory / f"run-{n}-1.json", status_of(SNAPSHOT)) for n in range(2)]
    elsewhere = write_status(directory.parent / "elsewhere", status_of(SNAPSHOT))
    monkeypatch.setattr(RunsApp, "_show", lambda app: None)
    app = RunsApp([read_run(path) for path in (*paths, elsewhere)], only=False)
    app._look()
    assert sorted(read) == sorted([*paths, elsewhere])


def test_the_list_goes_on_while_it_is_looked_at(directory: Path) -> None:
    one = write_status(directory / "one-1-1.json", status_of(changed(program="one", uptime_s=50.0)))
    write_status(directory / "two-2-1.json", status_of(changed(program="two", uptime_s=60.0)))

    async def act(pilot: Pilot[None]) -> None:
        assert isinstance(pilot.app.screen, ChoiceScreen)
        await pilot.press("down")
        write_status(one, status_of(changed(program="one", uptime_s=51.0, version=77)))
        await until_seen(pilot, "version 77")
        write_status(directory / "new-3-1.json", status_of(changed(program="new", uptime_s=1.0)))
        await until_seen(pilot, "new  pid")
        write_status(one, status_of(changed(program="one", uptime_s=52.0, has_ended=True)))
        await until_seen(pilot, "ENDED")
        await pilot.press("enter")
        await until_seen(pilot, "two  pid")
        assert not isinstance(pilot.app.screen, ChoiceScreen)

    play([read_run(one)], (80, 24), act, only=False)


def test_a_low_terminal_can_be_scrolled_to_all_servers_and_a_high_one_shows_them_once(tmp_path: Path) -> None:
    found = tuple(replace(ENGINE.servers[0], name=f"10.0.0.{n}:80") for n in range(9))
    run = read_run(
        write_status(tmp_path / "status", status_of(changed(engine=replace(ENGINE, servers=found))))
    )

    async def act(pilot: Pilot[None]) -> None:
        await until_seen(pilot, "and 6 more, with 180 in flight")
        await until_seen(pilot, "↑↓ Scroll")
        await pilot.press("down", "down")
        await until_seen(pilot, "gsm8k/7")
        assert "Who waits" not in "\n".join(screen_of(pilot))
        await pilot.press("end")
        await until_seen(pilot, "10.0.0.8:80")
        await pilot.press("home")
        await until_seen(pilot, "Who waits")
        await pilot.resize_terminal(80, 50)
        await until_seen(pilot, "10.0.0.8:80", times=1)
        assert not offers(pilot, "Scroll")
        assert "more, with" not in "\n".join(screen_of(pilot))
        assert "gsm8k/7" in "\n".join(screen_of(pilot))

    play([run], (80, 24), act)


def test_keys_help_and_quit(tmp_path: Path) -> None:
    run = read_run(write_status(tmp_path / "status", status_of(SNAPSHOT)))

    async def act(pilot: Pilot[None]) -> None:
        assert not offers(pilot, "List")
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, HelpScreen)
        await until_seen(pilot, "How training rollouts ended")
        await pilot.press("escape")
        assert len(pilot.app.screen_stack) == 1
        await pilot.resize_terminal(200, 50)
        await until_seen(pilot, "64 run + 21 ready + 0 delivered")
        await pilot.press("q")
        await pilot.pause()
        assert pilot.app._exit

    play([run], (80, 24), act)
