"""``python -m areal_core.top``: what it shows of a run, whatever became of that, and how it is asked."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot

from areal_core._engine.stats import ServerStats
from areal_core._observe.runs import Run, State, Status, read_run
from areal_core._observe.snapshot import Reason, Snapshot, Straggler
from areal_core.top import main
from areal_core.top._app import ChoiceScreen, HelpScreen, RunsApp
from areal_core.top._frame import frame
from areal_core.top._panels import PANELS
from areal_core.top._text import bar, chart, cut, number, seconds, stacked, wrapped
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


# -- one frame -------------------------------------------------------------------------------------


def test_a_frame_says_all_there_is_to_know() -> None:
    text = frame(run_of(), 120)
    for said in (
        "train.py", f"pid {os.getpid()}", "up 1:02:03", "version 12", "LIVE",
        "accepted 1204  rejected 47  failed 20  stale 0",
        "pending 83  running 64  not taken 21  delivered 1183",
        "24/32  16 s left", "64/64", "85/96  64 run + 21 wait + 0 delivered",
        "mean 0.8, max 2 of 2", "40 at 0  20 at 1  4 at more",
        "4 ms  journal 2 KiB waiting",
        "evaluation: pending 0  running 2  accepted 6  failed 0",
        "█ 50 generating  ▓ 14 waiting for its reward",
        "10.0.0.2:30000", "out: it hung up", "30+2  v12",
        "12.3k tokens/s  0.5 accepted/s  123k in all", "50 generations run, 0 wait for a slot",
        "45 s  gsm8k/7", "waiting for its reward, 12 s  SingleTurnWorkflow",
        "concurrency: 64 samples of training run; one has to end",
        "a caller waits for a batch of 32: 24 are there",
    ):  # fmt: skip
        assert said in text, text
    assert [line.strip("─ ") for line in text.splitlines() if line.startswith("──")] == TITLES


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
    assert main(["--once"]) == 0
    assert "DIED about " in capsys.readouterr().out
    write_status(directory / "old-2-1.json", status_of(changed(program="old", uptime_s=99.0)))
    write_status(directory / "new-3-1.json", status_of(changed(program="new", uptime_s=9.0)))
    assert main(["--once"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("new ")
    assert said.err == f"another run: old, pid {os.getpid()}\n"


def test_a_path_is_shown_wherever_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = write_status(tmp_path / "anything", dead(changed(taken_at=time.time() - 7200)))
    assert main(["--once", str(path)]) == 0
    said = r"^ DIED about 2:00:0\d ago: .*: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$"
    assert re.search(said, capsys.readouterr().out, re.MULTILINE)


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
        from areal_core.top import main

        sys.exit(main())
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
    many = tuple(msgspec.structs.replace(SNAPSHOT.stragglers[0], data_id=f"q{n}") for n in range(20))
    seen = changed(stragglers=many)
    run = read_run(write_status(tmp_path / "status", status_of(seen)))

    async def act(pilot: Pilot[None]) -> None:
        lines = screen_of(pilot)
        text = "\n".join(lines)
        assert len(lines) == rows
        assert {len(line) for line in lines} == {columns}
        for said in (*TITLES, "train.py", "version 12", "LIVE", "1204", "24/32", "50 generating",
                     "10.0.0.1:30000", "out: it hung up", "12.3k tokens/s", "q0", "concurrency: 64",
                     "q Quit", "? Help"):  # fmt: skip
            assert said in text, text
        assert ("q12" in text) == (rows == 50)

    play([run], (columns, rows), act)


def test_a_run_that_has_died_has_a_banner_and_its_last_state(tmp_path: Path) -> None:
    run = read_run(write_status(tmp_path / "status", dead()))

    async def act(pilot: Pilot[None]) -> None:
        lines = screen_of(pilot)
        assert "DIED" in lines[0]
        assert "DIED about 0." in lines[1]
        text = "\n".join(lines)
        for said in (*TITLES, "1204", "gsm8k/7", "concurrency: 64"):
            assert said in text, text

    play([run], (80, 24), act)


def test_the_view_follows_the_file_and_keeps_what_it_said_last(tmp_path: Path) -> None:
    path = write_status(tmp_path / "status", status_of(SNAPSHOT))

    async def act(pilot: Pilot[None]) -> None:
        assert "version 12" in screen_of(pilot)[0]
        write_status(path, status_of(changed(version=13, has_ended=True)))
        await until_seen(pilot, "version 13")
        assert "Ended 0." in screen_of(pilot)[1]
        path.write_bytes(b"{")
        await pilot.pause(0.6)
        path.unlink()
        await pilot.pause(0.6)
        assert "version 13" in screen_of(pilot)[0]

    play([read_run(path)], (80, 24), act)


async def until_seen(pilot: Pilot[None], words: str) -> None:
    for _ in range(200):
        if words in "\n".join(screen_of(pilot)):
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
        await pilot.press("right")
        await until_seen(pilot, "third  pid")
        await pilot.press("right")
        await until_seen(pilot, "first  pid")
        await pilot.press("left")
        await until_seen(pilot, "third  pid")
        await pilot.press("l")
        await until_seen(pilot, "Runs: enter shows one")
        await pilot.press("escape")
        await until_seen(pilot, "third  pid")

    play([read_run(path) for path in paths], (80, 24), act, only=False)


def test_keys_help_and_quit(tmp_path: Path) -> None:
    run = read_run(write_status(tmp_path / "status", status_of(SNAPSHOT)))

    async def act(pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, HelpScreen)
        await until_seen(pilot, "How training rollouts ended")
        await pilot.press("escape")
        assert len(pilot.app.screen_stack) == 1
        await pilot.resize_terminal(200, 50)
        await until_seen(pilot, "64 run + 21 wait + 0 delivered")
        await pilot.press("q")
        await pilot.pause()
        assert pilot.app._exit

    play([run], (80, 24), act)
